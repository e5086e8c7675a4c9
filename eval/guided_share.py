"""What it changes to guide only the first steps: mean difference in grey levels on prompts of the validation split.

    python eval/guided_share.py --out eval/results/mini --update docs/benchmarks.md

Guidance takes half of the time of a step. Texts are those of `val` rows, never of `test`; the same seeds for every
share. Writes ``OUT/guided_share.json``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from roentgen import errors
from roentgen.config import BatchSize, Count, Filled, PathOrName, Seed, Share, parse_settings
from roentgen.data.manifest import read_manifest
from roentgen.files import file_hash
from roentgen.generators.generate import generate, load_model
from roentgen.metrics.report.tables import report, table
from roentgen.metrics.result import Context, write_result

NAME = "guided-share"
MOST = 1.0
"""Grey levels of 255 that a share may change an image by, on average."""


@dataclass(frozen=True)
class Settings:
    """Settings of the comparison."""

    out: Annotated[Path, "folder for guided_share.json"]
    manifest: Annotated[Path, "manifest with `val` rows"] = Path("data/sample/manifest.csv")
    model: Annotated[PathOrName, "name, folder or hub id"] = "mini"
    shares: Annotated[tuple[Share, ...], Filled(), "shares to compare with 1"] = (0.9, 0.8, 0.7, 0.6, 0.5)
    images: Annotated[Count, "texts, one image each"] = 24
    seed: Annotated[Seed, "seed of the first image"] = 20_000
    batch_size: Annotated[BatchSize, "images generated at a time"] = 8
    update: Annotated[Path | None, "document in which the region results:guided-share is replaced"] = None


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="eval/guided_share.py", about=__doc__)
    path = s.out / "guided_share.json"
    return report(NAME, out=path, result=None, update=s.update, measure=partial(measured, s), table=as_table)


def measured(s: Settings, out: Path) -> None:
    """Every share on the same texts and seeds, to ``out``."""
    rows = read_manifest(s.manifest, splits=["val"])
    texts = list(dict.fromkeys(rows["text"]))[: s.images]
    model = load_model(s.model)

    def pictures(share: float) -> tuple[np.ndarray, float]:
        began = time.process_time()
        made = generate(model, texts, seeds=[s.seed + row for row in range(len(texts))], batch_size=s.batch_size,
                        guided_share=share, progress=True)  # fmt: skip
        return np.stack([sample.image.astype(np.int16) for sample in made]), time.process_time() - began

    whole, seconds = pictures(1.0)
    found = []
    for share in s.shares:
        images, took = pictures(share)
        change = np.abs(images - whole).mean(axis=(1, 2))
        found.append({"share": share, "change": change.mean(), "most": change.max(), "time": took / seconds})
    fit = [row["share"] for row in found if row["change"] <= MOST]
    sampling: Any = model.sampling()
    context = Context.of(
        "eval/guided_share.py", s, settings={"images": len(texts), "most": MOST, "split": "val"},
        model={"name": model.info.name, "hash": model.info.hash, **sampling.provenance()},
        inputs={"manifest": {"sha256": file_hash(s.manifest)}},
    )  # fmt: skip
    value = float(min(fit, default=1.0))
    write_result(
        out, metric="smallest share of guided steps that changes images little", value=value,
        ci=(value, value), ci_method="none: the smallest of those compared", n=len(texts), context=context,
        goal=f"mean change at most {MOST:g} grey level", details={"shares": found},
    )  # fmt: skip


def as_table(result: Mapping[str, Any]) -> str:
    """Markdown of the shares with their conditions below."""
    head = ["share of steps guided", "mean change (grey levels of 255)", "largest of an image", "processor time"]
    rows = [
        [f"{row['share']:g}", f"{row['change']:.2f}", f"{row['most']:.2f}", f"{row['time']:.0%}"]
        for row in result["details"]["shares"]
    ]
    model = result["model"]
    return table(
        head, rows,
        f"`{model['name']}` ({model['hash']}), {model['steps']} steps of {model['sampler']} at guidance "
        f"{model['guidance']}, beside the same images with every step guided; {result['n']} texts of `val`. "
        f"Made by `{result['command']}`.",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/guided_share.py"))
