"""Train a reporter: images to words, with places where boxes are there to learn from.

    roentgen train report --arch labels --manifest MANIFEST --boxes METADATA.csv --out runs/report
    roentgen train report --arch git --manifest MANIFEST --out runs/git

``--arch``: ``labels`` (a classifier with sides, places, thresholds and composed sentences), ``xreport`` (a transformer
from nothing), ``git`` and ``blip`` (transformers' captioners) or ``encoder-decoder`` (any VisionEncoderDecoderModel).
Resuming is the same command again. Writes a folder that ``roentgen report --model`` reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from roentgen.config import as_dict, flat, parse_groups, require
from roentgen.files import file_sha256, require_writable, sha256
from roentgen.recipes import CONFIGS
from roentgen.recipes.report_settings import RATES, Recipe, Run
from roentgen.training.setup import make_accelerator


def main(argv: Sequence[str] | None = None) -> int:
    recipe, run = parse_groups((Recipe, Run), argv, prog="roentgen train report", about=__doc__, configs=CONFIGS)
    require(
        recipe.precision != "fp16" or torch.cuda.is_available(),
        "--precision fp16: needs a CUDA GPU; use --precision bf16 or no",
    )
    accelerator = make_accelerator(precision=recipe.precision, accumulate=recipe.accumulate)
    if not run.dry_run:
        require_writable(run.out, "--out")
    recipe = dataclasses.replace(recipe, rate=RATES[recipe.arch] if recipe.rate is None else recipe.rate)
    # Of a manifest that is not there, its reader will tell.
    files = (run.manifest, *run.boxes, *([] if run.preferences is None else [run.preferences]))
    data = [file_sha256(path) for path in files if path.is_file()]
    settings = flat(as_dict(recipe)) | {"data": sha256(*data)[:16]}
    if recipe.arch == "labels":
        from roentgen.recipes.report_labels import train_labels

        code = train_labels(recipe, run, accelerator, settings)
    else:
        from roentgen.recipes.report_captions import train_captions

        code = train_captions(recipe, run, accelerator, settings)
    accelerator.end_training()
    return code
