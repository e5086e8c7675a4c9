"""roentgen.synthesis.engine with a stand-in for the model: the same set whatever happens on the way."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roentgen.devices import PeerLost, Process
from roentgen.errors import UserError
from roentgen.folders import hold_folder
from roentgen.generators.base import Sample
from roentgen.images import read_image, read_provenance
from roentgen.metrics.diversity.repeats import difference_hash
from roentgen.prompts import Labels
from roentgen.synthesis.engine import is_finished, make_set, say_shortfalls
from roentgen.synthesis.filters import Verdict, load_filter
from roentgen.synthesis.plan import Plan
from roentgen.synthesis.sources import resolve_plan
from roentgen.synthesis.writers.parts import SetInfo

MARKS = {
    **{"model": "stand-in", "model_hash": "0" * 16, "sampler": "ddim", "steps": "2", "guidance": "1"},
    **{"version": "0", "software": "roentgen", "synthetic": "true"},
}
FORMATS = ("folder", "webdataset")


def picture(prompt: str, seed: int) -> np.ndarray:
    """Noise that depends on prompt and seed; no two are alike."""
    own = int.from_bytes(hashlib.sha256(f"{prompt} {seed}".encode()).digest()[:8])
    return np.random.default_rng(own).integers(0, 256, (16, 16)).astype(np.uint8)


def make(prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Sample]:
    for prompt, seed in zip(prompts, seeds, strict=True):
        yield Sample(picture(prompt, seed), prompt, seed, 0, {"prompt": prompt, "seed": str(seed), **MARKS})


@dataclass
class Choosy:
    """Rejects by the first pixel: about a third of all images, always the same."""

    below: int = 85
    judged: int = 0

    def judge(self, images: np.ndarray, labels: Sequence[Labels]) -> list[Verdict]:
        self.judged += len(images)
        return [Verdict("prompt" if i[0, 0] < self.below else "", {"prompt": float(i[0, 0])}) for i in images]


@dataclass
class SameCorner:
    """Calls images repeats whose first four bits are those of an earlier one that is kept."""

    bits: int = 4
    seen: list[int] = field(default_factory=list)

    def __call__(self, blocks: Iterable[tuple[Sequence[int], np.ndarray]], scratch: Path, /) -> set[int]:
        known: set[int] = set()
        found: set[int] = set()
        for slots, packed in blocks:
            for slot, row in zip(slots, packed, strict=True):
                start = int(row[0]) >> (8 - self.bits)
                if start in known:
                    found.add(slot)
                known.add(start)
        self.seen.append(len(found))
        return found


@pytest.fixture
def plan() -> Plan:
    return resolve_plan(per_finding=3, findings="Effusion,Edema,Mass", shard_size=2, max_tries=20)


def run(plan: Plan, out: Path, **options: Any) -> dict[str, Any] | None:
    info = SetInfo("test", len(plan), plan.findings, {"name": "stand-in", "hash": "0" * 16}, plan.as_dict(), None, "x")
    usual: dict[str, Any] = {"formats": FORMATS, "make": make, "judge": Choosy(), "find_repeats": SameCorner()}
    return make_set(plan, info, out, **usual | options)


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a set."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def whole(plan: Plan, tmp_path: Path) -> dict[str, str]:
    """The files of an unbroken run."""
    outcome = run(plan, tmp_path / "whole")
    assert outcome is not None and outcome["images"] == 9 and is_finished(tmp_path / "whole")
    found = tree(tmp_path / "whole")
    assert not any(name.startswith(".work") for name in found)
    return found


def test_the_set_is_what_was_asked_for(plan: Plan, tmp_path: Path) -> None:
    judge, repeats = Choosy(), SameCorner()
    outcome = run(plan, tmp_path, judge=judge, find_repeats=repeats)
    assert outcome is not None
    counts = outcome
    assert counts["drawn"] == judge.judged > 9  # some were rejected, so the test sees second tries
    assert repeats.seen[0] > 0 and len(repeats.seen) > 1  # ... and second rounds
    assert counts["drawn"] == 9 + counts["rejected"]["prompt"] + counts["rejected"]["repeats"]
    assert counts["shortfalls"] == {}
    with (tmp_path / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["slot"]) for row in rows] == list(range(9))
    kept = []
    for row in rows:
        image = read_image(tmp_path / row["image"])
        assert (image == picture(row["text"], int(row["seed"]))).all()
        assert image[0, 0] >= 85 and json.loads(row["scores"]) == {"prompt": float(image[0, 0])}
        assert int(row["seed"]) == plan.seed_of(int(row["slot"]), int(row["attempt"]))
        marks = read_provenance(tmp_path / row["image"])
        assert (marks["prompt"], marks["seed"], marks["synthetic"]) == (row["text"], row["seed"], "true")
        kept.append(image)
    # Every earlier attempt was rejected, by the filter or as a repeat: no image is thrown away for nothing.
    starts = [tuple(bits[:4]) for bits in difference_hash(kept)]
    assert len(set(starts)) == 9


class Stop(BaseException):
    """As a kill: nothing may catch it and tidy up."""


def test_killed_before_any_file_appears_and_started_again(
    plan: Plan, tmp_path: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file appears by a rename: every place to be killed at lies between two of them."""
    replace = Path.replace
    left, count = [0], [0]

    def dying(self: Path, target: Any) -> Path:
        count[0] += 1
        left[0] -= 1
        if left[0] == 0:
            raise Stop
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    run(plan, tmp_path / "count")
    assert count[0] > 40
    for place in range(1, count[0] + 1):
        out = tmp_path / "broken"
        left[0] = place
        with pytest.raises(Stop):
            run(plan, out)
        assert not is_finished(out)
        left[0] = 0
        run(plan, out)
        assert tree(out) == whole, f"killed before rename {place}"
        shutil.rmtree(out)


