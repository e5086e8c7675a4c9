"""The loop of ``roentgen train report`` for reporters that write text: xreport, git, blip, encoder-decoder."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from roentgen.config import require
from roentgen.data.manifest import read_manifest
from roentgen.errors import UserError
from roentgen.files import require_writable
from roentgen.images import from_autoencoder, read_image, to_autoencoder
from roentgen.metrics.text.report_scores import bleu_counts, corpus_bleu, rouge
from roentgen.recipes.classifier import augment
from roentgen.recipes.report_reward import Critic, agreement, preference_loss, read_preferences
from roentgen.recipes.report_settings import STARTS, Recipe, Run
from roentgen.recipes.report_words import text_loss, tokens_of
from roentgen.reports import xreport
from roentgen.reports.captioners import Captioner, open_captioner, plain_pixels, write_texts
from roentgen.reports.finding_net import squash
from roentgen.reports.load import find_reporter
from roentgen.training.checkpoints import Checkpoints, load_trained_state, trained_state
from roentgen.training.order import batch_generator, batch_indices
from roentgen.training.schedule import cosine_rate
from roentgen.training.setup import share_of_batch

FEW_DISTINCT = 0.1  # share of distinct generated texts below which a warning is printed
BEST = "best.pt"


def train_captions(recipe: Recipe, run: Run, accelerator: Accelerator, settings: dict[str, Any]) -> int:
    """Train and write the reporter; ``settings`` are what a checkpoint must have been made with."""
    table = read_manifest(run.manifest, splits=["train", "val"])
    train, val = (table[table["split"] == split].reset_index(drop=True) for split in ("train", "val"))
    require(len(train) > 0 and len(val) > 0, f"--manifest {run.manifest}: needs images of the splits train and val")
    if recipe.sample < 1:
        train = train.sample(frac=recipe.sample, random_state=recipe.seed).reset_index(drop=True)
        require(len(train) > 0, f"--sample {recipe.sample:g}: leaves no training image; use more")
    if run.preferences is not None:
        require(not recipe.reward, "--preferences and --reward: one at a time")
        train = read_preferences(run.preferences)
    require(
        run.preferences is not None or train["text"].nunique() > 1,
        f"--manifest {run.manifest}: all {len(train)} training texts are the same, so there is nothing to learn; "
        "prepare it again with texts",
    )
    step = recipe.batch_size * recipe.accumulate
    total = round(recipe.epochs * len(train)) if recipe.epochs is not None else recipe.images
    total = -(-total // step) * step
    mine = share_of_batch(accelerator, recipe.batch_size)
    captioner = start_of(recipe, train["text"].tolist())
    ids, mask = tokens_of(captioner, table_texts(train, val), recipe.max_tokens, run.manifest)
    worse = None
    if run.preferences is not None:
        worse = tokens_of(captioner, train["worse"].tolist(), recipe.max_tokens, run.preferences)
    trained = choose_trained(captioner, recipe)
    accelerator.print(
        f"{len(train)} training images, {len(val)} for validation; {recipe.arch} with {trained:,} trained weights; "
        f"{total} images to see",
        flush=True,
    )
    if run.dry_run:
        return 0
    torch.manual_seed(recipe.seed)
    model = with_adapters(captioner.model, recipe.lora_rank) if recipe.lora_rank else captioner.model
    captioner = dataclasses.replace(captioner, model=model)
    start = None
    if recipe.reward or worse is not None:  # both are held near the model as it was
        start = copy.deepcopy(model).eval().requires_grad_(False).to(accelerator.device)
    critic = Critic(captioner, start, recipe.kl, recipe.max_tokens) if recipe.reward else None
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate or 0.0, weight_decay=recipe.weight_decay)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    checkpoints = Checkpoints(run.out / "checkpoints")
    checkpoints.tidy()
    images, best, stale = 0, float("inf"), 0
    saved = checkpoints.latest()
    if saved is not None:
        checkpoints.check_same(saved["settings"], settings, free=frozenset())
        checkpoints.load_into(saved, model, load_trained_state)
        optimizer.load_state_dict(saved["optimizer"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(saved["scaler"])
        images, best, stale = saved["images"], saved["best"], saved["stale"]
        accelerator.print(f"continuing at {images} images", flush=True)
    log = SummaryWriter(run.out / "log") if accelerator.is_main_process else None

    # The loop: each batch is a function of its number alone, so that a run that was stopped goes on as if it had not.
    running: list[Tensor] = []
    bar = tqdm(total=total, initial=images, unit="img", file=sys.stderr, disable=not accelerator.is_main_process)
    while images < total and stale < run.patience:
        number = images // recipe.batch_size
        generator = batch_generator(recipe.seed, number)
        rows = batch_indices(None, len(train), size=recipe.batch_size, seed=recipe.seed, batch=number)[mine]
        pixels = squares(train["image"].iloc[rows.numpy()], captioner.size)
        if recipe.augment:
            pixels = from_autoencoder(augment(to_autoencoder(pixels), generator))
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)) + accelerator.process_index)  # dropout
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(images, peak=recipe.rate or 0.0, warmup=recipe.warmup, total=total, floor=0.01)
        prepared.train()
        inputs = captioner.pixels(list(pixels)).to(accelerator.device)
        with accelerator.accumulate(prepared), accelerator.autocast():
            if critic is not None:
                loss = critic.loss(prepared, inputs, [train["text"].iloc[int(row)] for row in rows], generator)
            elif worse is not None:
                losing = (worse[0][rows], worse[1][rows])
                loss = preference_loss(
                    captioner,
                    prepared,
                    start,
                    pixels=inputs,
                    better=(ids[rows], mask[rows]),
                    worse=losing,
                    beta=recipe.beta,
                )
            else:
                loss = text_loss(captioner, prepared, inputs, ids[rows], mask[rows])
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        images += recipe.batch_size
        running.append(loss.detach())
        bar.update(recipe.batch_size)

        ends = images % step == 0  # a checkpoint lies between optimiser steps only
        if ends and (images // run.eval_every > (images - step) // run.eval_every or images >= total):
            mean = torch.stack(running).mean().item()
            require(np.isfinite(mean), f"the loss is not finite after {images} images; lower --rate")
            running.clear()
            error = validation_loss(captioner, val, ids[len(train) :], mask[len(train) :], accelerator.device)
            scores = written(captioner, val[: run.validate], run, recipe.max_tokens - 1)
            # What is to fall: the loss; with a reward the disagreement. With preferences the last weights are taken.
            goal = error if start is None else 1 - scores["agreement"] if critic is not None else -float(images)
            stale = 0 if goal < best else stale + 1
            if accelerator.is_main_process:
                print(
                    f"{images} images, loss {mean:.4f}, validation loss {error:.4f}, "
                    + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()),
                    flush=True,
                )
                if log is not None:
                    for name, value in {"train/loss": mean, "val/loss": error, **scores}.items():
                        log.add_scalar(name, value, images)
                if stale == 0:
                    torch.save(trained_state(model), checkpoints.folder.parent / BEST)
                checkpoints.save(
                    images,
                    {
                        "model": trained_state(model), "optimizer": optimizer.state_dict(), "best": min(best, goal),
                        "stale": stale, "settings": settings,
                        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
                    },
                )  # fmt: skip
            best = min(best, goal)
            accelerator.wait_for_everyone()
    bar.close()
    if stale >= run.patience:
        accelerator.print(f"no better for {run.patience} validations: stopped at {images} images", flush=True)
    if accelerator.is_main_process:
        load_trained_state(model, torch.load(run.out / BEST, map_location="cpu", weights_only=True))
        write_reporter(captioner, recipe, run)
        print(json.dumps({"best": best}), flush=True)
        print(run.out)
    return 0


def table_texts(train: pd.DataFrame, val: pd.DataFrame) -> list[str]:
    """Texts of training images, then of validation images."""
    return [*train["text"], *val["text"]]


# ---------------------------------------------------------------------------------------- what is trained


def start_of(recipe: Recipe, texts: Sequence[str]) -> Captioner:
    """The model that training starts from; UserError where it is not there or of another architecture."""
    if recipe.arch == "xreport":
        values = dataclasses.asdict(recipe.xreport)
        tokenizer: Any
        if recipe.xreport.tokenizer == "words":
            tokenizer = xreport.make_tokenizer(texts)
        else:
            tokenizer = _tokenizer(recipe.xreport.tokenizer)
        torch.manual_seed(recipe.seed)
        model = xreport.build(values, tokenizer, max_tokens=recipe.max_tokens, flag="--xreport.image-encoder")
        return Captioner("xreport", model, tokenizer, recipe.xreport.image_shape, plain_pixels)
    name = recipe.model or STARTS.get(recipe.arch)
    require(name is not None, "--model: --arch encoder-decoder has no base of its own; give a folder or hub id")
    captioner = open_captioner(find_reporter(str(name)))
    require(
        captioner.arch == recipe.arch,
        f"--model {name}: is of the architecture {captioner.arch}; use --arch {captioner.arch} or another model",
    )
    return captioner


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    from roentgen.models import hub, loading

    folder = hub.local(name)
    require(
        folder is not None,
        f"--xreport.tokenizer {name}: not on this disk; where there is a network run `hf download {name} --include "
        "'*.json' '*.txt' --local-dir FOLDER`, then give the folder; `words` makes one from the training texts",
    )
    made = AutoTokenizer.from_pretrained(folder, **loading.SAFE)
    missing = [kind for kind in ("cls", "sep", "pad") if getattr(made, f"{kind}_token_id") is None]
    require(not missing, f"--xreport.tokenizer {name}: has no {', '.join(missing)} token; use a BERT-like tokenizer")
    return made


def choose_trained(captioner: Captioner, recipe: Recipe) -> int:
    """Say which weights are trained; returns how many."""
    model = captioner.model
    if captioner.arch != "xreport":  # whose pretrained encoder is frozen already, and stays so
        model.requires_grad_(True)
    if recipe.freeze_encoder:
        encoder = encoder_of(captioner)
        encoder.requires_grad_(False)
        layers = [
            module
            for name, module in encoder.named_modules()
            if name.rpartition(".")[2].isdecimal() and "layer" in name.rpartition(".")[0].rpartition(".")[2]
        ]
        require(
            recipe.unfreeze_layers <= len(layers),
            f"--unfreeze-layers {recipe.unfreeze_layers}: the image encoder has {len(layers)} layers",
        )
        for layer in layers[len(layers) - recipe.unfreeze_layers :]:
            layer.requires_grad_(True)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def encoder_of(captioner: Captioner) -> Any:
    """The part of the model that sees."""
    if captioner.arch == "git":
        return captioner.model.git.image_encoder
    return captioner.model.vision_model if captioner.arch == "blip" else captioner.model.encoder


def with_adapters(model: Any, rank: int) -> Any:
    """``model`` with LoRA (Hu et al. 2022) beside every linear layer of its attention; only they are trained."""
    from peft import LoraConfig, inject_adapter_in_model

    names = ("query", "key", "value", "q_proj", "k_proj", "v_proj", "qkv")
    wanted = sorted(
        {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.split(".")[-1] in names}
    )
    require(bool(wanted), "--lora-rank: this model has no attention layers that adapters fit; use 0")
    return inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=wanted), model)


# ------------------------------------------------------------------------------------------ loss and texts


def squares(paths: Sequence[str], size: int) -> np.ndarray:
    """uint8 (N, size, size) of image files."""
    return np.stack([squash(read_image(path), size) for path in paths])


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


@torch.no_grad()
def validation_loss(
    captioner: Captioner, val: pd.DataFrame, ids: Tensor, mask: Tensor, device: torch.device, *, most: int = 256
) -> float:
    """``text_loss`` over the first validation images, at most ``most``; a mean over batches of 16."""
    losses = []
    with _evaluating(captioner.model):
        for start in range(0, min(len(val), most), 16):
            stop = min(start + 16, len(val))
            pixels = captioner.pixels(list(squares(val["image"].iloc[start:stop], captioner.size))).to(device)
            losses.append(text_loss(captioner, captioner.model, pixels, ids[start:stop], mask[start:stop]).item())
    return float(np.mean(losses))


def written(captioner: Captioner, val: pd.DataFrame, run: Run, longest: int) -> dict[str, float]:
    """Generated texts of validation images against theirs; says so where they are all alike."""
    images = [read_image(path) for path in val["image"]]
    with _evaluating(captioner.model):
        texts = write_texts(captioner, images, beams=run.beams, no_repeat=run.no_repeat or None, max_tokens=longest)
    references = val["text"].tolist()
    distinct = len(set(texts)) / len(texts)
    if distinct < FEW_DISTINCT or len(set(texts)) == 1:
        print(f"warning: one text for most images ({texts[0][:60]!r}): lower --rate, or train longer", flush=True)
    return {
        "BLEU-4": float(corpus_bleu(bleu_counts(texts, references).sum(0, keepdims=True))[0]),
        "ROUGE-L": float(rouge(texts, references, "L").mean()),
        "agreement": float(np.mean([agreement(*pair) for pair in zip(texts, references, strict=True)])),
        "distinct": distinct,
    }


def write_reporter(captioner: Captioner, recipe: Recipe, run: Run) -> None:
    """Write the folder that ``roentgen report --model`` reads; adapters are merged into the weights."""
    model = captioner.model
    if recipe.lora_rank:
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge()
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, module.get_base_layer())
    model.eval().to("cpu")
    settings = model.generation_config
    settings.max_new_tokens, settings.max_length = recipe.max_tokens - 1, None
    settings.num_beams, settings.no_repeat_ngram_size = run.beams, run.no_repeat or None
    try:
        if recipe.arch == "xreport":
            values = dataclasses.asdict(recipe.xreport)
            xreport.save(run.out, model, captioner.tokenizer, values=values, max_tokens=recipe.max_tokens)
            return
        require_writable(run.out, "--out")
        if recipe.arch == "encoder-decoder" and model.config.decoder_start_token_id is None:
            start = captioner.tokenizer.cls_token_id or captioner.tokenizer.bos_token_id
            model.config.decoder_start_token_id = settings.decoder_start_token_id = start
        model.save_pretrained(run.out)
        captioner.tokenizer.save_pretrained(run.out)
        captioner.processor.save_pretrained(run.out)
    except OSError as error:
        raise UserError(f"--out {run.out}: cannot be written ({error.strerror}); choose another folder") from None
