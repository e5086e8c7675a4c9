"""Low-rank adapters (Hu et al. 2022) on a pipeline's parts, saved in the format that stock diffusers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from roentgen.errors import UserError
from roentgen.files import file_sha256, new_folder, reason, user_path
from roentgen.models.loading import check_safetensors

LORA_FILE = "pytorch_lora_weights.safetensors"
# Attention projections, as in diffusers' and kohya's training scripts, so that any loader knows the names.
UNET_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
CLIP_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")


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
            f"--lora.text_encoder: diffusers' LoRA format knows CLIP text encoders only, and this one is "
            f"{type(text_encoder).__name__}; set --lora.text_encoder false"
        )
    for module, layers in ((unet, UNET_LAYERS), (text_encoder, CLIP_LAYERS)):
        if module is not None:
            module.requires_grad_(False)
            module.add_adapter(
                LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=list(layers), init_lora_weights="gaussian")
            )


def save_lora(folder: Path, unet: Any, text_encoder: Any) -> None:
    """Write ``pytorch_lora_weights.safetensors`` from the modules that have adapters and are not None."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    given: dict[str, Any] = {}
    for name, module in (("unet", unet), ("text_encoder", text_encoder)):
        if module is not None:
            given[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
            config = module.peft_config["default"].to_dict()
            given[f"{name}_lora_adapter_metadata"] = {
                key: sorted(value) if isinstance(value, set) else value for key, value in config.items()
            }
    with new_folder(folder, advice="checkpoints are kept: run the same command again") as temporary:
        try:
            StableDiffusionPipeline.save_lora_weights(str(temporary), **given)
        except SafetensorError as error:
            raise OSError(f"cannot write the adapters: {error}") from error


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
    try:
        state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
            str(file), return_lora_metadata=True, unet_config=parts["unet"].config
        )
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
    except UserError:
        raise
    except Exception as error:  # peft, diffusers and torch each have their own for wrong names and shapes
        raise UserError(f"{unfit} ({reason(error)}); pass one that was trained on it") from error
    return file_sha256(file)
