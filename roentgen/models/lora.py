"""Low-rank adapters (Hu et al. 2022) on a pipeline's parts, saved as diffusers reads them and as kohya's tools do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from roentgen.errors import UserError
from roentgen.files import explained, file_sha256, new_folder, user_path
from roentgen.models.loading import check_safetensors

LORA_FILE = "pytorch_lora_weights.safetensors"
# Attention projections, as in diffusers' and kohya's training scripts, so that any loader knows the names.
UNET_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
CLIP_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")
KOHYA_FILE = "kohya/lora.safetensors"  # a folder of its own: diffusers takes one file a folder
KOHYA_PREFIX = {"unet": "lora_unet", "text_encoder": "lora_te"}


def add_lora(unet: Any, text_encoder: Any, *, rank: int, alpha: int | None) -> None:
    """Add adapters of ``rank`` to the modules that are not None; only the adapters are trainable afterwards.

    ``alpha`` is the numerator of LoRA's scale alpha / rank (None: equal to the rank).
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise UserError("--lora.rank needs the package peft; install it with `pip install peft`") from None
    if text_encoder is not None and type(text_encoder).__name__ != "CLIPTextModel":
        raise UserError(
            f"--lora.text-encoder: diffusers' LoRA format knows CLIP text encoders only, and this one is "
            f"{type(text_encoder).__name__}; set --lora.text-encoder false"
        )
    for module, layers in ((unet, UNET_LAYERS), (text_encoder, CLIP_LAYERS)):
        if module is not None:
            module.requires_grad_(False)
            module.add_adapter(
                LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=list(layers), init_lora_weights="gaussian")
            )


def save_lora(folder: Path, unet: Any, text_encoder: Any) -> None:
    """Write the adapters of the modules that are not None: for diffusers, and under kohya's names (ComfyUI,
    sd-scripts). Beside the weights the files tell rank, scale and layers, and nothing of the machine."""
    import json

    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    kohya: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    for part, module, layers in (("unet", unet, UNET_LAYERS), ("text_encoder", text_encoder, CLIP_LAYERS)):
        if module is None:
            continue
        config = module.peft_config["default"]
        facts = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": list(layers)}
        facts |= {"rank_pattern": {}, "alpha_pattern": {}}  # diffusers 0.35 wants them
        told |= {f"{part}.{key}": value for key, value in facts.items()}
        for name, value in get_peft_model_state_dict(module).items():
            layer, kind = _split(name)
            if part == "text_encoder" and not layer.startswith("text_model."):  # as transformers names it since 5.6
                layer = f"text_model.{layer}"
            value = value.detach().cpu().contiguous()
            tensors[f"{part}.{layer}.lora_{kind}.weight"] = value
            stem = f"{KOHYA_PREFIX[part]}_{layer.replace('.', '_')}"
            kohya[f"{stem}.lora_{'down' if kind == 'A' else 'up'}.weight"] = value.clone()
            kohya[f"{stem}.alpha"] = torch.tensor(float(config.lora_alpha))
    with new_folder(folder, advice="checkpoints are kept: run the same command again") as temporary:
        try:
            (temporary / KOHYA_FILE).parent.mkdir()
            header = {"format": "pt", "lora_adapter_metadata": json.dumps(told)}
            save_file(tensors, temporary / LORA_FILE, metadata=header)
            save_file(kohya, temporary / KOHYA_FILE, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"cannot write the adapters: {error}") from error


def _split(name: str) -> tuple[str, str]:
    """Layer, and A or B, of a key of peft's state: ``base_model.model.a.b.lora_A.weight`` -> ``a.b``, ``A``."""
    found = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight", name)
    assert found is not None, name
    return found[1], found[2]


def merge_lora(module: Any) -> None:
    """Add the adapters into the weights and take them off, so that an ordinary module remains."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
    recurse_remove_peft_layers(module)
    module._hf_peft_config_loaded = False
    del module.peft_config


def find_lora(path: str | Path) -> Path:
    """The file of ``--lora``, given itself or by its folder; UserError if there is none or it is damaged."""
    file = user_path(str(path))
    if file.is_dir():
        file = file / LORA_FILE
    if not file.is_file():
        raise UserError(f"--lora {path}: no such file, and no folder with {LORA_FILE}; pass what LoRA training wrote")
    if file.suffix != ".safetensors":
        raise UserError(f"--lora {path}: not a .safetensors file; pass the {LORA_FILE} that LoRA training wrote")
    check_safetensors(file)
    return file


def apply_lora(file: Path, parts: dict[str, Any]) -> str:
    """Merge a diffusers LoRA into U-Net and text encoder; return the SHA-256 of its file.

    diffusers' own loader reads it, so that all formats that it knows work. UserError if peft is not installed or the
    LoRA was made for another model; ``parts`` are not to be used then.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise UserError("--lora needs the package peft; install it with `pip install peft`") from None
    from diffusers import StableDiffusionPipeline

    adders = {
        "unet": StableDiffusionPipeline.load_lora_into_unet,
        "text_encoder": StableDiffusionPipeline.load_lora_into_text_encoder,
    }
    unfit = f"--lora {file}: does not fit this model"
    with explained(unfit, "pass one that was trained on it"):
        state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
            str(file.parent),
            weight_name=file.name,  # before 0.36 diffusers looks on the hub for a file without a name
            return_lora_metadata=True,
            unet_config=parts["unet"].config,
        )
        if metadata is not None:  # files of earlier versions told rank, scale and layers alone
            told = {key.split(".")[0] for key in metadata}
            metadata = {f"{name}.rank_pattern": {} for name in told & adders.keys()} | metadata
        strange = [key for key in state if key.split(".")[0] not in adders or "lora" not in key]
        if strange or not state:
            raise UserError(f"{unfit} ({strange[0] if strange else 'it is empty'}); pass a LoRA for Stable Diffusion")
        for name, add in adders.items():
            count = sum(key.startswith(f"{name}.") for key in state)
            if count:
                add(state, network_alphas=alphas, metadata=metadata, **{name: parts[name]})
                found = sum("lora_" in key for key, _ in parts[name].named_parameters())
                if found != count:  # diffusers only warns of what has no place
                    raise UserError(f"{unfit} ({count} of its tensors are for the {name}, which takes {found})")
                merge_lora(parts[name])
                parts[name].requires_grad_(False)
    return file_sha256(file)
