"""What an invisible watermark would cost generated X-rays, and what it would survive.

    python benchmarks/watermark.py --out benchmarks/results/watermark.json --update docs/reliability.md
    python benchmarks/watermark.py --result benchmarks/results/watermark.json --update docs/reliability.md

The library is `invisible-watermark` (frequency domain, no weights; Stable Diffusion's own scripts use it), 32 bits in
images of 256 pixels. Needs: pip install invisible-watermark
"""

from __future__ import annotations

import importlib.metadata
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timing import require_packages

from roentgen import errors
from roentgen.config import Count, Seed, parse_settings
from roentgen.generators.generate import generate, load_model
from roentgen.metrics.report.tables import Reported
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import write_result
from roentgen.metrics.sharpness import sharpness_of

NAME = "watermark"
LIBRARY = "invisible-watermark"
METHODS = ("dwtDct", "dwtDctSvd")
BITS = 32
TEXTS = ("left pleural effusion", "cardiomegaly", "no acute cardiopulmonary process", "right pneumothorax")
SCALES = [36, 0, 0]
"""Strength in luminance and both colours. The library's own, [0, 36, 36], marks colours, of which an X-ray has none."""
BAND = "power at 32-64 cycles"
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Settings(Reported):
    """Mark generated images by each method, change them as re-saving does, and read the marks."""

    images: Annotated[Count, "images that are drawn by `mini`"] = 24
    seed: Annotated[Seed, "seed of the first image, and of the bits"] = 0


def jpeg(quality: int) -> Callable[[Pixels], Pixels]:
    """Saving as JPEG of that quality and reading again."""

    def again(pixels: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file).convert("L"))

    return again


def resized(side: int) -> Callable[[Pixels], Pixels]:
    """Resizing to ``side`` pixels and back, as the preparation of a data set does."""

    def again(pixels: Pixels) -> Pixels:
        small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(small.resize(pixels.shape[::-1], Image.Resampling.BICUBIC))

    return again


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "as it is": lambda pixels: pixels,
    "JPEG 95": jpeg(95),
    "JPEG 75": jpeg(75),
    "resized to 224 and back": resized(224),
    "moved by five pixels": lambda pixels: np.pad(pixels[5:, 5:], ((0, 5), (0, 5)), mode="edge"),
    "contrast of 110 %": lambda pixels: np.clip((pixels - 128.0) * 1.1 + 128, 0, 255).astype(np.uint8),
}


def run(s: Settings, out: Path) -> None:
    """Every method on the same images; written to ``out``."""
    require_packages([LIBRARY])
    from imwatermark import WatermarkDecoder, WatermarkEncoder

    images, seed, model = s.images, s.seed, load_model("mini")
    texts = [TEXTS[number % len(TEXTS)] for number in range(images)]
    made = generate(model, texts, seeds=range(seed, seed + images), batch_size=8)
    drawn = np.stack([each.image for each in made])
    bits = np.random.default_rng(seed).integers(0, 2, BITS).tolist()
    found: dict[str, Any] = {}
    for method in METHODS:
        encoder = WatermarkEncoder()
        encoder.set_watermark("bits", bits)
        marked = np.stack(
            [encoder.encode(np.repeat(one[..., None], 3, axis=2), method, scales=SCALES)[..., 1] for one in drawn]
        )
        apart = np.abs(marked.astype(int) - drawn)

        def right(pixels: Pixels, method: str = method) -> float:
            read = WatermarkDecoder("bits", BITS).decode(np.repeat(pixels[..., None], 3, axis=2), method, scales=SCALES)
            return float(np.mean(np.asarray(read, dtype=int) == bits))

        found[method] = {
            "mean_change": float(apart.mean()),
            "largest_change": int(apart.max()),
            "power_before": float(sharpness_of(drawn)[BAND]),
            "power_after": float(sharpness_of(marked)[BAND]),
            "unmarked": float(np.mean([right(one) for one in drawn])),
            "bits": {name: float(np.mean([right(change(one)) for one in marked])) for name, change in CHANGES.items()},
        }
    context = s.context(
        "benchmarks/watermark.py", extractor=f"{LIBRARY} {importlib.metadata.version(LIBRARY)}", resize="none",
        settings={"bits": BITS}, model={"name": model.info.name, "hash": model.info.hash},
    )  # fmt: skip
    worst = min(found[METHODS[0]]["bits"].values())
    write_result(
        out, metric=f"bits of {METHODS[0]} read rightly after the worst of the changes", value=worst, ci=(worst, worst),
        ci_method="none: a mean over images", n=images, context=context, details={"methods": found},
    )  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """Markdown: cost and survival of each method."""
    methods = result["details"]["methods"]
    rows = [["mean change, grey levels"] + [f"{one['mean_change']:.2f}" for one in methods.values()]]
    rows.append(["largest change"] + [str(one["largest_change"]) for one in methods.values()])
    rows.append(
        ["power at 32-64 cycles, before and after"]
        + [f"{one['power_before']:.4f}, {one['power_after']:.4f}" for one in methods.values()]
    )
    rows.append(["bits right in images without it"] + [f"{one['unmarked']:.0%}" for one in methods.values()])
    for name in next(iter(methods.values()))["bits"]:
        rows.append([f"bits right: {name}"] + [f"{one['bits'][name]:.0%}" for one in methods.values()])
    return markdown(
        ["", *methods], rows,
        f"{result['n']} images of `{result['model']['name']}` ({result['model']['hash']}), {BITS} bits each, "
        f"{result['extractor']}; half of the bits are right by chance. Made by `{result['command']}`.",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="benchmarks/watermark.py", about=__doc__)
    return s.report(NAME, measure=run, table=table)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/watermark.py"))
