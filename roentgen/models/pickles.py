"""What a pickled network would import, read before it is unpickled: a file from a cache must not run code.

Some packages save whole networks and unpickle them with everything that is in the file. Which classes and functions a
pickle names can be told without running it (``pickletools``), so a file that names any but those of the network's own
packages is refused.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from roentgen.errors import UserError
from roentgen.files import explained

PLAIN = {
    *(f"torch._utils _rebuild_{kind}" for kind in ("tensor", "tensor_v2", "parameter", "parameter_with_state")),
    *(
        f"torch {kind}Storage"
        for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Byte", "Bool")
    ),
    *("torch Size", "torch device", "collections OrderedDict", "__builtin__ set", "builtins set", "_codecs encode"),
    *("numpy ndarray", "numpy dtype"),
    *(f"numpy.{core}.multiarray {name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}
"""What tensors and plain containers are made of, as "module name"."""
PICKLES = 5
"""Pickles one after the other in PyTorch's old format: magic, protocol, system, the network, its storages."""


def check_pickle(file: Path, allowed: Sequence[str], who: str) -> None:
    """UserError that begins with ``who`` if ``file`` names a class or function outside ``allowed`` and ``PLAIN``.

    ``file`` is PyTorch's zip format or the old one; ``allowed`` are beginnings such as ``torch.nn.``.
    """
    with explained(
        f"{who}: {file} cannot be loaded", "fetch it again", (ValueError, EOFError, OSError, zipfile.BadZipFile)
    ):
        named = list(_globals(file))
    for module, name in named:
        known = (
            any(f"{module}.".startswith(start) for start in allowed) and "." not in name
        )  # a.b is b of what a imports
        if not known and f"{module} {name}" not in PLAIN:
            raise UserError(f"{who}: {file} would run {module}.{name}, which no network needs; fetch it again")


def _globals(file: Path) -> Iterator[tuple[str, str]]:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    with archive.open(name) as stream:
                        yield from _named(stream)
        return
    with file.open("rb") as stream:
        for _ in range(PICKLES):
            yield from _named(stream)


def _named(stream: IO[bytes]) -> Iterator[tuple[str, str]]:
    """Modules and names that one pickle imports; those of the newer opcode are the two texts before it."""
    texts: list[str] = []
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            yield module, name
        elif opcode.name == "STACK_GLOBAL":
            yield tuple(texts[-2:]) if len(texts) > 1 else ("", "")  # type: ignore[misc]
        elif opcode.name == "MEMOIZE" and texts:
            memo[len(memo)] = texts[-1]
        elif opcode.name in ("BINGET", "LONG_BINGET", "GET") and argument in memo:
            texts.append(memo[argument])
        elif isinstance(argument, str):
            texts.append(argument)
