"""What latents of several shapes keep of an X-ray: error of the best linear reconstruction, by factor and channels.

    python eval/latents.py --manifest MANIFEST --out eval/results/latents.json

Blockwise principal components are the best linear autoencoder of their shape, and known in seconds: the comparison that
decided between factor 8 and factor 16 for `mini`. Components are fitted on `train`, the error is that on `val`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from roentgen import errors
from roentgen.config import Count, Seed, parse_settings
from roentgen.data.images import load_pixels
from roentgen.data.manifest import train_and_val
from roentgen.files import require_writable
from roentgen.images import to_autoencoder
from roentgen.metrics.result import Context, write_result
from roentgen.metrics.statistics import Bootstrap
from roentgen.models.autoencoder import pca as pca_encoder


@dataclass(frozen=True)
class Settings:
    """Settings of the comparison."""

    manifest: Annotated[Path, "manifest with `train` and `val` images"]
    out: Annotated[Path, "result JSON"]
    shapes: Annotated[
        tuple[str, ...],
        "factor x channels of each latent shape",
    ] = ("8x4", "8x8", "16x8", "16x16", "16x32")
    images: Annotated[Count, "training images to fit on"] = 800
    seed: Annotated[Seed, "seed of the bootstrap"] = 0


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="eval/latents.py", about=__doc__)
    require_writable(s.out.parent, "--out")
    train, val = train_and_val(s.manifest, allow_empty_text=True)
    fitted = load_pixels(train["image"].tolist()[:: max(1, len(train) // s.images)], size=256).pixels
    x = to_autoencoder(load_pixels(val["image"].tolist(), size=256).pixels)
    rows = []
    for shape in s.shapes:
        factor, channels = (int(v) for v in shape.split("x"))
        pca = pca_encoder.fit(fitted, block=factor, channels=channels, whitening=1.0)
        back = torch.nn.functional.conv_transpose2d(
            pca.encode(x) / pca.scale.view(1, -1, 1, 1),
            pca.components.T.reshape(channels, 1, factor, factor),
            stride=factor,
        ) + pca.mean.view(1, 1, factor, factor).repeat(1, 1, 256 // factor, 256 // factor)
        error = ((back - x).abs().mean((1, 2, 3)) * 127.5).double().numpy()
        side = 256 // factor
        rows.append(
            {
                "factor": factor,
                "channels": channels,
                "latent_shape": [channels, side, side],
                "values": channels * side * side,
                "grey_levels": float(np.mean(error)),
                "ci": Bootstrap(seed=s.seed).mean(error, val["patient_id"].tolist())["ci"],
            }
        )
        print(rows[-1], flush=True)
    chosen = next((r for r in rows if (r["factor"], r["channels"]) == (16, 16)), rows[0])
    about = {"resize": "shorter side to 256 px, centre crop", "inputs": {"manifest": s.manifest.name}}
    write_result(
        s.out, metric="mean absolute error of the best linear reconstruction, grey levels of 255",
        value=chosen["grey_levels"], ci=chosen["ci"], ci_method="95 % percentile, bootstrap by patient", n=len(val),
        context=Context.of("eval/latents.py", s, **about), details={"shapes": rows},
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/latents.py"))
