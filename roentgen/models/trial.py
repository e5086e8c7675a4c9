"""Whose fault a failure inside a model is: its folder's, where a trial with nothing odd in it fails as well.

A configuration may be sound value by value and still describe networks that do not work: no attention heads, groups of
-1, a latent of no side. Nobody can list all of that, and to run a trial of every model at loading costs time. So it is
run when something has failed: a failure of the trial too is one sentence about the folder, any other stays what it was.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from roentgen.errors import UserError, is_fault
from roentgen.files import explained

F = TypeVar("F", bound=Callable[..., Any])


class Tried(Protocol):
    """What has a folder and a trial: ``trial`` makes one image of no text in one step."""

    @property
    def info(self) -> Any: ...

    def trial(self) -> object: ...


def tried(method: F) -> F:
    """A method of ``Tried``, of which a failure is the folder's where the trial fails too; generators stay so."""
    if inspect.isgeneratorfunction(method):

        @functools.wraps(method)
        def made(self: Tried, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with blamed(self.info.folder, self.trial):
                yield from method(self, *args, **kwargs)
    else:

        @functools.wraps(method)
        def made(self: Tried, *args: Any, **kwargs: Any) -> Any:
            with blamed(self.info.folder, self.trial):
                return method(self, *args, **kwargs)

    return cast(F, made)


@contextlib.contextmanager
def blamed(folder: Path, trial: Callable[[], object]) -> Iterator[None]:
    """Run the block; UserError about ``folder`` where it fails, and ``trial`` as well.

    UserErrors, and memory that is not there, pass as they are.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not is_fault(error):
            raise
        fix = "a config.json in it may be damaged; fetch the model again"
        with explained(f"{folder}: its networks fail even on an empty text", fix):
            trial()
        raise
