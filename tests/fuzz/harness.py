"""The loop over inputs, their counts, and the command line."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from . import recipes, sweep
from . import world as worlds
from .case import Case
from .cases import KINDS
from .limits import BYTES, SECONDS, Outcome, as_new, run


def one(world: worlds.World, seed: int, number: int, changes: Sequence[sweep.Change] = ()) -> tuple[Case, Outcome, str]:
    """Input ``number`` of ``seed``, or of ``changes`` where there are any: what it is, what it came to, and what is
    wrong with that ("" is nothing)."""
    rng = Random(f"{seed}-{number}")
    kind = rng.choices([kind for kind, _ in KINDS], [share for _, share in KINDS])[0]
    folder = world.scratch(number)
    with contextlib.chdir(folder):
        case = sweep.case(world, folder, changes[number]) if changes else kind(world, folder, rng)
        outcome = run(case.call or (lambda: _call(case.words)), prog="roentgen")
        wrong = judge(case, outcome)
    shutil.rmtree(folder, ignore_errors=True)
    return case, outcome, wrong


def _call(words: list[str]) -> int:
    from roentgen import cli

    as_new()
    if words[0].endswith(".py"):
        made: int = recipes.script(words[0]).main(words[1:])
        return made
    return cli.main(words)


def judge(case: Case, outcome: Outcome) -> str:
    """What is wrong with an outcome, or nothing."""
    if outcome.problem:
        return f"{outcome.problem} at {outcome.where}"
    refusals = [line for line in outcome.err.splitlines() if ": error: " in line]
    if outcome.code == 2:
        if len(refusals) != 1:
            return f"exit code 2 with {len(refusals)} lines of error"
        if len(refusals[0]) > 3000 or "<class" in refusals[0] or "object at 0x" in refusals[0]:
            return f"not a sentence for people: {refusals[0][:300]}"
        return worlds_left(case)
    if outcome.code not in ((0, 1) if case.command == "data check" else (0,)):
        return f"exit code {outcome.code}"
    if case.refused and outcome.code == 0 and "usage:" not in outcome.out:
        return "exit code 0, but the input must be refused"
    if outcome.code == 0 or case.command == "data check":
        return case.check(outcome)
    return ""


def worlds_left(case: Case) -> str:
    """A refusal leaves nothing half written."""
    from .checks import leftovers

    return leftovers(Path.cwd())


@contextlib.contextmanager
def prepared(folder: Path | None = None) -> Iterator[worlds.World]:
    """The world, in a temporary folder or in ``folder``, where it may be already."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="roentgen-fuzz-")) if folder is None else folder.resolve()
    old = dict(os.environ)
    os.environ |= {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "HOME": str(root / "home")}
    os.environ |= {"HF_HOME": str(root / "hub"), "TOKENIZERS_PARALLELISM": "false"}
    try:
        if not (root / "whole").is_file():
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
            (root / "home").mkdir()
            worlds.build(root)
            (root / "whole").touch()
        yield worlds.World(root)
    finally:
        os.environ.clear()
        os.environ.update(old)
        if folder is None:
            shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def terminated() -> Iterator[list[int]]:
    """A list that SIGTERM fills; ``errors.run`` leaves a handler of others alone, so no input takes the signal."""
    asked: list[int] = []
    old = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, old)


