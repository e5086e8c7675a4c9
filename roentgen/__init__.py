"""roentgen: radiology text in, synthetic chest X-rays out (research only, not for diagnosis)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Edited", "Editing", "Generator", "Sample", "UserError", "__version__", "edit", "generate", "load_model"]

if TYPE_CHECKING:
    from roentgen.errors import UserError
    from roentgen.generators.base import Editing, Generator, Sample
    from roentgen.generators.edit import Edited, edit
    from roentgen.generators.generate import generate, load_model
    from roentgen.provenance import __version__

# torch and diffusers take seconds to import: `import roentgen` and `roentgen --help` must not pay for them.
_HOMES = {
    "generate": "roentgen.generators.generate",
    "load_model": "roentgen.generators.generate",
    "edit": "roentgen.generators.edit",
    "Edited": "roentgen.generators.edit",
    "Editing": "roentgen.generators.base",
    "Generator": "roentgen.generators.base",
    "Sample": "roentgen.generators.base",
    "UserError": "roentgen.errors",
    "__version__": "roentgen.provenance",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'roentgen' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "annotations", "_HOMES"})
