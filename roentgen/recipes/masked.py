"""Train a masked generative transformer on the codes of chest X-rays with their texts (MaskGIT; Muse; RayGen).

    roentgen train masked --config quick-masked --manifest MANIFEST --codes runs/tokens/tokenizer --out runs/quick
    roentgen train masked --manifest MANIFEST --model runs/quick/model --out runs/more
    accelerate launch train/masked.py --config train/configs/mini-masked.yaml --manifest MANIFEST --codes FOLDER

Starts from an image tokenizer (`codes`, see train/tokenizer.py) and a text encoder, or from an earlier masked
transformer (`model`). Writes ``OUT/model``, a folder for ``roentgen generate --model``, checkpoints, sample grids and
TensorBoard logs. The same command again continues a run that was stopped, to the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

from roentgen import config as cfg
from roentgen.config import parse_groups, require
from roentgen.devices import Team
from roentgen.generators.masked.build import parameters, start
from roentgen.generators.masked.cached import code_cache
from roentgen.generators.masked.model import Masked
from roentgen.generators.masked.objective import Objective
from roentgen.generators.masked.process import Process
from roentgen.generators.masked.transformer import Shape
from roentgen.recipes import CONFIGS
from roentgen.training.checkpoints import prepare_for_sharding
from roentgen.training.encoded import text_cache
from roentgen.training.loop import Loop
from roentgen.training.setup import make_optimizer
from roentgen.training.shared import (
    BatchSize,
    HalfLife,
    SharedRecipe,
    SharedRun,
    TextChunks,
    WarmUp,
    begin,
    finish,
    hold,
    read_data,
)


@dataclass(frozen=True)
class Recipe(SharedRecipe):
    """The recipe: what must stay the same between a run and its continuation; every count is in images seen."""

    shape: Annotated[Shape, "size of a new transformer"] = field(default_factory=Shape)
    process: Annotated[Process, "what is masked when"] = field(default_factory=Process)
    pixels: Annotated[cfg.Pixels, "side of the images of a new transformer"] = 256
    text_chunks: TextChunks = 1
    batch_size: BatchSize = 32
    rate: Annotated[cfg.Rate, "peak learning rate (AdamW)"] = 1e-3
    warmup: WarmUp = 1000
    ema_halflife: HalfLife = 5_000


@dataclass(frozen=True)
class Run(SharedRun):
    """The run: what may change when it is continued. Data and models are compared by their content."""

    model: Annotated[
        cfg.PathOrName | None, "masked transformer to start from; leave out to start from `codes` and `text_encoder`"
    ] = None
    codes: Annotated[Path | None, "image tokenizer (see train/tokenizer.py)"] = None
    text_encoder: Annotated[
        cfg.PathOrName | None, "mini, radbert, sapbert, cxr-bert, a folder or hub id (BERT or CLIP)"
    ] = None
    name: Annotated[cfg.Text, "name that the result carries"] = "masked"
    steps: Annotated[cfg.Steps, "sampling steps of the grid, and default of the saved model"] = 8
    guidance: Annotated[cfg.Guidance, "guidance scale of the grid, and default of the saved model"] = 2.0
    sampling: Annotated[
        dict[str, Any] | None, "the family's further settings, of the grid and of the saved model (docs/families.md)"
    ] = None


def main(argv: Sequence[str] | None = None) -> int:
    recipe, run = parse_groups((Recipe, Run), argv, prog="roentgen train masked", about=__doc__, configs=CONFIGS)
    fresh = [run.codes, run.text_encoder]
    require(
        all(given is not None for given in fresh) if run.model is None else fresh == [None, None],
        "give either --model, or both --codes and --text-encoder",
    )
    accelerator = begin(recipe, run)
    device, on_main = accelerator.device, accelerator.is_main_process

    # ---- Prepare: the model to start from and the data. Nothing is written before all of it is good.
    model = start(
        model=run.model, codes=run.codes, text_encoder=run.text_encoder, shape=recipe.shape, process=recipe.process,
        pixels=recipe.pixels, layer=recipe.text_layer, window=recipe.text_window, chunks=recipe.text_chunks or 1,
        name=run.name, weights=not run.dry_run,
    )  # fmt: skip
    chosen = {"steps": run.steps, "guidance": run.guidance, **(run.sampling or {})}
    sampling = model.sampling(**chosen)
    data = read_data(recipe, run, model)
    if on_main:
        data.describe(recipe, model.reader, accelerator.num_processes)
        describe(model)
    if run.dry_run:
        return 0
    lock = hold(run.out, accelerator)

    # Codes and, where no text is composed afresh, text states: once for the whole run.
    place = {"folder": run.cache or run.out / "cache", "device": device, "team": Team.of(accelerator)}
    codes = code_cache(model.codes, data.source, **place)
    states = None
    if recipe.text_states == "cache" and recipe.composed == 0:
        states = text_cache(model.reader, model.text_encoder, data.source.table["text"].tolist(), **place)

    # The loss, which belongs to the model, the batches: functions of the batch's number; network and optimiser.
    prepare_for_sharding(accelerator, recipe.batch_size // accelerator.num_processes // run.accumulate)
    objective = model.objective = Objective(model, device=device, autocast=accelerator.autocast)
    maker = data.maker(
        recipe, accelerator, model.reader, weights=torch.ones(len(data.rows)), latents=codes, states=states,
        draw=objective.draw,
    )  # fmt: skip
    if run.compile:
        model.transformer.compile(dynamic=False)
    optimizer = make_optimizer(recipe.optimizer, [{"params": parameters(model), "lr": recipe.rate}], device)

    # ---- Loop (roentgen/training/loop.py): from the last checkpoint to the end.
    loop = Loop(
        accelerator, recipe, run, data, maker, loss=model.loss, objective=objective, module=model.transformer,
        optimizer=optimizer, start=model.info.hash,
    )  # fmt: skip
    clock = loop.train(model, sampling)

    # ---- Save: the average becomes the model, and the model a folder.
    full = loop.finish()
    if on_main:
        if full is not None:
            model.transformer.load_state_dict(full)
        model.save(run.out / "model", data.facts(run, loop.images, composed=recipe.composed, defaults=chosen))
        loop.tell(clock)
        print(run.out / "model")
    finish(accelerator, lock)
    return 0


def describe(model: Masked) -> None:
    """Print parameters and codes."""
    network = model.transformer
    print(
        f"transformer {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M; {network.fit.side}x"
        f"{network.fit.side} positions with codebooks of {', '.join(map(str, network.fit.codes))} codes, images of "
        f"{model.pixels} px",
        flush=True,
    )