def test_killed_again_and_again(
    plan: Plan, tmp_path: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace
    left = [0]

    def dying(self: Path, target: Any) -> Path:
        left[0] -= 1
        if left[0] == 0:
            raise Stop
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    kills = 0
    while not is_finished(tmp_path / "broken"):
        left[0] = 10  # nine files get through each time; the tables at the end are written in one go
        try:
            run(plan, tmp_path / "broken")
        except Stop:
            kills += 1
        assert kills < 100
    assert kills >= 3
    assert tree(tmp_path / "broken") == whole


def test_work_that_is_done_is_not_done_again(plan: Plan, tmp_path: Path) -> None:
    drawn = [0]

    def counting(prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Sample]:
        for sample in make(prompts, seeds):
            drawn[0] += 1
            if drawn[0] == 7:
                raise Stop
            yield sample

    with pytest.raises(Stop):
        run(plan, tmp_path, make=counting)
    kept: list[int] = []
    judge = Choosy()
    run(plan, tmp_path, judge=judge, on_kept_shard=kept.append)
    assert kept and judge.judged + 7 < run_count(plan, tmp_path.with_name("fresh")) + 7


def run_count(plan: Plan, out: Path) -> int:
    judge = Choosy()
    run(plan, out, judge=judge)
    return judge.judged


@pytest.mark.parametrize("world", [2, 3, 7])
def test_several_processes_make_the_set_of_one(plan: Plan, tmp_path: Path, whole: dict[str, str], world: int) -> None:
    outcomes = together(world, lambda rank, **who: run(plan, tmp_path / "many", **who))
    assert [outcome is not None for outcome in outcomes] == [True] + [False] * (world - 1)
    assert tree(tmp_path / "many") == whole


def test_another_number_of_processes_goes_on(plan: Plan, tmp_path: Path, whole: dict[str, str]) -> None:
    def dying(prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Sample]:
        raise Stop
        yield

    makers = [make, dying, make]
    outcomes = together(3, lambda rank, **who: run(plan, tmp_path / "many", make=makers[rank], **who))
    assert isinstance(outcomes[1], Stop) and not is_finished(tmp_path / "many")
    together(2, lambda rank, **who: run(plan, tmp_path / "many", **who))
    assert tree(tmp_path / "many") == whole


def test_a_process_that_fails_is_told_to_the_others(plan: Plan, tmp_path: Path) -> None:
    def failing(prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Sample]:
        raise UserError("the model is ill; mend it")
        yield

    makers = [make, failing]
    errors = together(2, lambda rank, **who: run(plan, tmp_path, make=makers[rank], **who))
    assert str(errors[1]) == "the model is ill; mend it"
    assert str(errors[0]) == "process 1 failed: the model is ill; mend it"


def together(world: int, call: Callable[..., Any]) -> list[Any]:
    """Results, or what was raised, of ``call(rank, who=, wait=)`` in ``world`` threads in place of processes."""
    barrier = threading.Barrier(world)

    def wait() -> None:
        try:
            barrier.wait(timeout=120)
        except threading.BrokenBarrierError:
            raise PeerLost("a thread has ended") from None

    results: list[Any] = [None] * world

    def one(rank: int) -> None:
        try:
            results[rank] = call(rank, who=Process(rank, world), wait=wait)
        except BaseException as error:
            results[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    return results


def test_two_runs_into_one_folder(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    with hold_folder(tmp_path / ".work", "--out"), pytest.raises(UserError, match="another run"):
        run(plan, tmp_path)


def stopped_before_the_card(plan: Plan, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed when all shards were written."""

    def dying(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("roentgen.synthesis.engine.write_card", dying)
        run(plan, out)


@pytest.mark.parametrize("harm", ["cut", "flip", "gone"])
def test_a_damaged_draw_or_shard_is_made_again(
    plan: Plan, tmp_path: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any, harm: str
) -> None:
    out = tmp_path / "out"
    stopped_before_the_card(plan, out, monkeypatch)
    damaged = [
        *(out / ".work" / "draws" / "round-0").glob("000001.png"),
        *(out / "webdataset").glob("*-000002.tar"),
        *(out / ".work" / "draws" / "round-0").glob("000003.json"),
        *(out / ".work" / "draws").glob("round-0.json"),
        *(out / ".work" / "written").glob("000002.json"),
        *(out / ".work" / "parts").glob("*/000004.json"),
        *out.glob("plan.parquet"),
        *(out / "images").rglob("*00000003.png"),
    ]
    assert len(damaged) == 9
    for path in damaged:
        data = path.read_bytes()
        if harm == "gone":
            path.unlink()
        else:
            path.write_bytes(data[:-20] if harm == "cut" else data[:30] + bytes([data[30] ^ 1]) + data[31:])
    run(plan, out)
    assert tree(out) == whole
    assert ("damaged" in capsys.readouterr().err) == (harm != "gone")


def test_a_lost_draw_is_no_rejected_image(plan: Plan, tmp_path: Path, whole: dict[str, str]) -> None:
    def losing(blocks: Any, scratch: Path) -> set[int]:
        for _ in blocks:
            pass
        (tmp_path / "out" / ".work" / "draws" / "round-0" / "000002.json").unlink()
        return set()

    with pytest.raises(UserError, match=r"000002\.json is lost or damaged; run the same command again"):
        run(plan, tmp_path / "out", find_repeats=losing)
    shutil.rmtree(tmp_path / "out" / ".work" / "parts")
    (tmp_path / "out" / ".work" / "draws" / "round-0.json").unlink()
    run(plan, tmp_path / "out")
    assert tree(tmp_path / "out") == whole


def test_a_disk_that_fills_up_loses_nothing(
    plan: Plan, tmp_path: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, left = os.fsync, [12]

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="no space left on the disk; free some"):
        patch.setattr("os.fsync", full)
        run(plan, tmp_path / "out")
    kept: list[int] = []
    run(plan, tmp_path / "out", on_kept_shard=kept.append)
    assert kept
    assert tree(tmp_path / "out") == whole


def test_shortfalls_are_told_by_group(tmp_path: Path, capsys: Any) -> None:
    plan = resolve_plan(per_finding=4, findings="Effusion,Edema", shard_size=3, max_tries=2)

    class NoEdema:
        def judge(self, images: np.ndarray, labels: Sequence[Labels]) -> list[Verdict]:
            return [Verdict("prompt" if "Edema" in label.findings else "") for label in labels]

    outcome = run(plan, tmp_path, judge=NoEdema(), find_repeats=None)
    assert outcome is not None and outcome["images"] == 4
    assert outcome["drawn"] == 4 + 4 * 2
    assert outcome["shortfalls"] == {"Edema": 4} and outcome["asked"]["Edema"] == 4
    card = (tmp_path / "README.md").read_text()
    assert "**Short of the plan**" in card and "| Edema | 4 |" in card
    say_shortfalls(outcome, plan.max_tries)
    assert "Edema: 0 of 4 images; the filter rejected 2 tries" in capsys.readouterr().err


def test_repeats_without_tries_left_are_out(tmp_path: Path) -> None:
    plan = resolve_plan(per_finding=3, findings="Effusion,Edema", shard_size=4, max_tries=2)
    outcome = run(plan, tmp_path, judge=Choosy(0), find_repeats=SameCorner(bits=1))  # only two can be kept
    assert outcome is not None and outcome["images"] == 2
    assert outcome["rejected"]["repeats"] == outcome["drawn"] - 2


def test_every_image_that_was_drawn_is_kept_or_counted_once_as_rejected(tmp_path: Path) -> None:
    plan = resolve_plan(per_finding=8, findings="Effusion,Edema", shard_size=4, max_tries=3)
    repeats = SameCorner(bits=2)  # some have no tries left in the first round already, others in later ones
    outcome = run(plan, tmp_path, judge=Choosy(110), find_repeats=repeats)
    assert outcome is not None and len(repeats.seen) > 1
    assert outcome["drawn"] == outcome["images"] + sum(outcome["rejected"].values())


def test_a_filter_that_rejects_all_stops_early(tmp_path: Path) -> None:
    plan = resolve_plan(per_finding=200, findings="Effusion", shard_size=50)
    judge = Choosy(below=256)
    with pytest.raises(UserError, match=r"all of the first \d+ images were rejected, \d+ of them by the stage 'prom"):
        run(plan, tmp_path, judge=judge)
    assert 64 <= judge.judged < 400
    assert not is_finished(tmp_path)


def test_a_model_of_black_images_stops_early(tmp_path: Path) -> None:
    plan = resolve_plan(per_finding=200, findings="Effusion", shard_size=50)
    made = [0]

    def black(prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Sample]:
        for sample in make(prompts, seeds):
            made[0] += 1
            yield Sample(np.zeros((16, 16), np.uint8), sample.prompt, sample.seed, 0, sample.provenance)

    with pytest.raises(UserError, match="--model mini: all of its first 8 images are black or of one grey"):
        run(plan, tmp_path, judge=load_filter(()), make=black)
    assert made[0] <= 300


def test_a_filter_that_keeps_nothing_of_a_small_plan(tmp_path: Path) -> None:
    plan = resolve_plan(per_finding=1, findings="Effusion,Edema", max_tries=2)
    with pytest.raises(UserError, match="nothing was kept of 4 images, most were rejected by the stage 'prompt'"):
        run(plan, tmp_path, judge=Choosy(below=256))


def test_a_process_that_has_gone_is_noticed_by_those_that_wait() -> None:
    """Real processes, no launcher that would end the others."""
    code = (
        "import sys; from roentgen.devices import *\n"
        "who, _ = this_process('cpu')\n"
        "with meeting(who) as wait:\n"
        "    wait()\n"
        "    if who.rank: sys.exit(3)\n"
        "    try: wait()\n"
        "    except PeerLost as error: print('noticed:', error)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in ranks]
    assert "noticed: another process of this run has ended early" in said[0]
    assert ranks[1].returncode == 3
