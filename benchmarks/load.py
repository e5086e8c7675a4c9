"""Commands on a machine that has other work, against their fair share of it, with the threads' policy and without.

    python benchmarks/load.py --out benchmarks/results/load-cpu.json --update docs/benchmarks.md
    python benchmarks/load.py --result benchmarks/results/load-cpu.json --update docs/benchmarks.md

Each command runs alone, beside one and two processes that never rest, and four at once. Its fair share is an equal
part of the cores for each process: a command that took ``u`` seconds of processor time alone, on ``c`` cores among
``n`` processes, should take ``u * n / c`` seconds, and never less than alone. Without the policy OpenMP takes as many
threads as there are logical processors, and they spin while they wait.

What a loop of matrix products on one thread takes under the same load is the floor: where logical processors share a
physical core, or memory, even a program without any threads of its own is slowed by its neighbour.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from timing import python_path
from tqdm import tqdm

from roentgen import errors, threads
from roentgen.config import Count, parse_settings
from roentgen.errors import UserError
from roentgen.metrics.report.tables import Reported, table
from roentgen.metrics.result import write_result
from roentgen.provenance import Surroundings, in_words, processor

NAME = "load"
GOAL = 1.5
ON = "from roentgen.__main__ import main; import sys; sys.exit(main())"
OFF = f"from roentgen import threads; threads.settle = lambda *_: None; {ON}"
SETTLED, UNSETTLED = "threads settled", "left to OpenMP"
POLICIES = {SETTLED: ON, UNSETTLED: OFF}
FLOOR = "a loop of matrix products, one thread"
LOOP = "import torch; torch.set_num_threads(1); a = torch.zeros(1024, 1024)\nfor _ in range(200): a @ a"
BUSY = "while True: pass"
# Scenario -> processes beside that never rest, commands at once.
SCENARIOS = {"alone": (0, 1), "beside one busy process": (1, 1), "beside two": (2, 1), "four at once": (0, 4)}
# Command -> policy -> scenario -> wall and processor seconds of each run.
Found = dict[str, dict[str, dict[str, list[list[float]]]]]


def commands(scratch: Path) -> dict[str, list[str]]:
    """Name -> command line; OUT stands for a new folder."""
    prompts = scratch / "prompts.txt"
    prompts.write_text("".join(f"left pleural effusion, {age}-year-old\n" for age in range(40, 48)), encoding="utf-8")
    return {
        "generate, one image": ["generate", "cardiomegaly", "--out", "OUT"],
        "export, 8 images": ["export", "--prompts", str(prompts), "--out", "OUT", "--filter", "none"],
        FLOOR: [],
    }


@dataclass(frozen=True, kw_only=True)
class Settings(Reported):
    """Time commands beside other work, and print a table."""

    repeats: Annotated[Count, "runs of each with threads settled, of which the median counts; left to OpenMP one"] = 1
    only: Annotated[str, "leave out commands whose name does not begin with this"] = ""
    unsettled: Annotated[
        str, "leave threads to OpenMP in the commands whose name begins with this (some take minutes)"
    ] = ""


def measured(s: Settings, out: Path) -> None:
    """Run everything; the result is written after each round, so that what was measured stays."""
    found: Found = {}
    with tempfile.TemporaryDirectory() as scratch:
        chosen = {name: words for name, words in commands(Path(scratch)).items() if name.startswith(s.only)}
        if not chosen:
            known = ", ".join(commands(Path(scratch)))
            raise UserError(f"--only {s.only}: no command begins like that; they are {known}")
        for words in filter(None, chosen.values()):  # the file cache
            together(ON, words, busy=0, count=1)
        free = [name for name in chosen if name != FLOOR and name.startswith(s.unsettled)]
        around = Surroundings()
        bar = tqdm(total=(s.repeats * len(chosen) + len(free)) * len(SCENARIOS), desc="runs", file=sys.stderr)
        for number in range(s.repeats):
            rounds = [(name, SETTLED) for name in chosen]
            rounds += [(name, UNSETTLED) for name in free] if number == 0 else []
            for name, policy in rounds:
                code = LOOP if name == FLOOR else POLICIES[policy]
                for scenario, (busy, count) in SCENARIOS.items():
                    bar.set_postfix_str(f"{name}, {policy}, {scenario}")
                    runs = together(code, chosen[name], busy=busy, count=count)
                    place = found.setdefault(name, {}).setdefault(policy, {})
                    place.setdefault(scenario, []).append([max(each) for each in zip(*runs, strict=True)])
                    bar.update()
            store(replace(s, repeats=number + 1), out, found, around.facts())
        bar.close()


def store(s: Settings, out: Path, found: Found, conditions: Mapping[str, Any]) -> None:
    """Write the result of what is ``found`` so far."""
    rows = list(rated(found))
    own = [row for row in rows if row["settled"] and row["command"] != FLOOR] or rows
    worst = max(row["ratio"] for row in own)
    missed = [f"{row['command']}, {row['scenario']}: {row['ratio']:.2f}" for row in own if row["ratio"] > GOAL]
    context = s.context("benchmarks/load.py", extractor="wall clock", model={"name": "mini"})
    write_result(
        out, metric="largest time over the fair share, threads settled", value=worst, ci=(worst, worst),
        ci_method="none: the largest of all", n=len(rows), context=context, goal=f"at most {GOAL}", warnings=missed,
        details={"rows": rows, "cores": threads.cores(), "cpu": processor(), "conditions": dict(conditions)},
    )  # fmt: skip


def together(code: str, words: Sequence[str], *, busy: int, count: int) -> list[tuple[float, float]]:
    """``count`` commands at once beside ``busy`` processes that never rest: wall and processor seconds of each."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_", "KMP_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": python_path()}
    with ExitStack() as stack:
        for _ in range(busy):
            idler = stack.enter_context(subprocess.Popen([sys.executable, "-c", BUSY]))
            stack.callback(idler.kill)
        started, began = {}, time.perf_counter()
        for _ in range(count):
            place = stack.enter_context(tempfile.TemporaryDirectory())
            line = [sys.executable, "-c", code, *(f"{place}/out" if word == "OUT" else word for word in words)]
            silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen(line, env=environment, **silent)
            started[process.pid] = process
        runs = []
        while started:
            pid, status, usage = os.wait3(0)
            if pid not in started:
                raise RuntimeError("a busy process has ended")
            process = started.pop(pid)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise RuntimeError(f"roentgen {' '.join(words)} failed with code {process.returncode}")
            runs.append((time.perf_counter() - began, usage.ru_utime + usage.ru_stime))
    return runs


