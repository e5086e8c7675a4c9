"""From a plan to a finished data set: draw, compare with one another, write, finish.

Rows fall into shards of a fixed size, and everything is done a shard at a time. In each round every process draws the
shards that are its own; then the first process compares all kept images with one another and names the rows whose
image repeats an earlier one, which the next round draws anew. When nothing is left to redo, shards are written in each
format, and the first process writes what is of the whole set.

Processes meet in the folder alone: a phase is over when its files are there. So they may run on any machines that share
the folder, and a run that was killed goes on where its files end, with the same or another number of processes, to the
same bytes. Memory does not grow with the number of rows.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.files import hold_folder, require_writable, write_atomic
from roentgen.processes import ALONE, Process
from roentgen.synthesis.card import add_tallies, tally, write_card
from roentgen.synthesis.draws import Drawn, DrawStore, Judge, Make, Tally, draw
from roentgen.synthesis.plan import Plan
from roentgen.synthesis.records import Record, SetInfo
from roentgen.synthesis.writers import FORMATS, SUMS, Writer, write_sums
from roentgen.synthesis.writers.parts import WORK

POLL = 0.2
"""Seconds between two looks for what other processes write."""
SLACK = 10.0
"""Seconds by which the processes of one run may start apart."""


class FindRepeats(Protocol):
    """Which of these images (slots rising, packed bits uint8 (n, 32) a block) repeat an earlier one that is kept."""

    def __call__(self, blocks: Iterable[tuple[Sequence[int], NDArray[np.uint8]]], scratch: Path, /) -> set[int]: ...


@dataclass(frozen=True)
class Outcome:
    """What the whole set came to: the counts of the card."""

    images: int
    counts: Mapping[str, Any]


def is_finished(out: Path) -> bool:
    """Whether a set is complete: its sums are written last."""
    return (out / SUMS).is_file()


def make_set(
    plan: Plan,
    info: SetInfo,
    out: Path,
    *,
    formats: Sequence[str],
    make: Make,
    judge: Judge,
    find_repeats: FindRepeats | None,
    who: Process = ALONE,
    on_image: Callable[[bool], object] = lambda kept: None,
    on_kept_shard: Callable[[int], object] = lambda rows: None,
) -> Outcome | None:
    """Make the set of ``plan`` in ``out``, going on from what is there.

    Args:
        plan: what to make.
        info: of the set.
        out: its folder.
        formats: names of ``writers.FORMATS``.
        make: gives images.
        judge: says which are kept.
        find_repeats: says which repeat others; None keeps all.
        who: this one of how many.
        on_image: called after each image that is drawn, with whether it was kept.
        on_kept_shard: called with the number of rows of each shard that an earlier run has drawn.

    Returns:
        What came of it, None in all processes but the first.

    Raises:
        UserError: nothing can come of it, nothing was kept, the disk is full, or another process failed.
    """
    work = out / WORK
    store = DrawStore(work / "draws")
    with hold_folder(_made(work / "ranks" / str(who.rank)), "--out"), _shared_failure(work, who):
        rounds = _draw_all(plan, store, work, make, judge, find_repeats, who, on_image, on_kept_shard)
        writers = [FORMATS[name](out, info) for name in formats]
        _write_all(plan, store, work, rounds, writers, who)
        if who.rank:
            return None
        shards = shard_count(plan)
        _wait(work, who, (partial(_is_there, _written(work, shard)) for shard in range(shards)))
        counts = _counts(plan, store, work, rounds)
        if not counts["images"]:
            worst = max(counts["rejected"], key=counts["rejected"].__getitem__, default="none")
            raise UserError(
                f"--filter: nothing was kept of {counts['drawn']} images, most were rejected by the stage {worst!r}; "
                "leave it out, or look at the images with `roentgen generate`"
            )
        for writer in writers:
            writer.finish(shards)
        write_card(out, info, counts)
        write_sums(out)
        shutil.rmtree(work)
    return Outcome(counts["images"], counts)


def shard_count(plan: Plan) -> int:
    """Number of shards of a plan."""
    return -(-len(plan) // plan.shard_size)


# ------------------------------------------------------------------------------------------------- drawing


def _draw_all(
    plan: Plan,
    store: DrawStore,
    work: Path,
    make: Make,
    judge: Judge,
    find_repeats: FindRepeats | None,
    who: Process,
    on_image: Callable[[bool], object],
    on_kept_shard: Callable[[int], object],
) -> int:
    """Draw every round to its end; the number of rounds."""
    shards = shard_count(plan)
    counted = Tally(plan.model)
    round = 0
    while True:
        for shard in who.own(shards):
            starts = _starts(plan, work, round, shard)
            if not starts:
                continue
            if not store.is_drawn(round, shard):
                made, data = draw(plan, starts, make=make, judge=judge, tally=counted, on_image=on_image)
                store.write(round, shard, made, data)
            elif round == 0:
                on_kept_shard(len(starts))
        verdict = _verdict_path(work, round)
        if who.rank == 0 and not verdict.exists():
            redone = (shard for shard in range(shards) if _starts(plan, work, round, shard))
            _wait(work, who, (partial(store.has, round, shard) for shard in redone))
            repeats = set() if find_repeats is None else _repeats(plan, store, work, round, find_repeats)
            write_atomic(verdict, json.dumps(_verdict(plan, store, work, round, repeats)).encode())
        _wait(work, who, [verdict.exists])
        round += 1
        if not json.loads(verdict.read_bytes())["redo"]:
            return round


def _starts(plan: Plan, work: Path, round: int, shard: int) -> dict[int, int]:
    """Slot -> first attempt of what a round draws of a shard."""
    first = shard * plan.shard_size
    slots = range(first, min(first + plan.shard_size, len(plan)))
    if round == 0:
        return dict.fromkeys(slots, 0)
    redo = json.loads(_verdict_path(work, round - 1).read_bytes())["redo"]
    return {int(slot): attempt for slot, attempt in redo.items() if int(slot) in slots}


def _verdict_path(work: Path, round: int) -> Path:
    return work / "draws" / f"round-{round}.json"


def _verdict(plan: Plan, store: DrawStore, work: Path, round: int, repeats: set[int]) -> dict[str, Any]:
    """Rows whose image repeats another: their next attempt, or none where the tries are used up."""
    redo: dict[str, int] = {}
    gone: list[int] = []
    for shard in sorted({slot // plan.shard_size for slot in repeats}):
        for _, drawn in _current(plan, store, work, shard, round):
            if drawn.slot in repeats:
                if drawn.attempt + 1 < plan.max_tries:
                    redo[str(drawn.slot)] = drawn.attempt + 1
                else:
                    gone.append(drawn.slot)
    return {"redo": redo, "gone": gone}


def _current(plan: Plan, store: DrawStore, work: Path, shard: int, last: int) -> list[tuple[int, Drawn]]:
    """Rows of a shard that have an image after round ``last``, each with the round it is from, slots rising.

    What the verdicts before ``last`` took back is out; what round ``last`` drew is in.
    """
    rows: dict[int, tuple[int, Drawn]] = {}
    for round in range(last + 1):
        for drawn in store.read(round, shard).rows:
            rows[drawn.slot] = round, drawn
        if round < last:
            verdict = json.loads(_verdict_path(work, round).read_bytes())
            for slot in [*map(int, verdict["redo"]), *verdict["gone"]]:
                rows.pop(slot, None)
    return [rows[slot] for slot in sorted(rows) if rows[slot][1].kept]


def _repeats(plan: Plan, store: DrawStore, work: Path, round: int, find_repeats: FindRepeats) -> set[int]:
    def blocks() -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
        for shard in range(shard_count(plan)):
            kept = [drawn for _, drawn in _current(plan, store, work, shard, round)]
            if kept:
                bits = np.frombuffer(bytes.fromhex("".join(drawn.bits for drawn in kept)), np.uint8)
                yield [drawn.slot for drawn in kept], bits.reshape(len(kept), -1)

    return find_repeats(blocks(), work / "scratch")


# ------------------------------------------------------------------------------------------------- writing


def _write_all(plan: Plan, store: DrawStore, work: Path, rounds: int, writers: Sequence[Writer], who: Process) -> None:
    """Write this process's shards in every format; a shard that is whole already is left as it is."""
    for shard in who.own(shard_count(plan)):
        lacking = [writer for writer in writers if not writer.is_written(shard)]
        records: list[Record] = []
        if lacking or not _written(work, shard).exists():
            records = store.records(plan, shard, _kept(plan, store, work, shard, rounds))
        for writer in lacking:
            writer.write_shard(shard, records)
        if not _written(work, shard).exists():
            write_atomic(_written(work, shard), json.dumps(tally(records)).encode())


