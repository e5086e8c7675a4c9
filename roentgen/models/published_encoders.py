"""Dual encoders that others published: BioViL-T, BiomedCLIP and any CLIP of transformers, from files on this disk."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from roentgen.errors import UserError
from roentgen.files import explained, file_hash
from roentgen.models import hub, loading

BATCH = 32
BIOVIL_T, BIOVIL_T_WEIGHTS = "microsoft/BiomedVLP-BioViL-T", "biovil_t_image_model_proj_size_128.pt"
BIOMEDCLIP = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
BIOMEDCLIP_WEIGHTS = ("open_clip_pytorch_model.bin", "open_clip_model.safetensors")


@dataclass(frozen=True)
class FunctionEncoder:
    """A dual encoder made of two functions that take a batch and return vectors (n, D), of any length."""

    name: str
    chain: str
    hash: str
    encode_images: Callable[[Sequence[NDArray[np.uint8]]], Tensor]
    encode_texts: Callable[[Sequence[str]], Tensor]

    def images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return _unit_vectors(self.encode_images, images)

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return _unit_vectors(self.encode_texts, texts)


@torch.inference_mode()
def _unit_vectors(encode: Callable[[Any], Tensor], items: Sequence[Any]) -> NDArray[np.float32]:
    parts = [F.normalize(encode(part).float(), dim=1).cpu() for part in batches(items)]
    vectors: NDArray[np.float32] = torch.cat(parts).numpy()
    return vectors


def batches(items: Sequence[Any]) -> list[Sequence[Any]]:
    if not len(items):
        raise ValueError("nothing to encode")
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def _colour(image: NDArray[np.uint8]) -> Any:
    from PIL import Image

    return Image.fromarray(image).convert("RGB")


def load_clip(name: str, folder: Path, *, device: str = "cpu") -> FunctionEncoder:
    """Any CLIPModel of transformers, with its own processor (grey is repeated to three channels)."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    weights, _ = hub.pick_weights(path.name for path in folder.iterdir())
    if not weights:
        raise UserError(f"--dual-encoder {name}: no weights in {folder} (model.safetensors); fetch them as well")
    what = f"--dual-encoder {name}: {folder} cannot be loaded as a CLIPModel"
    needs = "it needs config.json, weights, tokenizer and preprocessor_config.json"
    processor, tokenizer, model = (
        loading.from_folder(kind, folder, what, needs, who=f"--dual-encoder {name}")
        for kind in (CLIPImageProcessor, AutoTokenizer, CLIPModel)
    )
    model = model.float().to(device)
    window = int(model.config.text_config.max_position_embeddings)

    def encode_images(images: Sequence[NDArray[np.uint8]]) -> Tensor:
        pixels = processor([_colour(image) for image in images], return_tensors="pt")["pixel_values"]
        return model.visual_projection(model.vision_model(pixels.to(device)).pooler_output)

    def encode_texts(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=window, return_tensors="pt")
        pooled = model.text_model(
            tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
        ).pooler_output
        return model.text_projection(pooled)

    chain = f"grey to RGB, CLIPImageProcessor of the model (size {processor.size}, crop {processor.crop_size})"
    return FunctionEncoder(name, chain, file_hash(folder / weights[0]), encode_images, encode_texts)


