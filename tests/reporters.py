"""Tiny random reporters of the real classes, in files that `save_pretrained` writes; and the recipe in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import recipe

SIDE = 32
TEXTS = ["Left pleural effusion.", "No acute cardiopulmonary abnormality.", "Cardiomegaly.", "Right pneumothorax."]


def tokenizer(folder: Path) -> Any:
    """A BERT tokenizer of the test texts' words, with the files of its real class."""
    from transformers import BertTokenizerFast

    from roentgen.reports.xreport import make_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = make_tokenizer(TEXTS, size=400)
    made = BertTokenizerFast(tokenizer_object=words.backend_tokenizer)
    made.save_pretrained(folder)
    return made


def processor(folder: Path, name: str) -> None:
    """The image processor of an architecture, for small images."""
    import transformers

    square = {"height": SIDE, "width": SIDE}
    settings = {"size": square}
    if name == "CLIPImageProcessor":
        settings = {"size": {"shortest_edge": SIDE}, "crop_size": square}
    getattr(transformers, name)(**settings).save_pretrained(folder)


def git(folder: Path, seed: int = 0) -> Path:
    """A GitForCausalLM of random weights."""
    import torch
    from transformers import GitConfig, GitForCausalLM

    words = tokenizer(folder)
    torch.manual_seed(seed)
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 16, "projection_dim": 16,
    }  # fmt: skip
    config = GitConfig(
        vision_config=vision, vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40, bos_token_id=words.cls_token_id,
        eos_token_id=words.sep_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    GitForCausalLM(config).save_pretrained(folder)
    processor(folder, "CLIPImageProcessor")
    return folder


def blip(folder: Path, seed: int = 0) -> Path:
    """A BlipForConditionalGeneration of random weights."""
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration

    words = tokenizer(folder)
    words.add_special_tokens({"additional_special_tokens": ["[DEC]"]})
    words.save_pretrained(folder)
    torch.manual_seed(seed)
    config = BlipConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 32,
            "projection_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 40,
            "bos_token_id": words.convert_tokens_to_ids("[DEC]"), "eos_token_id": words.sep_token_id,
            "pad_token_id": words.pad_token_id, "sep_token_id": words.sep_token_id,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": SIDE, "patch_size": 16, "projection_dim": 16,
        },
        projection_dim=16,
    )  # fmt: skip
    BlipForConditionalGeneration(config).save_pretrained(folder)
    processor(folder, "BlipImageProcessor")
    return folder


def encoder_decoder(folder: Path, seed: int = 0) -> Path:
    """A VisionEncoderDecoderModel of a ViT and a BERT, of random weights."""
    import torch
    from transformers import BertConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    words = tokenizer(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(image_size=SIDE, patch_size=16, **sizes),
        BertConfig(
            vocab_size=len(words), max_position_embeddings=40, is_decoder=True, add_cross_attention=True, **sizes
        ),
    )
    config.decoder_start_token_id, config.pad_token_id = words.cls_token_id, words.pad_token_id
    config.eos_token_id = words.sep_token_id
    VisionEncoderDecoderModel(config).save_pretrained(folder)
    processor(folder, "ViTImageProcessor")
    return folder


MAKERS = {"git": git, "blip": blip, "encoder-decoder": encoder_decoder}
XREPORT = [
    *("--xreport.image-shape", SIDE, "--xreport.embedding-dims", 16, "--xreport.num-heads", 2),
    *("--xreport.num-encoders", 1, "--xreport.num-decoders", 1),
]


def manifest(folder: Path, *, train: int = 8, val: int = 4, texts: list[str] = TEXTS) -> Path:
    """Random images whose texts tell how bright they are."""
    import pandas as pd
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(train + val):
        kind = number % len(texts)
        pixels = rng.integers(0, 60, (SIDE + 8, SIDE)) + 60 * kind
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(
            {
                "image": f"{number}.png", "text": texts[kind], "patient_id": number,
                "split": "train" if number < train else "val",
            }
        )  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def good(*flags: object) -> str:
    """A run that must end well; what it printed."""
    return recipe.good(*flags, name="report").out


def refused(*flags: object) -> str:
    """The one sentence with which a run is refused."""
    return recipe.refused(*flags, name="report")
