"""A siamese model of the user's: a function in a Python file or module that scores pairs of images."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from roentgen.errors import UserError
from roentgen.files import sha256
from roentgen.metrics.memorisation.reidentification import Siamese


@dataclass(frozen=True)
class LoadedSiamese:
    """``compare`` scores two lists of grey uint8 images; ``name`` as it was given, ``hash`` of the file with it."""

    name: str
    hash: str
    compare: Siamese


@lru_cache(maxsize=1)
def load_siamese(name: str) -> LoadedSiamese:
    """The function that ``name`` names, "FILE.py:FUNCTION" or "package.module:FUNCTION".

    It takes two lists of n grey uint8 images (H, W) and gives n scores, higher for "same patient"; where it keeps its
    weights is its own affair. The code is run, so name only what you trust.

    Raises:
        UserError: no such file, module or function, or one that cannot be imported.
    """
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function.isidentifier():
        raise UserError(f"--siamese {name}: write FILE.py:FUNCTION or package.module:FUNCTION")
    module = _from_file(Path(place), name) if place.endswith(".py") else _from_package(place, name)
    compare = vars(module).get(function)
    if not callable(compare):
        raise UserError(f"--siamese {name}: {place} has no function {function}; check the name after the colon")
    file = Path(module.__file__) if module.__file__ else None
    digest = sha256(file.read_bytes())[:16] if file else "unknown"
    short = Path(place).name if place.endswith(".py") else place
    return LoadedSiamese(f"{short}:{function}", digest, compare)


def _from_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise UserError(f"--siamese {name}: there is no file {path}; check the path")
    spec = importlib.util.spec_from_file_location("roentgen_siamese", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in it look themselves up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # somebody else's code
        raise UserError(
            f"--siamese {name} cannot be imported ({type(error).__name__}: {error}); mend the file"
        ) from error
    return module


def _from_package(place: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except Exception as error:  # somebody else's code
        raise UserError(
            f"--siamese {name} cannot be imported ({type(error).__name__}: {error}); install it, or name a .py file"
        ) from error