def load_biovil_t(name: str, folder: Path | None, *, device: str = "cpu") -> FunctionEncoder:
    """BioViL-T (Bannur et al., CVPR 2023) on single images, by Microsoft's own ``hi-ml-multimodal``."""
    files = f"{BIOVIL_T_WEIGHTS}, config.json, vocab.txt and pytorch_model.bin"
    _need_package(name, "health_multimodal", "hi-ml-multimodal")
    folder = _need_weights(name, folder, BIOVIL_T, having=(BIOVIL_T_WEIGHTS,), files=files)
    from health_multimodal.image.data.transforms import create_chest_xray_transform_for_inference
    from health_multimodal.image.model.model import ImageModel
    from health_multimodal.image.model.types import ImageEncoderType
    from health_multimodal.text.model import CXRBertModel, CXRBertTokenizer
    from PIL import Image

    with explained(f"--dual-encoder {name}: {folder} cannot be loaded", f"it needs {files}"):
        image_model = ImageModel(
            img_encoder_type=ImageEncoderType.RESNET50_MULTI_IMAGE,
            joint_feature_size=128,
            pretrained_model_path=folder / BIOVIL_T_WEIGHTS,
        )
        tokenizer = CXRBertTokenizer.from_pretrained(folder, local_files_only=True)
        loaded: Any = CXRBertModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    # Nothing here reads the head that guesses masked words.
    text_model = loading.nothing_missing(loaded, f"--dual-encoder {name}", unused=("cls.",)).eval().to(device)
    image_model = image_model.eval().to(device)
    transform = create_chest_xray_transform_for_inference(resize=512, center_crop_size=448)

    def encode_images(images: Sequence[NDArray[np.uint8]]) -> Tensor:
        pixels = torch.stack([transform(Image.fromarray(image)) for image in images])
        vectors: Tensor = image_model(pixels.to(device)).projected_global_embedding
        return vectors

    def encode_texts(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=512, return_tensors="pt")
        vectors: Tensor = text_model.get_projected_text_embeddings(
            input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
        )
        return vectors

    chain = "shorter side to 512 px by antialiased bilinear, centre crop 448, [0, 1], three equal channels"
    return FunctionEncoder(name, chain, file_hash(folder / BIOVIL_T_WEIGHTS), encode_images, encode_texts)


def load_biomedclip(name: str, folder: Path | None, *, device: str = "cpu") -> FunctionEncoder:
    """BiomedCLIP (Zhang et al. 2023) by ``open_clip``."""
    files = f"open_clip_config.json, the tokenizer and {BIOMEDCLIP_WEIGHTS[0]}"
    _need_package(name, "open_clip", "open-clip-torch")
    folder = _need_weights(name, folder, BIOMEDCLIP, having=BIOMEDCLIP_WEIGHTS, files=files)
    import open_clip

    # open_clip also wants the text model's configuration, by its hub id
    needs = (
        f"it needs {files} and the configuration of the text model that open_clip_config.json names in the Hugging "
        "Face cache"
    )
    with explained(f"--dual-encoder {name}: {folder} cannot be loaded by open_clip", needs):
        model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}", device=device)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model = model.eval()

    def encode_images(images: Sequence[NDArray[np.uint8]]) -> Tensor:
        vectors: Tensor = model.encode_image(torch.stack([transform(_colour(image)) for image in images]).to(device))
        return vectors

    def encode_texts(texts: Sequence[str]) -> Tensor:
        vectors: Tensor = model.encode_text(tokenizer(list(texts), context_length=256).to(device))
        return vectors

    weights = next(folder / file for file in BIOMEDCLIP_WEIGHTS if (folder / file).is_file())
    chain = "grey to RGB, open_clip's transform of the model (224 px)"
    return FunctionEncoder(name, chain, file_hash(weights), encode_images, encode_texts)


def _need_package(name: str, module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(f"--dual-encoder {name} needs the package {package}; run `pip install {package}`")


def _need_weights(name: str, folder: Path | None, hub_id: str, *, having: Sequence[str], files: str) -> Path:
    found = hub.snapshot(hub_id) if folder is None else folder
    if found is None or not any((found / file).is_file() for file in having):
        where = "not on this disk" if found is None else f"not in {found}"
        raise UserError(
            f"--dual-encoder {name}: {having[0]} is {where}; where there is a network run `hf download {hub_id} "
            f"--local-dir FOLDER`, which fetches {files}, then pass --dual-encoder {name.partition('=')[0]}=FOLDER"
        )
    return found


LOADERS: dict[str, Callable[..., FunctionEncoder]] = {"biovil-t": load_biovil_t, "biomedclip": load_biomedclip}
