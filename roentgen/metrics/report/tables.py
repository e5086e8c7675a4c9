"""Written files as Markdown tables, put between markers of a document: no figure is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roentgen.errors import UserError
from roentgen.files import write_atomic
from roentgen.metrics.result import read_result

Written = Mapping[str, Any]
MINI = ("classifier_auroc", "laterality", "fid", "memorisation", "ms_ssim")


def figure(entry: Mapping[str, Any] | None, *, digits: int = 2, key: str = "value", count: bool = False) -> str:
    """``0.74 [0.71, 0.77]``, with ", n = 12" if ``count``; an en dash where nothing was measured."""
    if entry is None or entry[key] is None:
        return "–"
    text = f"{entry[key]:.{digits}f}"
    low, high = entry.get("ci") or (None, None)
    if low is not None and high is not None:
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{text}, n = {entry['n']}" if count else text


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def mini_report(folder: Path) -> str:
    """Markdown of what ``eval/mini.py`` wrote to ``folder``; UserError if a result is missing."""
    results = {name: read_result(folder / f"{name}.json") for name in MINI}
    models = {result["model"]["hash"] for result in results.values()}
    if len(models) != 1:
        raise UserError(f"{folder}: results of {len(models)} different models; run eval/mini.py again")
    auroc, sides, fid, memory, likeness = (results[name] for name in MINI)
    a, f, m = (_conditions(result) for result in (auroc, fid, likeness))
    generated, real, rebuilt = a["generated"], a["real"], a["reconstructed"]
    judged = sides["details"]["findings"]
    spaces = {(e["space"], e["condition"]): e for e in memory["details"]["conditions"]}

    def near(space: str) -> list[str]:
        control = spaces[space, "control: real val images"]
        return [figure(spaces[space, "generated"]), figure(control), "–", "0.50 by chance"]

    five = generated["five"]["findings"]
    rows = [
        [
            f"Macro AUROC, {len(auroc['details']['macro_findings'])} findings",
            figure(generated),
            figure(real),
            figure(rebuilt),
            f"{figure(a['shuffled'])} (labels shuffled)",
        ],
        [
            f"Macro AUROC, {len(five)} findings: {', '.join(five)}",
            figure(generated["five"]),
            figure(real["five"]),
            figure(rebuilt["five"]),
            f"{figure(a['shuffled']['five'])} (labels shuffled)",
        ],
        *(
            [
                f"Left and right {e['finding'].lower()} told apart by {judge}",
                figure(e[made], key="accuracy"),
                figure(e[true], key="accuracy", count=True),
                "–",
                "0.50 by chance",
            ]
            for e in judged
            for judge, made, true in (
                ("the classifier", "classifier", "classifier_real_test"),
                ("brightness", "brightness", "brightness_real"),
            )
            if e[made] is not None
        ),
        [
            "Fréchet distance in the classifier's features, to real test images",
            figure(f["generated"], digits=1),
            f"{figure(f['train, same findings and view'], digits=1)} (train, same findings and view)",
            figure(f["reconstructed"], digits=1),
            f"{figure(f['train, at random'], digits=1)} (train, at random)",
        ],
        ["Share nearer to train than to test, classifier features", *near("classifier features")],
        ["Share nearer to train than to test, 32 x 32 pixels", *near("pixels 32x32")],
        ["MS-SSIM within a prompt", figure(m["generated"]), figure(m["real"]), "–", "–"],
    ]
    by_name = {name: {e["finding"]: e for e in a[name]["findings"]} for name in a}
    findings = [
        [
            e["finding"] + ("" if e["in_macro"] else " (not in the macro)"),
            str(e["positives"]),
            *(figure(by_name[name][e["finding"]]) for name in ("generated", "real", "reconstructed")),
        ]
        for e in generated["findings"]
        if e["positives"] > 0
    ]
    model = auroc["model"]
    notes = list(dict.fromkeys(warning for result in results.values() for warning in result["warnings"]))
    parts = [
        table(["measure", "generated", "real", "reconstructed", "floor"], rows),
        table(["AUROC", "positives", "generated", "real", "reconstructed"], findings),
        f"Brackets: 95 % intervals. {auroc['n']} generated images for the AUROC; {model['steps']} steps of "
        f"{model['sampler']}, guidance {model['guidance']:g}, seed {auroc['seed']}; model hash "
        f"`{model['hash']}`. The real images of the memorisation rows are those of `val`.",
        *(f"Note: {note}." for note in notes),
        f"Made by `{auroc['command']}`; the JSON files of its folder hold these figures and more.",
    ]
    return "\n\n".join(parts)


def _conditions(result: Written) -> dict[str, Any]:
    return {entry["condition"]: entry for entry in result["details"]["conditions"]}


def replace_between_markers(document: Path, name: str, text: str, *, write: bool = True) -> bool:
    """Put ``text`` between ``<!-- results:NAME -->`` and ``<!-- /results:NAME -->``; whether that changes it.

    UserError where the markers are not there exactly once, in this order.
    """
    start, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
    try:
        content = document.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{document}: cannot be read ({error.strerror}); check the path") from None
    if content.count(start) != 1 or content.count(end) != 1 or content.index(start) > content.index(end):
        raise UserError(f"{document}: needs one line {start} and below it one line {end}; add them")
    pattern = re.escape(start) + ".*?" + re.escape(end)
    new = re.sub(pattern, lambda _: f"{start}\n\n{text}\n\n{end}", content, flags=re.DOTALL)
    if new == content:
        return False
    if write:
        write_atomic(document, new.encode())
    return True


def fill(document: Path, texts: Mapping[str, str], *, write: bool = True) -> bool:
    """Put each of ``texts`` (name to Markdown) whose markers ``document`` has between them; whether that changes it.

    UserError where it has the markers of none, or some twice or alone.
    """
    content = document.read_text(encoding="utf-8") if document.is_file() else ""
    present = [name for name in texts if f"results:{name} -->" in content] or list(texts)[:1]
    return any([replace_between_markers(document, name, texts[name], write=write) for name in present])
