"""Writes the lists in ``prompts/``: ``python -m roentgen.prompts --write prompts/ [--metadata FILE ...]``.

Columns: id, prompt, labels, view, sex, age. ``labels`` joins the findings by ";", each with its side where
the prompt names one ("Effusion:left;Cardiomegaly").
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from roentgen.errors import UserError
from roentgen.files import explained, write_atomic
from roentgen.prompts.compose import compose
from roentgen.prompts.labels import NO_FINDING, Labels, labels_text
from roentgen.prompts.parse import parse
from roentgen.prompts.vocabulary import FINDINGS

COLUMNS = ("id", "prompt", "labels", "view", "sex", "age")
EVALUATION_SIZE = 1000
Entry = tuple[str, str, Labels]
"""(id, prompt, what the prompt asks for)"""

COMBINATIONS = (
    "Small left pleural effusion with adjacent atelectasis",
    "Bilateral pleural effusion and cardiomegaly",
    "Cardiomegaly, pulmonary edema and bilateral pleural effusion",
    "Right pneumothorax and left pleural effusion",
    "Right pleural effusion and right basilar atelectasis",
    "Left consolidation and left pleural effusion",
    "Emphysema and right pneumothorax",
    "Emphysema and a nodule in the left lung",
    "Right lung mass with right pleural effusion",
    "Fibrosis and bilateral pleural thickening",
    "Bilateral infiltrates and pulmonary edema",
    "Hiatal hernia and left basilar atelectasis",
    "Right pneumonia. Left pleural thickening",
    "Cardiomegaly. No pleural effusion or pneumothorax",
    "PA view. 54-year-old woman. Small left pleural effusion with adjacent atelectasis. Heart size is normal.",
    "AP portable view. 71-year-old man. Cardiomegaly and bilateral pleural effusion. No pneumothorax.",
    "PA view of a 38-year-old man with right pneumothorax.",
    "AP view. 4-year-old girl. Right airspace opacity. No pleural effusion.",
)


def one_per_finding() -> list[Entry]:
    """Every finding in every synonym, without a side."""
    return [
        (f"{_slug(name)}-{number}", noun, Labels((name,)))
        for name, finding in FINDINGS.items()
        for number, noun in enumerate(finding.synonyms, 1)
    ]


def sides() -> list[Entry]:
    """Every finding that can have a side, on the left, on the right and on both."""
    entries = []
    for finding in FINDINGS.values():
        for side in ("left", "right", "bilateral") if finding.can_have_side else ():
            noun = finding.synonyms[0]
            text = f"{noun} on both sides" if side == "bilateral" else f"{side} {noun}"
            labels = Labels((finding.name,), {finding.name: side})
            entries.append((f"{_slug(finding.name)}-{side}", text, labels))
    return entries


def combinations() -> list[Entry]:
    """Several findings in one prompt, as reports have them."""
    return [(f"combination-{n:02d}", text, parse(text)) for n, text in enumerate(COMBINATIONS, 1)]


def evaluation(metadata: Sequence[Path], *, seed: int = 0) -> list[Entry]:
    """Prompts from the labels of the ``test`` rows of metadata files, ``EVALUATION_SIZE`` of them.

    Every row with a finding of the vocabulary, filled up with No Finding rows drawn at random. The prompt
    says all that is known: findings, view, sex, age, and a side where a box of that finding tells it.
    """
    rows = list(itertools.chain.from_iterable(_test_rows(path) for path in metadata))
    found = [row for row in rows if row[1].findings and row[1].findings != (NO_FINDING,)]
    normal = [row for row in rows if row[1].findings == (NO_FINDING,)]
    rng = random.Random(seed)
    found = found if len(found) <= EVALUATION_SIZE else rng.sample(found, EVALUATION_SIZE)
    chosen = found + rng.sample(normal, min(EVALUATION_SIZE - len(found), len(normal)))
    rng.shuffle(chosen)
    # The image's name in the id: figures on real images must be of the same rows.
    return [(f"evaluation-{stem}", compose(labels, rng, complete=True), labels) for stem, labels in chosen]


def _test_rows(path: Path) -> list[tuple[str, Labels]]:
    """Image name without folder and ending, and labels, of the `test` rows."""
    with (
        explained(f"--metadata {path} cannot be read", "give an openchest metadata.csv", (OSError, UnicodeDecodeError)),
        path.open(encoding="utf-8", newline="") as file,
    ):
        reader = csv.DictReader(file)
        needed = {"file", "split", "findings", "view", "sex", "age"}
        if missing := sorted(needed - set(reader.fieldnames or ())):
            raise UserError(f"--metadata {path} has no column {missing[0]!r}; give an openchest metadata.csv")
        return [(Path(row["file"]).stem, _labels(row)) for row in reader if row["split"] == "test"]


def _labels(row: Mapping[str, str]) -> Labels:
    findings = tuple(name for name in row["findings"].split(";") if name in FINDINGS)
    found: dict[str, set[str]] = {}
    for part in (row.get("region") or "").split(";"):  # "Effusion:left lower"
        name, _, place = part.partition(":")
        side = place.split(" ")[0]
        if name in findings and FINDINGS[name].can_have_side and side in {"left", "right"}:
            found.setdefault(name, set()).add(side)
    sides = {name: side.pop() if len(side) == 1 else "bilateral" for name, side in found.items()}
    try:
        age = float(int(float(row["age"])))
    except ValueError:  # blank, or a range of years
        age = None
    view, sex = row["view"], row["sex"]
    return Labels(findings, sides, view if view in {"PA", "AP"} else None, sex if sex in {"M", "F"} else None, age)


def write_list(entries: Iterable[Entry], path: Path) -> int:
    """Write a prompt list, whole or not at all; returns how many prompts it holds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    count = 0
    for name, prompt, labels in entries:
        age = "" if labels.age is None else f"{labels.age:g}"
        writer.writerow((name, prompt, labels_text(labels), labels.view or "", labels.sex or "", age))
        count += 1
    write_atomic(path, text.getvalue().encode())
    return count


def _slug(name: str) -> str:
    return name.lower().replace("_", "-").replace(" ", "-")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the lists; ``evaluation.csv`` only where metadata is given. Prints one path a line."""
    parser = argparse.ArgumentParser(prog="python -m roentgen.prompts", description=__doc__)
    parser.add_argument("--write", type=Path, required=True, metavar="DIR", help="folder for the lists")
    parser.add_argument(
        "--metadata",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="openchest metadata.csv, repeatable",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the evaluation set (default 0)")
    args = parser.parse_args(argv)
    lists = {"one_per_finding": one_per_finding(), "sides": sides(), "combinations": combinations()}
    if args.metadata:
        lists["evaluation"] = evaluation(args.metadata, seed=args.seed)
    with explained(f"--write {args.write}: cannot write there", "choose another folder", OSError):
        args.write.mkdir(parents=True, exist_ok=True)
        for name, entries in lists.items():
            path = args.write / f"{name}.csv"
            print(f"{path} ({write_list(entries, path)} prompts)")
    return 0
