"""From a plan to a finished data set: draw, compare with one another, write, finish.

The plan is written as a table first; from then on everything is done a shard, a row group of it, at a time. In each
round every process draws the shards that are its own; then the first process compares all kept images with one another
and names the rows whose image repeats an earlier one, which the next round draws anew. When nothing is left to redo,
shards are written in each format, and the first process writes what is of the whole set.

Between the phases processes wait for one another; what they have to tell lies in the set's folder, which all of them
see. So a run that was killed goes on where its files end, with the same or another number of processes, to the same
bytes. Memory does not grow with the number of rows.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from roentgen.devices import ALONE, PeerLost, Process
from roentgen.errors import UserError
from roentgen.files import file_sha256, require_writable, write_atomic
from roentgen.folders import hold_folder
from roentgen.synthesis.card import add_tallies, tally, write_card
from roentgen.synthesis.draws import Draw, Drawn, DrawStore, Judge, Make, Tally, draw
from roentgen.synthesis.plan import Plan, PlannedRows, Row, write_rows
from roentgen.synthesis.store import WORK, read_values, write_values
from roentgen.synthesis.writers import FORMATS, SUMS, check_sums, write_sums
from roentgen.synthesis.writers.parts import SetInfo, Writer

TABLE = "plan.parquet"
Shard = tuple[int, Mapping[int, Row], Mapping[int, int]]
"""Number of a shard, its rows by slot, and slot -> first attempt of what is to be drawn."""
Draws = Callable[[Iterable[Shard], Callable[[bool], object]], Iterator[tuple[int, Draw, bytes]]]
"""Draws shards, in any order; the second argument is called after each image, with whether it was kept."""


class FindRepeats(Protocol):
    """Which of these images (slots rising, packed bits uint8 (n, 32) a block) repeat an earlier one that is kept."""

    def __call__(self, blocks: Iterable[tuple[Sequence[int], NDArray[np.uint8]]], scratch: Path, /) -> set[int]: ...


def is_finished(out: Path) -> bool:
    """Whether a set is complete: its sums are written last. UserError where a file of a complete set is lost."""
    if not (out / SUMS).is_file():
        return False
    check_sums(out)
    return True


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
    wait: Callable[[], None] = lambda: None,
    on_image: Callable[[bool], object] = lambda kept: None,
    on_kept_shard: Callable[[int], object] = lambda rows: None,
    draws: Draws | None = None,
) -> dict[str, Any] | None:
    """Make the set of ``plan`` in ``out``, going on from what is there.

    Args:
        plan: what to make.
        info: of the set.
        out: its folder.
        formats: names of ``writers.FORMATS``.
        make: gives images.
        judge: says which are kept.
        find_repeats: says which repeat others; None keeps all.
        who: this one of how many processes.
        wait: a barrier among them; ``devices.PeerLost`` where one has gone.
        on_image: called after each image that is drawn, with whether it was kept.
        on_kept_shard: called with the number of rows of each shard that an earlier run has drawn.
        draws: draws shards elsewhere; None draws them here with ``make`` and ``judge``.

    Returns:
        What came of it, the counts of the card; None in all processes but the first.

    Raises:
        UserError: nothing can come of it, nothing was kept, the disk is full, or another process failed.
    """
    work = out / WORK
    if who.rank == 0:
        require_writable(work, "--out")
    with hold_folder(work, "--out") if who.rank == 0 else contextlib.nullcontext(), _shared_failure(work, who):
        if who.rank == 0:
            _write_plan(plan, out)
        wait()
        shards = _Shards(plan, PlannedRows(out / TABLE), DrawStore(work / "draws"), work)
        counted = Tally(plan.model)

        def here(jobs: Iterable[Shard], say: Callable[[bool], object]) -> Iterator[tuple[int, Draw, bytes]]:
            for shard, rows, starts in jobs:
                yield shard, *draw(plan, rows, starts, make=make, judge=judge, tally=counted, on_image=say)

        round, again = 0, True
        while again:
            todo = []
            for shard in who.own(len(shards)):
                starts = shards.starts(round, shard)
                if starts and not shards.store.is_drawn(round, shard):
                    todo.append((shard, starts))
                elif starts and round == 0:
                    on_kept_shard(len(starts))
            jobs = ((shard, shards.rows.shard(shard), starts) for shard, starts in todo)
            for shard, made, data in (draws or here)(jobs, on_image):
                shards.store.write(round, shard, made, data)
            wait()
            if who.rank == 0:
                shards.settle(round, find_repeats)
            wait()
            again = bool(shards.verdict(round)["redo"])
            round += 1
        writers = [FORMATS[name](out, info) for name in formats]
        for shard in who.own(len(shards)):
            shards.write(shard, writers, round)
        wait()
        return None if who.rank else _finish(shards, info, out, writers, round)


def _write_plan(plan: Plan, out: Path) -> None:
    """The plan's table, again where it is not what was written."""
    seal = out / WORK / "plan.json"
    if not (out / TABLE).is_file() or read_values(seal) != [plan.hash, file_sha256(out / TABLE)]:
        write_rows(plan, out / TABLE, scratch=out / WORK / "scratch")
        write_values(seal, [plan.hash, file_sha256(out / TABLE)], scratch=out / WORK / "scratch")


