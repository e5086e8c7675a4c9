"""Figures of other packages beside ours on equal features or equal files: which agree, and which do not.

    python benchmarks/peers.py --out benchmarks/results/peers.json --update docs/metrics.md
    python benchmarks/peers.py --result benchmarks/results/peers.json --update docs/metrics.md

Features are those of the shipped classifier, of the images that benchmarks/eval.py makes of data/sample; what reads
files gets the same ones through Inception-v3 with random weights of a fixed seed, which shows what a resize does to a
figure and nothing about images. Needs piq, torchmetrics, torch-fidelity and prdc.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from inception_weights import write_random_inception
from numpy.typing import NDArray
from PIL import Image
from timing import require_packages

from eval import make_images
from roentgen import errors
from roentgen.config import Range, Seed, parse_settings
from roentgen.images import read_image
from roentgen.metrics.distribution import frechet
from roentgen.metrics.distribution.prdc import manifolds
from roentgen.metrics.extractors import inception_extractor, load_extractor
from roentgen.metrics.report.tables import Reported
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import write_result

NAME = "peers"
PACKAGES = ("piq", "torchmetrics", "torch-fidelity", "prdc")
SIDE = 320
SQUASHED = 299
FEW = 64
"""Dimensions of the features of which there are more images than dimensions."""
Features = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Settings(Reported):
    """Other packages' FID, KID, precision and recall beside ours."""

    images: Annotated[int, Range(40, 10**12), "on both sides together"] = 120
    seed: Annotated[Seed, "of random weights"] = 0


def measured(s: Settings, out: Path) -> None:
    """Everything, to ``out``."""
    require_packages(PACKAGES)
    with tempfile.TemporaryDirectory() as scratch:
        make_images(Path(scratch), s.images, side=SIDE)
        pictures = {side: [read_image(p) for p in sorted((Path(scratch) / side).iterdir())] for side in "ab"}
        classifier = load_extractor("classifier")
        a, b = (classifier(pictures[side])["features"].astype(np.float64) for side in "ab")
        rows = of_features(a, b) + of_files(pictures, Path(scratch) / "inception.pth", s.seed)
        rows += of_squashed(pictures, classifier)
    agree = [row["difference"] for row in rows if row["agrees"]]
    context = s.context(
        "benchmarks/peers.py", extractor=f"classifier {classifier.hash}; Inception-v3 with random weights",
        resize=classifier.chain, settings={"side": SIDE}, model={"name": "data/sample, jittered"},
    )  # fmt: skip
    write_result(
        out,
        metric="largest relative difference between a package that agrees and ours, on equal features",
        value=max(agree),
        ci_method="none: both read the same features",
        n=s.images // 2,
        context=context,
        details={"rows": rows, "packages": {name: importlib.metadata.version(name) for name in PACKAGES}},
    )


def row(what: str, theirs: float, ours: float) -> dict[str, Any]:
    difference = theirs / ours - 1
    return {"what": what, "theirs": theirs, "ours": ours, "difference": difference, "agrees": abs(difference) < 1e-3}


