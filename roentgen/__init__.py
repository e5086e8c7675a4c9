"""roentgen: radiology text in, synthetic chest X-rays out (research only, not for diagnosis)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from roentgen.provenance import __version__

__all__ = ["__version__", "generate", "load_model"]

if TYPE_CHECKING:
    from roentgen.generators.generate import generate, load_model


def __getattr__(name: str) -> Any:
    # torch and diffusers take seconds to import: `roentgen --help` must not pay for them.
    if name in {"generate", "load_model"}:
        from roentgen.generators import generate

        return getattr(generate, name)
    raise AttributeError(f"module 'roentgen' has no attribute {name!r}")