def _written(work: Path, shard: int) -> Path:
    """The file that says a shard is written in every format; it holds the shard's counts."""
    return work / "written" / f"{shard:06d}.json"


def _kept(plan: Plan, store: DrawStore, work: Path, shard: int, rounds: int) -> list[tuple[int, Drawn]]:
    """Rows of the finished set: after the last round, without those that repeat others and have no tries left."""
    gone = set(json.loads(_verdict_path(work, rounds - 1).read_bytes())["gone"])
    return [(round, drawn) for round, drawn in _current(plan, store, work, shard, rounds - 1) if drawn.slot not in gone]


def _counts(plan: Plan, store: DrawStore, work: Path, rounds: int) -> dict[str, Any]:
    """Counts of the card, summed a shard at a time."""
    shards = shard_count(plan)
    found = add_tallies(json.loads(_written(work, shard).read_bytes()) for shard in range(shards))
    rejected: Counter[str] = Counter()
    drawn = 0
    for round in range(rounds):
        for shard in range(shards):
            for row in store.read(round, shard).rows:
                rejected.update(row.rejected)
                drawn += len(row.rejected) + row.kept
        verdict = json.loads(_verdict_path(work, round).read_bytes())
        if repeats := len(verdict["redo"]) + len(verdict["gone"]):
            rejected["repeats"] += repeats
    asked = plan.counts()
    missing = {name: count - found["groups"].get(name, 0) for name, count in asked.items()}
    return {
        **found,
        "asked": asked,
        "drawn": drawn,
        "rejected": dict(rejected),
        "shortfalls": {name: count for name, count in missing.items() if count},
    }