def of_features(a: Features, b: Features) -> list[dict[str, Any]]:
    """What takes features: torch-fidelity, piq and prdc."""
    import piq
    from prdc import compute_prdc
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    rows = []
    few = f", first {FEW} dimensions"
    for words, x, y in (
        ("", a, b),
        (few, a[:, :FEW], b[:, :FEW]),
        (", halves of one set", a[::2], a[1::2]),
        (f"{few}, halves of one set", a[::2, :FEW], a[1::2, :FEW]),
    ):
        ours = float(frechet.feature_distance(x, y))
        tensors = [torch.from_numpy(part.copy()) for part in (x, y)]
        theirs = fid_statistics_to_metric(*map(fid_features_to_statistics, tensors), verbose=False)
        rows.append(row(f"FID, torch-fidelity{words}", float(theirs["frechet_inception_distance"]), ours))
        rows.append(row(f"FID, piq{words}", float(piq.FID()(*tensors)), ours))
    for words, part in ((f"{len(a)} against {len(b)}", b), (f"{len(a)} against {len(b) // 4}", b[: len(b) // 4])):
        with contextlib.redirect_stdout(sys.stderr):
            theirs = compute_prdc(a, part, nearest_k=5)
        same = manifolds(a, part, k=5)
        cut = manifolds(a[: len(part)], part, k=5)
        for name in ("precision", "recall"):
            if getattr(same, name):
                rows.append(row(f"{name}, prdc, {words}", theirs[name], float(getattr(same, name))))
            if len(part) < len(a) and getattr(cut, name):
                rows.append(
                    row(f"{name}, prdc, {words}; ours of sets cut to one size", theirs[name], float(getattr(cut, name)))
                )
    return rows


def of_files(pictures: Mapping[str, Sequence[NDArray[np.uint8]]], weights: Path, seed: int) -> list[dict[str, Any]]:
    """What resizes by itself: torchmetrics, with and without antialiasing, beside TensorFlow 1's resize."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    write_random_inception(weights, seed=seed)
    extractor = inception_extractor(weights=weights)
    ours = float(frechet.feature_distance(*(extractor(pictures[side])["features"] for side in "ab")))
    rows = []
    for antialias, words in ((False, "antialias=False"), (True, "its default, antialias=True")):
        metric = FrechetInceptionDistance(
            feature=2048, antialias=antialias, feature_extractor_weights_path=str(weights)
        ).set_dtype(torch.float64)
        for side, real in (("a", True), ("b", False)):
            for image in pictures[side]:
                metric.update(torch.from_numpy(image.copy()).expand(1, 3, -1, -1), real=real)
        rows.append(row(f"FID of files, torchmetrics, {words}", float(metric.compute()), ours))
    return rows


def of_squashed(
    pictures: Mapping[str, Sequence[NDArray[np.uint8]]], classifier: Callable[..., Any]
) -> list[dict[str, Any]]:
    """What CheXGenBench does before its network for X-rays, which wants 518 px and the centre square: every image is
    squashed to 299 px a side, whatever its shape (its ``metrics/fid.py``). Here before the shipped classifier, for
    squares, and for images of 4 to 5 on one side, as radiographs are, beside squares, as generators make them."""

    def squashed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:  # as torchvision's ``Resize`` does to files
        return np.asarray(Image.fromarray(image).resize((SQUASHED, SQUASHED), Image.Resampling.BILINEAR))

    rows = []
    portrait = [image[:, SIDE // 10 : SIDE - SIDE // 10] for image in pictures["a"]]
    for words, first in (("squares", pictures["a"]), ("4:5 beside squares", portrait)):
        distances = []
        for squash in (True, False):
            sets = [[squashed(image) for image in side] if squash else side for side in (first, pictures["b"])]
            distances.append(float(frechet.feature_distance(*(classifier(one)["features"] for one in sets))))
        rows.append(row(f"FID, squashed to {SQUASHED} px as in CheXGenBench, {words}", *distances))
    return rows


def as_table(result: Mapping[str, Any]) -> str:
    """The Markdown table of a result, with its conditions below."""
    details = result["details"]
    rows = [
        [each["what"], f"{each['theirs']:.5g}", f"{each['ours']:.5g}",
         f"{each['difference']:+.0e}" if each["agrees"] else f"{each['difference']:+.1%}"]
        for each in details["rows"]
    ]  # fmt: skip
    packages = ", ".join(f"{name} {version}" for name, version in details["packages"].items())
    return markdown(
        ["figure, package", "theirs", "ours", "difference"], rows,
        f"{result['n']} images on each side; {packages}. Inception-v3 has random weights: the size of a "
        "distance of files means nothing.",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="benchmarks/peers.py", about=__doc__)
    return s.report(NAME, measure=measured, table=as_table)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/peers.py"))