def main(argv: list[str] | None = None) -> int:
    """Run inputs; 1 where any is a finding."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, help="2000 inputs, or all of --sweep, where it is not said")
    parser.add_argument("--sweep", action="store_true", help="every value of every JSON file in turn; no seed")
    parser.add_argument("--every", type=int, default=1, help="of --sweep, this many apart")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat this input and show all of it")
    parser.add_argument("--json", type=Path, help="file of the counts; counts of other inputs of the seed are added to")
    parser.add_argument("--world", type=Path, help="folder for the files that inputs start from, kept")
    parser.add_argument("--update", type=Path, help="document whose table is made from --json; runs nothing")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many")
    options = parser.parse_args(argv)
    if options.update is not None:
        from roentgen.metrics.report.tables import fill

        result = json.loads(options.json.read_text())
        fill(options.update, {"fuzz" if result["seed"] is not None else "fuzz-sweep": table(result)})
        return 0
    began, processor = time.monotonic(), time.process_time()
    tallies: Counter[tuple[str, str, str]] = Counter()
    findings: list[dict[str, Any]] = []
    done = 0
    times: Counter[str] = Counter()
    with prepared(options.world) as world, terminated() as asked:
        changes = [*sweep.changes(world)][:: options.every] if options.sweep else []
        count = options.inputs or len(changes) or 2000
        numbers = range(options.first, options.first + count) if options.only is None else [options.only]
        for number in numbers:
            case, outcome, wrong = one(world, options.seed, number, changes)
            done += 1
            times[case.kind] += outcome.seconds
            came = "finding" if wrong else {0: "done", 1: "errors listed"}.get(outcome.code or 0, "refused")
            tallies[case.command, case.kind, came] += 1
            if wrong or options.only is not None:
                said = {"input": number, "wrong": wrong, "command": case.command, "what": case.what}
                findings.append({**said, "words": [word[:200] for word in case.words]})
                print(json.dumps(findings[-1]), flush=True)
            if options.only is not None:
                print(outcome, case.refused)
            if outcome.seconds > SECONDS / 4:
                print(f"input {number}: {outcome.seconds:.1f} s: {case.words}"[:400], flush=True)
            if done % 100 == 0:
                print(f"{done} inputs, {time.process_time() - processor:.0f} s", file=sys.stderr, flush=True)
            if asked or time.monotonic() - began > options.seconds:
                break
    used = time.process_time() - processor
    print({kind: round(seconds, 1) for kind, seconds in times.most_common()}, file=sys.stderr)
    which = "--sweep" if options.sweep else f"--seed {options.seed}"
    print(f"inputs {options.first} to {options.first + done - 1} of {which}: {len(findings)} findings, "
          f"{used:.0f} s of the processor")  # fmt: skip
    if options.json is not None:
        seed = None if options.sweep else options.seed
        write_counts(options.json, seed, options.first, done, tallies, findings, used, every=options.every)
    return 1 if findings and options.only is None else 0


def write_counts(
    path: Path, seed: int | None, first: int, done: int, tallies: Counter[tuple[str, str, str]],
    findings: list[dict[str, Any]], seconds: float, *, every: int = 1,
) -> None:  # fmt: skip
    """Add to the counts of a seed, or of the sweep (None), or begin them."""
    from roentgen.provenance import ROOT, git_state, versions

    old = json.loads(path.read_text()) if path.is_file() else {}
    if old.get("seed") != seed or old.get("next") != first:
        old = {}
    words = f"--seed {seed}" if seed is not None else "--sweep" + (f" --every {every}" if every > 1 else "")
    counts = Counter({(row["command"], row["kind"], row["came_to"]): row["inputs"] for row in old.get("counts", ())})
    counts.update(tallies)
    result = {
        "command": f"python tests/fuzz {words} --inputs {old.get('inputs', 0) + done}",
        "seed": seed,
        "inputs": old.get("inputs", 0) + done,
        "next": first + done,
        "limits": {"seconds": SECONDS, "bytes": BYTES},
        "findings": [*old.get("findings", ()), *findings],
        "counts": [
            {"command": command, "kind": kind, "came_to": came, "inputs": count}
            for (command, kind, came), count in sorted(counts.items())
        ],
        "processor_seconds": round(old.get("processor_seconds", 0) + seconds),
        "git": git_state(ROOT),
        "versions": versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def table(result: dict[str, Any]) -> str:
    """The counts of a result file by command, as Markdown, under a line that says what they are."""
    from roentgen.metrics.report.tables import table as markdown

    came = ("refused", "errors listed", "done", "finding")
    counts: dict[str, Counter[str]] = {}
    for row in result["counts"]:
        counts.setdefault(row["command"], Counter())[row["came_to"]] += row["inputs"]
    rows = [[f"`{name}`", *(f"{found[each]:,}" for each in came), f"{found.total():,}"]
            for name, found in sorted(counts.items())]  # fmt: skip
    total = sum(counts.values(), Counter())
    rows.append(["all", *(f"{total[each]:,}" for each in came), f"{total.total():,}"])
    kinds: Counter[str] = Counter()
    for row in result["counts"]:
        kinds[row["kind"]] += row["inputs"]
    said = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
    began = "Every value in turn" if result["seed"] is None else f"Seed {result['seed']}"
    return "\n\n".join([
        f"{began}, {result['inputs']:,} inputs, {len(result['findings'])} findings "
        f"(`{result['command']}`).",
        markdown(["command", "refused", "errors listed", "done", "findings", "inputs"], rows),
        f"By what is odd in them: {said}.",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
