"""Train or fine-tune a Stable Diffusion pipeline on chest X-rays with their texts.

    roentgen train finetune --config quickstart --manifest data/sample/manifest.csv --out runs/quickstart
    roentgen train finetune --manifest MANIFEST --model mini --out runs/lora --lora.rank 8 --images 2000 --dry-run
    accelerate launch -m roentgen train finetune --config quickstart --manifest MANIFEST --out runs/quickstart

Starts from any Stable Diffusion pipeline (a name, a folder or a hub id: `model`), or from nothing but an autoencoder
and a text encoder (`vae`, `text`, `unet`). Writes ``OUT/pipeline``, an ordinary diffusers pipeline, checkpoints, sample
grids and TensorBoard logs. The same command again continues a run that was stopped, to the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from roentgen import config as cfg
from roentgen.config import parse_groups, require
from roentgen.data.images import open_source
from roentgen.devices import Team
from roentgen.generators.diffusion import objective as training
from roentgen.generators.diffusion.build import TextChoice, start
from roentgen.generators.diffusion.model import Diffusion
from roentgen.generators.diffusion.objective import Lora, Loss, Objective, Train
from roentgen.generators.diffusion.sampling import Sampler
from roentgen.models.card import model_licence, sources_of, write_card
from roentgen.models.lora import merge_lora, save_lora
from roentgen.recipes import CONFIGS
from roentgen.recipes.overview import describe, describe_needs
from roentgen.training.batches import balanced_loss_weights
from roentgen.training.checkpoints import prepare_for_sharding
from roentgen.training.encoded import latent_cache, text_cache
from roentgen.training.loop import Loop
from roentgen.training.reward import reward_of
from roentgen.training.setup import attention, make_optimizer, use_xformers
from roentgen.training.shared import SharedRecipe, SharedRun, begin, finish, hold, read_data


@dataclass(frozen=True)
class Recipe(SharedRecipe):
    """The recipe: what must stay the same between a run and its continuation; every count is in images seen."""

    unet: Annotated[dict[str, Any] | None, "new UNet2DConditionModel, when starting from nothing"] = None
    train: Annotated[Train, "what is trained"] = field(default_factory=Train)
    lora: Annotated[Lora, "low-rank adapters"] = field(default_factory=Lora)
    rate: Annotated[cfg.Rate, "peak learning rate of the U-Net (AdamW)"] = 5e-5
    text_rate: Annotated[cfg.Rate, "peak learning rate of the text encoder"] = 1e-5
    decoder_rate: Annotated[cfg.Rate, "peak learning rate of the autoencoder's decoder"] = 1e-5
    prediction_type: Annotated[Literal["epsilon", "v_prediction"] | None, "default: the pipeline's"] = None
    loss: Annotated[Loss, "options of the loss"] = field(default_factory=Loss)
    reward: Annotated[Path | None, "folder of a classifier whose likelihood of the text is raised"] = None
    reward_weight: Annotated[cfg.Weight, "weight of that term"] = 0.0
    reward_positive: Annotated[cfg.Weight, "weight of findings that a text names against those it does not"] = 4.0
    latents: Annotated[Literal["cache", "online"], "encoded once and kept on disk, or in every step"] = "cache"


@dataclass(frozen=True)
class Run(SharedRun):
    """The run: what may change when it is continued. Data and models are compared by their content."""

    model: Annotated[
        cfg.PathOrName | None,
        "pipeline to start from (name, folder or hub id); leave out to start from `vae`, `text` and `unet`",
    ] = None
    vae: Annotated[
        Path | None,
        "autoencoder folder (roentgen train autoencoder), when starting from nothing or in place of the model's own",
    ] = None
    text: Annotated[
        Path | None,
        "folder of roentgen train text-encoder, with tokenizer/ and text_encoder/, when starting from nothing",
    ] = None
    text_encoder: Annotated[
        cfg.PathOrName | None, "clip (the pipeline's), radbert, sapbert, cxr-bert, a folder or hub id (BERT or CLIP)"
    ] = None
    name: Annotated[cfg.Text, "name that the result carries"] = "finetuned"
    gradient_checkpointing: Annotated[bool, "trade time for memory in the U-Net and the text encoder"] = False
    xformers: Annotated[bool, "attention by xformers instead of PyTorch's own"] = False
    sampler: Annotated[Sampler, "as steps"] = "dpm++"
    steps: Annotated[cfg.Steps, "sampling steps of the grid, and default of the saved pipeline"] = 25
    guidance: Annotated[cfg.Guidance, "guidance scale of the grid, and default of the saved pipeline"] = 4.0


def main(argv: Sequence[str] | None = None) -> int:
    recipe, run = parse_groups((Recipe, Run), argv, prog="roentgen train finetune", about=__doc__, configs=CONFIGS)
    check(recipe, run)
    accelerator = begin(recipe, run)
    device, on_main = accelerator.device, accelerator.is_main_process

    # ---- Prepare: the model to start from, the data, what is used late. Nothing is written before all of it is good.
    model = start_model(recipe, run)
    defaults = {"steps": run.steps, "guidance": run.guidance, "sampler": run.sampler}
    sampling = model.sampling(**defaults)
    data = read_data(recipe, run, model)
    rates = (recipe.rate, recipe.text_rate, recipe.decoder_rate)
    groups = training.set_trained(model, recipe.train, recipe.lora, rates=rates)
    if on_main:
        data.describe(recipe, model.reader, accelerator.num_processes)
        describe(model)
        if run.dry_run:
            describe_needs(model, data.source, recipe, run, accelerator.num_processes)
    if run.dry_run:
        return 0
    lock = hold(run.out, accelerator)

    # Latents and, where the text encoder is frozen, text states: once for the whole run.
    place = {"folder": run.cache or run.out / "cache", "device": device, "team": Team.of(accelerator)}
    latents = None if recipe.latents == "online" else latent_cache(model.vae, data.source, **place)
    states = None
    if not training.learns_text(model) and recipe.text_states == "cache" and recipe.composed == 0:
        states = text_cache(model.reader, model.text_encoder, data.source.table["text"].tolist(), **place)

    # The loss, which belongs to the model and its noise schedule, and the batches: functions of the batch's number.
    if prepare_for_sharding(accelerator, recipe.batch_size // accelerator.num_processes // run.accumulate):
        model.vae.to(memory_format=torch.contiguous_format)
        accelerator.print("no sample grids are drawn in this run: no process holds the whole model")
    elif device.type == "cuda":  # FSDP takes contiguous weights only; on CPUs AdamW copies all others for no gain
        model.unet.to(memory_format=torch.channels_last)
    objective = model.objective = Objective(
        model, recipe.loss, recipe.train, device=device, precision=recipe.precision, latents_online=latents is None,
        text_online=not training.learns_text(model) and states is None, autocast=accelerator.autocast,
        read=data.source.read_many,
    )  # fmt: skip
    weights = balanced_loss_weights(data.train, recipe.loss.balance)
    maker = data.maker(
        recipe, accelerator, model.reader, weights=weights, latents=latents, states=states, draw=objective.draw
    )
    if recipe.reward is not None:
        small = partial(open_source, run.manifest, splits=("train", "val"))
        objective.reward = reward_of(
            recipe.reward, small, maker, objective.mean_latents, positive_weight=recipe.reward_positive, device=device
        )
        objective.reward_weight = recipe.reward_weight

    # Network and optimiser.
    torch.backends.cudnn.benchmark = True  # shapes never change
    if run.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    if run.xformers:
        use_xformers(model.unet)
    if run.compile:
        model.unet.compile(dynamic=False)
    optimizer = make_optimizer(recipe.optimizer, groups, device)

    # ---- Loop (roentgen/training/loop.py): from the last checkpoint to the end.
    loop = Loop(
        accelerator, recipe, run, data, maker, loss=model.loss, objective=objective, module=model.unet,
        optimizer=optimizer, start=model.info.hash, around=partial(attention, device, model.latent_shape),
    )  # fmt: skip
    clock = loop.train(model, sampling)

    # ---- Save: the average becomes the model, and the model a folder.
    full = loop.finish()
    if on_main:
        if full is not None:
            model = start_model(recipe, run)
            training.set_trained(model, recipe.train, recipe.lora, rates=(0.0, 0.0, 0.0))
            training.denoiser_of(model, recipe.train).load_state_dict(full)
        save_result(model, recipe, run, data.facts(run, loop.images, composed=recipe.composed, defaults=defaults))
        licence = model_licence(model.info.folder) if run.model else None
        result = loop.tell(clock, sources=sources_of(data.train), licence=licence)
        for made in filter(Path.is_dir, (run.out / "pipeline", run.out / "lora")):
            write_card(made, result, name=run.name)
        print(run.out / "pipeline")
    finish(accelerator, lock)
    return 0


def check(recipe: Recipe, run: Run) -> None:
    """Settings that no type can rule out."""
    train, lora = recipe.train, recipe.lora
    require(
        train.unet or train.text_encoder or train.vae_decoder,
        "--train.unet, --train.text-encoder and --train.vae-decoder are all false: nothing to train",
    )
    require(
        lora.rank == 0 or (lora.unet and train.unet) or (lora.text_encoder and train.text_encoder),
        "--lora.rank is set, but no adapter is trained: set --lora.unet with --train.unet, or the text encoder's two",
    )
    require(
        train.unet_only is None or (train.unet and not (lora.rank and lora.unet)),
        f"--train.unet-only {train.unet_only} chooses among weights that are not trained: leave it out, or set "
        "--train.unet and no adapters on the U-Net (--no-lora.unet)",
    )
    fresh = [run.vae, run.text, recipe.unet]
    require(
        all(f is not None for f in fresh) if run.model is None else run.text is None and recipe.unet is None,
        "give either --model (with --vae to replace its autoencoder), or all of --vae, --text and --unet",
    )


def start_model(recipe: Recipe, run: Run) -> Diffusion:
    """The model that training starts from."""
    choice = TextChoice(run.text_encoder, recipe.text_layer, recipe.text_window, recipe.text_chunks)
    return start(model=run.model, vae=run.vae, text=run.text, unet=recipe.unet, choice=choice, name=run.name,
                 prediction_type=recipe.prediction_type, loss=recipe.loss)  # fmt: skip


def save_result(model: Diffusion, recipe: Recipe, run: Run, facts: dict[str, Any]) -> None:
    """Write ``OUT/pipeline`` and, where adapters were trained, ``OUT/lora``; the pipeline has them merged in."""
    modules = training.adapted(model, recipe.train, recipe.lora)
    if any(module is not None for module in modules):
        save_lora(run.out / "lora", *modules)
        wanted = (recipe.train.unet, recipe.train.text_encoder)
        whole = any(trained and module is None for trained, module in zip(wanted, modules, strict=True))
        if whole or model.projected or recipe.train.vae_decoder or run.text_encoder not in (None, "clip") or run.vae:
            print(f"{run.out / 'lora'} holds the adapters only; what else is new is in {run.out / 'pipeline'}")
        for module in filter(None, modules):
            merge_lora(module)
    model.save(run.out / "pipeline", facts)
