"""Shards of a set drawn by the workers of a Ray cluster: Ray places the work and gives a lost shard to another worker.

The process that was started keeps the plan, the verdicts and the files; workers only draw, and send back what they
drew, so that they need no folder in common. What a draw holds does not depend on who makes it: the set is the same as
one made alone. Each worker loads the model once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from roentgen.cluster import connect
from roentgen.errors import UserError
from roentgen.files import reason
from roentgen.synthesis.draws import Draw, Tally, draw
from roentgen.synthesis.engine import Shard
from roentgen.synthesis.plan import Plan, Row

RETRIES = 3
"""Times that a shard is given to another worker when its own has died."""
AHEAD = 2
"""Shards that wait for each worker, so that none is idle while another's result is written."""


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to make the images of a plan; ``settings`` are the model's, which must be equal there."""

    plan: Plan
    filter: str
    reference: str | None
    device: str
    dtype: str
    compile: bool
    lora: str | None
    batch_size: int
    settings: Mapping[str, str]


class Cluster:
    """A connection to a Ray cluster that draws shards; a context, which ends it.

    Raises:
        UserError: Ray is not installed, or no cluster answers at ``address`` ("auto": the one that this machine is of,
            "local": one of this machine's own for this run).
    """

    def __init__(self, address: str, recipe: Recipe) -> None:
        self.ray = connect(address)
        self.recipe = recipe
        self.gpus = 1 if recipe.device.startswith("cuda") else 0

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.ray.shutdown()

    def draw(self, shards: Iterable[Shard], on_image: Callable[[bool], object]) -> Iterator[tuple[int, Draw, bytes]]:
        """Each shard as it is ready; see ``engine.Draws``. UserError of a worker, or where they die again and again."""
        ray = self.ray
        remote = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=RETRIES)(_draw)
        recipe = ray.put(self.recipe)
        most = AHEAD * max(1, int(ray.cluster_resources().get("GPU" if self.gpus else "CPU", 1)))
        waiting: dict[Any, int] = {}
        queue = iter(shards)
        while True:
            for number, rows, starts in queue:
                waiting[remote.remote(recipe, dict(rows), dict(starts))] = number
                if len(waiting) >= most:
                    break
            if not waiting:
                return
            (ready, *_), _ = ray.wait(list(waiting))
            number = waiting.pop(ready)
            try:
                made, data = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                raise UserError(
                    f"--ray: shard {number} was lost {RETRIES + 1} times with its worker ({reason(error)}); look at "
                    "the workers' memory, then run the same command again"
                ) from error
            for row in made.rows:
                for kept in [*([False] * len(row.rejected)), *([True] * row.kept)]:
                    on_image(kept)
            yield number, made, data


_LOADED: dict[str, Any] = {}


def _draw(recipe: Recipe, rows: Mapping[int, Row], starts: Mapping[int, int]) -> tuple[Draw, bytes]:
    """In a worker: one shard. The model is loaded at the first one."""
    from roentgen.synthesis.maker import Maker, open_filter

    key = repr((recipe.plan.hash, recipe.settings, recipe.filter, recipe.device, recipe.batch_size))
    if key not in _LOADED:
        stages, judge = open_filter(recipe.filter, recipe.reference)
        maker = Maker.load(
            recipe.plan, stages, judge, device=recipe.device, dtype=recipe.dtype, compile=recipe.compile,
            lora=recipe.lora, batch_size=recipe.batch_size,
        )  # fmt: skip
        if maker.settings() != recipe.settings:
            raise UserError(
                f"--ray: a worker has another model or version than this machine ({maker.settings()}, "
                f"{recipe.settings}); install and fetch the same on all of them"
            )
        _LOADED.clear()
        _LOADED[key] = maker, Tally(recipe.plan.model)
    maker, tally = _LOADED[key]
    return draw(recipe.plan, rows, starts, make=maker.make, judge=maker.filter, tally=tally)
