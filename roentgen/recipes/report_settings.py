"""Settings of ``roentgen train report``: what a continued run must keep, and what may change from call to call."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from roentgen.config import (
    BatchSize,
    Count,
    CountFromZero,
    HalfLife,
    PathOrName,
    Pixels,
    Range,
    Rate,
    Seed,
    Share,
    ShareBelowOne,
    Short,
    Weight,
)

ARCHITECTURES = ("labels", "xreport", "git", "blip", "encoder-decoder")
STARTS = {"git": "microsoft/git-base", "blip": "Salesforce/blip-image-captioning-base"}
"""Where training starts from by default, by architecture."""
RATES = {"labels": 1e-3, "xreport": 3e-4, "git": 1.5e-5, "blip": 5e-5, "encoder-decoder": 5e-5}
"""Default of ``rate``. GIT trained at higher ones comes to say one sentence for all images."""


@dataclass(frozen=True)
class LabelsRecipe:
    """Settings of ``--arch labels``."""

    findings: Annotated[
        tuple[str, ...] | None, "findings to learn (default: all with at least `min_positive` training images)"
    ] = None
    min_positive: Annotated[Count, "see findings"] = 100
    size: Annotated[Pixels, "side of the network's square in pixels, a multiple of 32"] = 224
    views: Annotated[int, Range(1, 64), "jittered views of each training image that are kept, the first as it is"] = 3
    frozen: Annotated[
        int, Range(1, 11), "ImageNet's first blocks that stay as they came; what they give is kept on disk"
    ] = 11
    backbone_rate: Annotated[Rate, "peak learning rate of ImageNet's other blocks"] = 3e-4
    dropout: Annotated[ShareBelowOne, "of the pooled features"] = 0.3
    smoothing: Annotated[ShareBelowOne, "of labels towards 0.5, as they are mined from reports"] = 0.02
    mil_weight: Annotated[Weight, "weight of the halves' loss against the image loss"] = 0.5
    side_weight: Annotated[Weight, "weight of the loss on known sides"] = 0.5
    box_weight: Annotated[Weight, "weight of the loss on boxes"] = 0.5
    box_boost: Annotated[Weight, "how much more often images with boxes are drawn"] = 3.0
    halflife: Annotated[HalfLife, "of the weight average, in images"] = 6_000.0
    imagenet: Annotated[bool, "start from ImageNet's weights; else from a random trunk, which stays frozen"] = True


@dataclass(frozen=True)
class XreportRecipe:
    """Settings of ``--arch xreport``, under XREPORT's own names."""

    image_encoder: Annotated[
        PathOrName, "`convolutional`, or a folder or hub id of a pretrained ViT or BEiT, which stays frozen"
    ] = "convolutional"
    tokenizer: Annotated[PathOrName, "folder or hub id of a tokenizer; `words` makes one from the training texts"] = (
        "words"
    )
    image_shape: Annotated[Pixels, "side of the image in pixels"] = 224
    embedding_dims: Annotated[int, Range(8, 8192), "width of the transformers"] = 256
    num_heads: Annotated[int, Range(1, 128), "attention heads"] = 4
    num_encoders: Annotated[int, Range(1, 64), "transformer encoders"] = 3
    num_decoders: Annotated[int, Range(1, 64), "transformer decoders"] = 3
    dropout: Annotated[ShareBelowOne, "of the transformers, in training only"] = 0.1


@dataclass(frozen=True)
class Recipe:
    """What must not change between a run and its continuation."""

    arch: Annotated[Literal["labels", "xreport", "git", "blip", "encoder-decoder"], "what is trained"] = "labels"
    model: Annotated[
        PathOrName | None,
        "folder or hub id to start from (git, blip, encoder-decoder; default: the published base); of --arch labels, a "
        "trained reporter, such as mini-report, that is only calibrated again, on the manifest's `val` images",
    ] = None
    images: Annotated[Count, Short("-n"), "length of training in images seen"] = 60_000
    epochs: Annotated[float | None, Range(0.001, 100_000), "the same in epochs; wins over images"] = None
    batch_size: Annotated[BatchSize, "images a step of one forward pass, over all processes"] = 32
    accumulate: Annotated[Count, "forward passes an optimiser step"] = 1
    rate: Annotated[Rate | None, "peak learning rate of AdamW (default: by architecture, see RATES)"] = None
    warmup: Annotated[CountFromZero, "images over which the rate rises"] = 1_000
    weight_decay: Annotated[float, Range(0, 100), "of AdamW"] = 0.05
    max_tokens: Annotated[int, Range(4, 8192), "tokens of a report at most; a longer text is an error"] = 128
    augment: Annotated[bool, "small shifts, zooms, turns and changes of contrast; never flips"] = True
    sample: Annotated[Share, "share of the training images to use"] = 1.0
    freeze_encoder: Annotated[bool, "keep the image encoder as it is"] = False
    unfreeze_layers: Annotated[CountFromZero, "with freeze_encoder: train this many of its last layers"] = 0
    reward: Annotated[
        bool, "reinforce by clinical agreement of the texts with their references; start from a trained --model"
    ] = False
    kl: Annotated[Weight, "with reward: weight of the divergence to the model at the start"] = 0.1
    beta: Annotated[Weight, "with preferences: how strongly they bind to the model at the start (DPO's beta)"] = 0.1
    lora_rank: Annotated[CountFromZero, "train adapters of this rank by peft instead of the weights; 0: weights"] = 0
    precision: Annotated[Literal["fp16", "bf16", "no"], "number format of the forward pass"] = "no"
    seed: Annotated[Seed, "seed of order, augmentation and dropout"] = 0
    labels: LabelsRecipe = field(default_factory=LabelsRecipe)
    xreport: XreportRecipe = field(default_factory=XreportRecipe)


@dataclass(frozen=True)
class Run:
    """What may change from call to call."""

    manifest: Annotated[Path, "manifest with `train` and `val` images"]
    out: Annotated[Path, Short("-o"), "folder for the reporter, its checkpoints and its log"]
    boxes: Annotated[
        tuple[Path, ...], "--arch labels: tables of boxes, metadata.csv of openchest or CSVs with image,label,x,y,..."
    ] = ()
    preferences: Annotated[
        Path | None, "CSV with image,report,rating (a radiologist's, higher is better): learn what is preferred, by DPO"
    ] = None
    eval_every: Annotated[Count, "images between validations"] = 6_000
    patience: Annotated[Count, "validations without a better one after which training stops"] = 10
    validate: Annotated[Count, "validation images for which reports are generated"] = 64
    beams: Annotated[int, Range(1, 64), "beams of generated text; 1 is greedy"] = 1
    no_repeat: Annotated[CountFromZero, "n-grams of this length never repeat in generated text; 0 lets them"] = 0
    cache: Annotated[Path | None, "folder for features or decoded images (default OUT/cache)"] = None
    licence: Annotated[str, "licence that is written into the reporter"] = ""
    dry_run: Annotated[bool, "print what would be done and stop"] = False
