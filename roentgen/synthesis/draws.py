"""Drawing images for the rows of a plan until the filter keeps one, and the store of what was drawn.

A draw is a shard's worth of rows: a data file of PNGs one after another, and a sealed JSON file that says what is where
and holds the data's SHA-256. It is written last, so a draw without one, or of another sum, is unfinished and is made
again. What a draw holds depends on the plan, the model and the filter alone, never on which process makes it or when.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.files import explained, has_sha256, sha256, write_atomic
from roentgen.generators.base import Sample
from roentgen.images import encode_image, read_image
from roentgen.metrics.diversity.repeats import difference_hash
from roentgen.prompts import Labels
from roentgen.synthesis.filters import Verdict
from roentgen.synthesis.plan import Plan, Row
from roentgen.synthesis.store import read_values, write_values
from roentgen.synthesis.writers.parts import Record

CHUNK = 32
"""Images that the filter looks at together."""
WAITING = 4  # chunks at most between the model and the disk
FEW_BROKEN, FEW_REJECTED = 8, 64
"""After so many images, all of them black or all rejected, more of them would be no better."""

Make = Callable[[Sequence[str], Sequence[int]], Iterator[Sample]]
"""The images of prompts and seeds, in order: ``generate`` of a model, or a stand-in."""


class Judge(Protocol):
    """What the drawing needs of a ``roentgen.synthesis.filters.Filter``."""

    def judge(self, images: NDArray[np.uint8], labels: Sequence[Labels]) -> list[Verdict]: ...


@dataclass(frozen=True)
class Drawn:
    """What became of one row.

    kept: whether an attempt was kept; ``attempt`` is that one, else the last. rejected: stages that rejected the
    attempts of this draw, in order. bits: the kept image's difference hash, hex. start, length: of its PNG in the data.
    """

    slot: int
    attempt: int
    kept: bool
    rejected: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    bits: str = ""
    start: int = 0
    length: int = 0


@dataclass(frozen=True)
class Draw:
    """A shard's rows in the order of slots, and the provenance that its images share (without prompt and seed)."""

    rows: Sequence[Drawn]
    provenance: Mapping[str, str]


