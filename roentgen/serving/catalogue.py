"""What the server offers, by name: generators and reporters, each loaded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from roentgen.errors import UserError
from roentgen.generators.base import Generator
from roentgen.serving.failures import Failure


@dataclass(frozen=True)
class Catalogue:
    """Loaded models by name, the first of each is the one that answers where a request names none.

    reporters may be empty; ``no_reporter`` then says why. workers: batches that can be computed at the same time.
    """

    generators: Mapping[str, Generator]
    reporters: Mapping[str, Any] = field(default_factory=dict)
    no_reporter: str = "this server was started without a reporter; start it with --reporter NAME"
    workers: int = 1

    def generator(self, name: str | None) -> tuple[str, Generator]:
        """The generator that a request asks for by name or hash, with its name; 404 where there is none."""
        if not name:
            return next(iter(self.generators.items()))
        for key, model in self.generators.items():
            if name in (key, f"{key} [{model.info.hash}]", model.info.hash):
                return key, model
        known = ", ".join(self.generators)
        raise Failure(404, f"model {name[:80]!r}: not on this server; it has {known}", param="model", code="not_found")

    def reporter(self, name: str | None) -> tuple[str, Any]:
        """The reporter of that name, the first without one; 503 where the server has none, 404 for another name."""
        if not self.reporters:
            raise Failure(503, self.no_reporter, code="no_reporter")
        if not name:
            return next(iter(self.reporters.items()))
        if name in self.reporters:
            return name, self.reporters[name]
        known = ", ".join(self.reporters)
        raise Failure(404, f"model {name[:80]!r}: no reporter of this server; it has {known}", param="model")


def settings_of_family(model: Generator) -> frozenset[str]:
    """Names of the settings that a model's family has."""
    sampling: Any = model.sampling()
    return frozenset(field.name for field in dataclasses.fields(sampling))


def load(
    models: Sequence[str], reporters: Sequence[str], *, device: str = "auto", dtype: str = "auto", compile: bool = False
) -> Catalogue:
    """Load everything. UserError on a name that is none or is given twice, and on damaged weights.

    Without ``reporters`` the one that ships is taken where its weights are there.
    """
    from roentgen.generators.generate import load_model

    generators: dict[str, Generator] = {}
    for name in models:
        model = load_model(name, device=device, dtype=dtype, compile=compile)
        if model.info.name in generators:
            raise UserError(f"--model {name}: another is called {model.info.name}; rename its folder")
        generators[model.info.name] = model
    loaded, why = _reporters(reporters, device)
    return Catalogue(generators, loaded, why) if why else Catalogue(generators, loaded)


def _reporters(names: Sequence[str], device: str) -> tuple[dict[str, Any], str]:
    from roentgen.devices import pick_device
    from roentgen.reports import MINI_REPORT, load_reporter

    chosen = pick_device(device)
    try:
        wanted = [load_reporter(name, device=chosen, flag="--reporter") for name in names or (MINI_REPORT,)]
    except UserError:
        if names:
            raise
        return {}, "this server has no reporter: the one that ships has no weights here; start it with --reporter NAME"
    found = {one.info.name: one for one in wanted}
    if len(found) < len(wanted):
        raise UserError("--reporter: two reporters have the same name; rename the folder of one")
    return found, ""