def rated(found: Found) -> Iterator[dict[str, Any]]:
    """A row a command, policy and scenario: seconds, and how many times the fair share that is.

    The share is worked out from the command alone with its threads settled, for both policies.
    """
    for name, policies in found.items():
        alone = policies[SETTLED]["alone"]
        wall, used = (statistics.median(run[part] for run in alone) for part in (0, 1))
        for policy, scenarios in policies.items():
            for scenario, runs in scenarios.items():
                busy, count = SCENARIOS[scenario]
                fair = max(wall, used * (busy + count) / threads.cores())
                if busy + count == 1:
                    fair = wall
                seconds = statistics.median(run[0] for run in runs)
                row = {"command": name, "policy": policy, "settled": policy == SETTLED, "n": len(runs)}
                yield row | {"scenario": scenario, "seconds": seconds, "fair": fair, "ratio": seconds / fair}


def as_table(result: Mapping[str, Any]) -> str:
    """The Markdown table of a result, with its conditions below."""
    details = result["details"]
    by = {(row["command"], row["scenario"], row["policy"]): row for row in details["rows"]}
    rows = []
    for command, scenario in dict.fromkeys((row["command"], row["scenario"]) for row in details["rows"]):
        cells = [by.get((command, scenario, policy)) for policy in POLICIES]
        shown = [f"{cell['seconds']:.1f} ({cell['ratio']:.2f})" if cell else "–" for cell in cells]
        rows.append([command, scenario, f"{by[command, scenario, SETTLED]['fair']:.1f}", *shown])
    return table(
        ["command", "other work", "fair share (s)", *(f"{policy} (s)" for policy in POLICIES)], rows,
        f"Brackets: times the fair share; the goal is {GOAL}. `mini` on {details['cores']} cores of "
        f"{details['cpu']}; torch {result['versions']['torch']}; medians of {result['settings']['repeats']} "
        f"run(s), left to OpenMP one run, of four at once the slowest.{in_words(details['conditions'])} "
        f"Made by `{result['command']}`.",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="benchmarks/load.py", about=__doc__)
    return s.report(NAME, measure=measured, table=as_table)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/load.py"))