class Tally:
    """Counts over all draws of a process, which stop a run that can come to nothing."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.judged = self.kept = 0
        self.rejected: Counter[str] = Counter()

    def add(self, verdict: Verdict) -> None:
        """Count one verdict; UserError where everything so far was black, or everything was rejected."""
        self.judged += 1
        if not verdict.stage:
            self.kept += 1
            return
        self.rejected[verdict.stage] += 1
        if self.rejected["broken"] == self.judged >= FEW_BROKEN:
            raise UserError(
                f"--model {self.model}: all of its first {self.judged} images are black or of one grey; try --dtype "
                "float32, other --steps, or another model"
            )
        if not self.kept and self.judged >= FEW_REJECTED:
            stage, count = self.rejected.most_common(1)[0]
            measured = f" (the last one measured {verdict.scores[stage]:.3g})" if stage in verdict.scores else ""
            raise UserError(
                f"--filter: all of the first {self.judged} images were rejected, {count} of them by the stage "
                f"{stage!r}{measured}: look at a few with `roentgen generate`, then change --guidance or the model, or "
                f"leave {stage} out of --filter"
            )


def draw(
    plan: Plan,
    rows: Mapping[int, Row],
    starts: Mapping[int, int],
    *,
    make: Make,
    judge: Judge,
    tally: Tally,
    on_image: Callable[[bool], object] = lambda kept: None,
) -> tuple[Draw, bytes]:
    """Images for rows, each from its next seed until one is kept or ``plan.max_tries`` are used up.

    The filter and the encoding of one chunk run beside the making of the next.

    Args:
        plan: of the rows.
        rows: by slot.
        starts: slot -> first attempt to make.
        make: gives images.
        judge: says which to keep.
        tally: counts them.
        on_image: called after each image, with whether it was kept.

    Returns:
        What became of each row, and the data.
    """
    rejected: dict[int, list[str]] = {slot: [] for slot in starts}
    found: dict[int, tuple[int, Verdict, str, bytes]] = {}
    provenance: dict[str, str] = {}
    pending = dict(sorted(starts.items()))
    with ThreadPoolExecutor(1) as beside:

        def collect(slots: Sequence[int], future: Future[list[tuple[Verdict, str, bytes]]]) -> None:
            for slot, (verdict, bits, data) in zip(slots, future.result(), strict=True):
                tally.add(verdict)
                on_image(not verdict.stage)
                if verdict.stage:
                    rejected[slot].append(verdict.stage)
                else:
                    found[slot] = pending[slot], verdict, bits, data

        while pending:
            slots = list(pending)
            asked = [rows[slot] for slot in slots]
            samples = make([row.prompt for row in asked], [plan.seed_of(slot, pending[slot]) for slot in slots])
            waiting: deque[tuple[Sequence[int], Future[list[tuple[Verdict, str, bytes]]]]] = deque()
            for start in range(0, len(slots), CHUNK):
                part = slice(start, start + CHUNK)
                chunk = [next(samples) for _ in slots[part]]
                provenance = {k: v for k, v in chunk[0].provenance.items() if k not in ("prompt", "seed")}
                waiting.append((slots[part], beside.submit(_look, judge, asked[part], chunk)))
                while len(waiting) > WAITING:
                    collect(*waiting.popleft())
            while waiting:
                collect(*waiting.popleft())
            pending = {
                slot: attempt + 1
                for slot, attempt in pending.items()
                if slot not in found and attempt + 1 < plan.max_tries
            }

    drawn, parts, place = [], [], 0
    for slot, start in sorted(starts.items()):
        if slot not in found:
            drawn.append(Drawn(slot, start + len(rejected[slot]) - 1, False, tuple(rejected[slot])))
            continue
        attempt, verdict, bits, data = found[slot]
        drawn.append(Drawn(slot, attempt, True, tuple(rejected[slot]), verdict.scores, bits, place, len(data)))
        parts.append(data)
        place += len(data)
    return Draw(drawn, provenance), b"".join(parts)


def _look(judge: Judge, rows: Sequence[Row], samples: Sequence[Sample]) -> list[tuple[Verdict, str, bytes]]:
    """Verdict, difference hash and PNG of each image; the latter two only for those that are kept."""
    images = np.stack([sample.image for sample in samples])
    verdicts = judge.judge(images, [row.labels for row in rows])
    looked = []
    for sample, verdict in zip(samples, verdicts, strict=True):
        if verdict.stage:
            looked.append((verdict, "", b""))
            continue
        bits = np.packbits(difference_hash([sample.image])[0]).tobytes().hex()
        looked.append((verdict, bits, encode_image(sample.image, "png", sample.provenance)))
    return looked


class DrawStore:
    """Draws on disk, by round and shard; see the module's text. Round 0 has every row, later ones what is redone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked: set[tuple[int, int]] = set()

    def write(self, round: int, shard: int, made: Draw, data: bytes) -> None:
        """Keep a draw; the same one gives the same bytes."""
        body = {
            "sha256": sha256(data),
            "provenance": made.provenance,
            "rows": [asdict(row) for row in made.rows],
        }
        path, scratch = self._path(round, shard), self.folder / "scratch"
        write_atomic(path.with_suffix(".png"), data, scratch=scratch)
        write_values(path, body, scratch=scratch)
        self._checked.add((round, shard))

    def is_drawn(self, round: int, shard: int) -> bool:
        """Whether a draw is there and whole; a damaged one is named on stderr. Each is read once a process."""
        if (round, shard) in self._checked:
            return True
        path = self._path(round, shard)
        body = read_values(path)
        if body is None:
            return False
        if has_sha256(path.with_suffix(".png"), body["sha256"]):
            self._checked.add((round, shard))
            return True
        if path.with_suffix(".png").exists():
            print(f"roentgen: warning: {path.with_suffix('.png')} is damaged and is made again", file=sys.stderr)
        return False

    def read(self, round: int, shard: int) -> Draw:
        """A draw without its images; UserError where it is lost."""
        body = read_values(self._path(round, shard), needed=True)
        return Draw([Drawn(**{**row, "rejected": tuple(row["rejected"])}) for row in body["rows"]], body["provenance"])

    def records(
        self, plan: Plan, rows: Mapping[int, Row], shard: int, kept: Sequence[tuple[int, Drawn]]
    ) -> list[Record]:
        """Records of kept rows of a shard, given with the round that each is from; slots rising."""
        records = []
        for round in sorted({round for round, _ in kept}):
            marks = self.read(round, shard).provenance
            path = self._path(round, shard).with_suffix(".png")
            with explained(f"{path} cannot be read", "run the same command again", OSError):
                data = path.read_bytes()
            for at, drawn in kept:
                if at != round:
                    continue
                row, seed = rows[drawn.slot], plan.seed_of(drawn.slot, drawn.attempt)
                own = {"prompt": row.prompt, "seed": str(seed), **marks}
                image = read_image(f"{row.slot}.png", data=data[drawn.start : drawn.start + drawn.length])
                records.append(Record(row, image, seed, drawn.attempt, drawn.scores, own))
        return sorted(records, key=lambda record: record.row.slot)

    def _path(self, round: int, shard: int) -> Path:
        return self.folder / f"round-{round}" / f"{shard:06d}.json"
