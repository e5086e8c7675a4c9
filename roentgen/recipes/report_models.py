"""The models of ``roentgen train report`` that write text: their start, what of them is trained, their folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from roentgen.config import require
from roentgen.files import new_files
from roentgen.recipes.report_settings import STARTS, Recipe, Run
from roentgen.reports import xreport
from roentgen.reports.captioners import Captioner, open_captioner, plain_pixels
from roentgen.reports.load import find_reporter


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
    assert folder is not None
    what = f"--xreport.tokenizer {name}: cannot be loaded as a tokenizer"
    fix = "give a folder that `save_pretrained` or `hf download` wrote"
    made = loading.from_folder(AutoTokenizer, folder, what, fix)
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
    if recipe.arch == "xreport":
        values = dataclasses.asdict(recipe.xreport)
        xreport.save(run.out, model, captioner.tokenizer, values=values, max_tokens=recipe.max_tokens)
        return
    if recipe.arch == "encoder-decoder" and model.config.decoder_start_token_id is None:
        start = captioner.tokenizer.cls_token_id or captioner.tokenizer.bos_token_id
        model.config.decoder_start_token_id = settings.decoder_start_token_id = start
    with new_files(run.out) as made:
        model.save_pretrained(made)
        captioner.tokenizer.save_pretrained(made)
        captioner.processor.save_pretrained(made)