def _finish(shards: _Shards, info: SetInfo, out: Path, writers: Sequence[Writer], rounds: int) -> dict[str, Any]:
    counts = shards.counts(rounds)
    if not counts["images"]:
        worst = max(counts["rejected"], key=counts["rejected"].__getitem__, default="none")
        raise UserError(
            f"--filter: nothing was kept of {counts['drawn']} images, most were rejected by the stage {worst!r}; "
            "leave it out, or look at the images with `roentgen generate`"
        )
    for writer in writers:
        writer.finish(len(shards))
    write_card(out, info, counts)
    write_sums(out)
    shutil.rmtree(out / WORK)
    return counts


@dataclass(frozen=True)
class _Shards:
    """The shards of an unfinished set: what each round draws of them, and what has become of it."""

    plan: Plan
    rows: PlannedRows
    store: DrawStore
    work: Path

    def __len__(self) -> int:
        return -(-len(self.plan) // self.plan.shard_size)

    def starts(self, round: int, shard: int) -> dict[int, int]:
        """Slot -> first attempt of what a round draws of a shard."""
        first = shard * self.plan.shard_size
        slots = range(first, min(first + self.plan.shard_size, len(self.plan)))
        if round == 0:
            return dict.fromkeys(slots, 0)
        return {int(slot): attempt for slot, attempt in self.verdict(round - 1)["redo"].items() if int(slot) in slots}

    def settle(self, round: int, find_repeats: FindRepeats | None) -> None:
        """Write the verdict on a round that every process has drawn.

        Rows whose image repeats another: ``redo`` with their next attempt, ``gone`` where the tries are used up.
        """
        if read_values(self._verdict_path(round)) is not None:
            return
        repeats = set() if find_repeats is None else find_repeats(self._hashes(round), self.work / "scratch")
        redo: dict[str, int] = {}
        gone: list[int] = []
        for shard in sorted({slot // self.plan.shard_size for slot in repeats}):
            for _, drawn in self.current(shard, round):
                if drawn.slot in repeats and drawn.attempt + 1 < self.plan.max_tries:
                    redo[str(drawn.slot)] = drawn.attempt + 1
                elif drawn.slot in repeats:
                    gone.append(drawn.slot)
        write_values(self._verdict_path(round), {"redo": redo, "gone": gone}, scratch=self.work / "scratch")

    def verdict(self, round: int) -> Mapping[str, Any]:
        """What ``settle`` wrote."""
        found: Mapping[str, Any] = read_values(self._verdict_path(round), needed=True)
        return found

    def current(self, shard: int, last: int) -> list[tuple[int, Drawn]]:
        """Rows of a shard that have an image after round ``last``, each with the round it is from, slots rising.

        What the verdicts before ``last`` took back is out; what round ``last`` drew is in.
        """
        rows: dict[int, tuple[int, Drawn]] = {}
        for round in range(last + 1):
            if self.starts(round, shard):
                rows |= {drawn.slot: (round, drawn) for drawn in self.store.read(round, shard).rows}
            if round < last:
                verdict = self.verdict(round)
                for slot in [*map(int, verdict["redo"]), *verdict["gone"]]:
                    rows.pop(slot, None)
        return [rows[slot] for slot in sorted(rows) if rows[slot][1].kept]

    def write(self, shard: int, writers: Sequence[Writer], rounds: int) -> None:
        """Write a shard in every format; what is whole already is left as it is."""
        lacking = [writer for writer in writers if not writer.is_written(shard)]
        if not lacking and read_values(self._written_path(shard)) is not None:
            return
        gone = set(self.verdict(rounds - 1)["gone"])
        kept = [(round, drawn) for round, drawn in self.current(shard, rounds - 1) if drawn.slot not in gone]
        records = self.store.records(self.plan, self.rows.shard(shard), shard, kept)
        for writer in lacking:
            writer.write_shard(shard, records)
        write_values(self._written_path(shard), tally(records), scratch=self.work / "scratch")

    def counts(self, rounds: int) -> dict[str, Any]:
        """Counts of the card, summed a shard at a time."""
        found = add_tallies(read_values(self._written_path(shard), needed=True) for shard in range(len(self)))
        rejected: Counter[str] = Counter()
        drawn = 0
        for round in range(rounds):
            for shard in range(len(self)):
                for row in self.store.read(round, shard).rows if self.starts(round, shard) else ():
                    rejected.update(row.rejected)
                    drawn += len(row.rejected) + row.kept
            if repeats := len(self.verdict(round)["redo"]) + len(self.verdict(round)["gone"]):
                rejected["repeats"] += repeats
        asked = self.plan.counts()
        missing = {name: count - found["groups"].get(name, 0) for name, count in asked.items()}
        return {
            **found,
            "asked": asked,
            "drawn": drawn,
            "rejected": dict(rejected),
            "shortfalls": {name: count for name, count in missing.items() if count},
        }

    def _hashes(self, round: int) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
        for shard in range(len(self)):
            kept = [drawn for _, drawn in self.current(shard, round)]
            if kept:
                bits = np.frombuffer(bytes.fromhex("".join(drawn.bits for drawn in kept)), np.uint8)
                yield [drawn.slot for drawn in kept], bits.reshape(len(kept), -1)

    def _verdict_path(self, round: int) -> Path:
        return self.work / "draws" / f"round-{round}.json"

    def _written_path(self, shard: int) -> Path:
        """Says that a shard is written in every format; holds its counts."""
        return self.work / "written" / f"{shard:06d}.json"


# ---------------------------------------------------------------------------------------- other processes


@contextlib.contextmanager
def _shared_failure(work: Path, who: Process) -> Iterator[None]:
    """What ends this process early is told to the others, whose barrier breaks by it."""
    notes = work / "failed"
    for note in notes.glob("*"):  # of an earlier run, perhaps of more processes
        if int(note.name) == who.rank or (who.rank == 0 and int(note.name) >= who.world):
            note.unlink(missing_ok=True)
    try:
        yield
    except PeerLost:
        for note in sorted(notes.glob("*")):
            raise UserError(f"process {note.name} failed: {note.read_text(encoding='utf-8')}") from None
        raise
    except BaseException as error:
        if who.world > 1:
            with contextlib.suppress(UserError):  # a full disk: the first error is the one to report
                write_atomic(notes / str(who.rank), (str(error) or type(error).__name__).encode())
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
