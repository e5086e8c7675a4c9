"""Pipeline folders that the benchmarks make for themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from timing import last_line, python_path

from roentgen.errors import UserError

MADE = ("mini", "sd15-random")


def make_model(name: str, place: Path) -> None:
    """``write_model`` in a process of its own: this one stays without torch, out of the way of what it measures."""
    beside = f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parent)!r}); import made_models; "
    code = f"{beside}made_models.write_model({name!r}, {str(place)!r})"
    environment = os.environ | {"PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1"}
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if made.returncode != 0:
        raise UserError(f"--model {name}: cannot be made ({last_line(made.stderr)})")


def write_model(name: str, folder: str) -> None:
    """Save the benchmark's model ``name`` as a pipeline folder that both sides load."""
    import torch
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    from roentgen.models import hub

    torch.manual_seed(0)
    if name == "mini":
        pipe: Any = StableDiffusionPipeline.from_pretrained(hub.MINI, dtype=torch.float32)
    else:
        tokenizer = CLIPTokenizer.from_pretrained(hub.MINI / "tokenizer", model_max_length=77)
        ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        pipe = StableDiffusionPipeline(
            **stable_diffusion(**ids),
            tokenizer=tokenizer,
            scheduler=PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(folder)


def stable_diffusion(side: int = 64, **text: Any) -> dict[str, Any]:
    """The networks of Stable Diffusion 1.x with random weights, on the current device.

    side: of the latents; 64 is 512 pixels. text: further settings of its text encoder.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    return {
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=8 * side,
        ),
        "unet": UNet2DConditionModel(sample_size=side, cross_attention_dim=768),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=77,
                hidden_act="quick_gelu",
                **text,
            )
        ),
    }