# ---------------------------------------------------------------------------------------- other processes


def _made(folder: Path) -> Path:
    """``folder``, which now exists, with the time of its last file set to now: when this process began."""
    require_writable(folder, "--out")
    return folder


def _is_there(path: Path) -> bool:
    return path.exists()


def _wait(work: Path, who: Process, conditions: Iterable[Callable[[], bool]]) -> None:
    """Until each condition holds; UserError if another process fails meanwhile."""
    # By the clock of the disk that all share. A note from before is of an earlier run, whose process is back by now.
    began = (work / "ranks" / str(who.rank)).stat().st_mtime
    for holds in conditions:
        while not holds():
            for note in sorted((work / "failed").glob("*")):
                with contextlib.suppress(FileNotFoundError):  # its process is back
                    if note.stat().st_mtime > began - SLACK:
                        raise UserError(f"process {note.name} failed: {note.read_text(encoding='utf-8')}")
            time.sleep(POLL)


@contextlib.contextmanager
def _shared_failure(work: Path, who: Process) -> Iterator[None]:
    """What ends this process early is told to the others, which else would wait for it."""
    note = work / "failed" / str(who.rank)
    note.unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        if who.world > 1:
            with contextlib.suppress(UserError):  # a full disk: the first error is the one to report
                write_atomic(note, (str(error) or type(error).__name__).encode())
        raise


def say_shortfalls(counts: Mapping[str, Any], max_tries: int) -> None:
    """On stderr, what the plan asks for and the set has not, by group."""
    for name, count in counts["shortfalls"].items():
        asked = counts["asked"][name]
        print(
            f"roentgen: warning: {name}: {asked - count} of {asked} images; the filter rejected {max_tries} tries each "
            f"of the others (more with --max-tries)",
            file=sys.stderr,
        )
