"""Make an image tokenizer: codes for the latents of an autoencoder, which a masked transformer is trained on.

    roentgen train tokenizer --config mini-tokenizer --manifest data/sample/manifest.csv --out runs/tokens
    roentgen train tokenizer --manifest MANIFEST --vae runs/autoencoder/vae --groups 4,12 --codes 1024,1024 --out runs/t

`--kind product` rounds the latents of an existing autoencoder: its channels are split into groups, each with a
codebook made by k-means; no network is trained. `--kind vqgan` trains a VQ-GAN (Esser et al. 2021), continued by the
same command where it was stopped. Writes ``OUT/tokenizer``, for ``train/masked.py
--codes``, and ``OUT/tokenizer.json`` with reconstruction error and use of each codebook on the `val` images.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray

from roentgen.config import Count, Pixels, Range, Seed, Short, as_dict, flat, parse_settings, require, seed_of_32_bits
from roentgen.data.images import ImageSource, open_source
from roentgen.errors import told_of
from roentgen.files import new_folder, require_writable, write_atomic
from roentgen.generators.masked import tokenizer as T
from roentgen.generators.masked.vqgan import check_use
from roentgen.images import from_autoencoder
from roentgen.models import hub
from roentgen.models.autoencoder.latents import downsampling
from roentgen.recipes import CONFIGS
from roentgen.recipes.vqgan import Vq, train_vqgan
from roentgen.training.batches import content_key


@dataclass(frozen=True)
class Settings:
    """Settings of the tokenizer recipe."""

    manifest: Annotated[Path, "manifest with `train` and `val` images, or a folder of shards"]
    out: Annotated[Path, Short("-o"), "run folder"]
    kind: Annotated[
        Literal["product", "vqgan"], "product: k-means on an autoencoder's latents; vqgan: one that is trained"
    ] = "product"
    vae: Annotated[str, "autoencoder whose latents are rounded: mini, or a folder (see train/autoencoder.py)"] = "mini"
    size: Annotated[Pixels, "side of the square image in pixels"] = 256
    groups: Annotated[tuple[Annotated[int, Range(1, 4096)], ...], "latent channels of each group"] = (1, 2, 4, 9)
    codes: Annotated[
        tuple[Annotated[int, Range(2, T.MOST_CODES)], ...], "codes of each group"
    ] = (64, 256, 512, 512)  # fmt: skip
    fit_images: Annotated[Count, "training images that k-means sees, at most"] = 2000
    fit_latents: Annotated[Count, "latents of these that k-means sees, at most"] = 200_000
    vq: Annotated[Vq, "the VQ-GAN"] = field(default_factory=Vq)
    seed: Annotated[Seed, "seed of k-means, or of the VQ-GAN's weights, order and crops"] = 0


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="roentgen train tokenizer", about=__doc__, configs=CONFIGS)
    if s.kind == "vqgan":
        train, val = sources(s)
        require_writable(s.out, "--out")
        settings = {**flat(as_dict(s.vq)), "size": s.size, "seed": s.seed, "data": content_key(train.table)}
        started = time.perf_counter()
        model = train_vqgan(s.vq, train, s.out, seed=s.seed, settings=settings)
        if PartialState().is_main_process:
            finish(T.ImageTokenizer(model, [model.quantize.embedding.weight.detach().clone()]), val, s, started)
        return 0
    require(len(s.groups) == len(s.codes), "--groups and --codes must have as many numbers as each other")
    folder = hub.MINI / "vae" if s.vae == "mini" else Path(s.vae)
    with told_of("--vae"):
        autoencoder = T.load_autoencoder(folder)
    channels = autoencoder.config.latent_channels
    require(sum(s.groups) == channels, f"--groups {s.groups}: sum to {sum(s.groups)}; the latents have {channels}")
    factor = downsampling(autoencoder)
    require(s.size % factor == 0, f"--size {s.size}: must be a multiple of the autoencoder's factor, {factor}")
    train, val = sources(s)
    require_writable(s.out, "--out")
    started = time.perf_counter()
    made = T.ImageTokenizer(autoencoder, [torch.zeros(2, width) for width in s.groups], borrowed=s.vae == "mini")
    shown = np.unique(np.linspace(0, len(train.table) - 1, num=min(s.fit_images, len(train.table))).astype(int))
    values = torch.cat([made.latents(train.read_many(shown[n : n + 32])) for n in range(0, len(shown), 32)])
    made.centres = k_means(values, s)
    finish(made, val, s, started)
    return 0


def sources(s: Settings) -> tuple[ImageSource, ImageSource]:
    """Training and validation images."""
    train, val = (open_source(s.manifest, splits=(split,), size=s.size) for split in ("train", "val"))
    require(len(train.table) > 0 and len(val.table) > 0, f"--manifest {s.manifest} needs `train` and `val` images")
    return train, val


def finish(made: T.ImageTokenizer, val: ImageSource, s: Settings, started: float) -> None:
    """Measure, write and print what was made; UserError where a codebook has collapsed."""
    facts: dict[str, Any] = {"settings": as_dict(s), **measure(made, val), "hash": made.hash}
    facts["seconds"] = time.perf_counter() - started
    with new_folder(s.out / "tokenizer") as temporary:
        made.save(temporary)
        # Tells what it is to those who try to generate with it.
        (temporary / "roentgen.json").write_text(json.dumps({"family": "masked", "name": "tokenizer"}) + "\n")
    write_atomic(s.out / "tokenizer.json", (json.dumps(facts, indent=1) + "\n").encode())
    for number, group in enumerate(facts["groups"]):
        print(f"group {number}: {group['codes']} codes, {group['used']:.0%} used, perplexity {group['perplexity']:.0f}")
    print(f"mean error in grey levels: {facts['error']:.2f} by codes, {facts['error_continuous']:.2f} without rounding")
    print(s.out / "tokenizer")


def k_means(values: torch.Tensor, s: Settings) -> list[torch.Tensor]:
    """Centres (K, C) of each group of channels of the latents (N, C, h, w)."""
    from sklearn.cluster import MiniBatchKMeans

    rows = values.permute(0, 2, 3, 1).flatten(0, 2).numpy()
    chosen = np.random.default_rng(s.seed).permutation(len(rows))[: s.fit_latents]
    centres, first = [], 0
    for width, count in zip(s.groups, s.codes, strict=True):
        part = np.ascontiguousarray(rows[chosen, first : first + width])
        require(len(part) >= count, f"--codes {count}: more than the {len(part)} latents that there are to learn from")
        found = MiniBatchKMeans(
            count,
            batch_size=8192,
            n_init=1,
            max_iter=20,
            random_state=seed_of_32_bits(s.seed),
            init_size=3 * count + 5000,
        ).fit(part)
        centres.append(torch.from_numpy(found.cluster_centers_.astype(np.float32)))
        first += width
    return centres


def measure(made: T.ImageTokenizer, source: ImageSource, count: int = 64) -> dict[str, Any]:
    """Error in grey levels with and without rounding, and use of each codebook, on at most ``count`` images."""
    rows = np.unique(np.linspace(0, len(source.table) - 1, num=min(count, len(source.table))).astype(int))
    rounded, exact, codes = 0.0, 0.0, []
    for start in range(0, len(rows), 8):
        pixels = source.read_many(rows[start : start + 8])
        mine = made.encode(pixels)
        codes.append(mine)
        side = pixels.shape[1] // made.factor
        rounded += error(pixels, from_autoencoder(made.decode(mine, side))) * len(pixels)
        with torch.no_grad():
            whole = from_autoencoder(made.decode_latents(made.latents(pixels)))
        exact += error(pixels, whole) * len(pixels)
    together = torch.cat(codes)
    groups = []
    for number, size in enumerate(made.sizes):
        check_use(together[..., number], size, f"--out, group {number}")
        used, perplexity = T.use(together[..., number], size)
        groups.append({"channels": made.channels[number], "codes": size, "used": used, "perplexity": perplexity})
    return {"error": rounded / len(rows), "error_continuous": exact / len(rows), "images": len(rows), "groups": groups}


def error(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> float:
    """Mean difference in grey levels."""
    return float(np.abs(before.astype(float) - after).mean())
