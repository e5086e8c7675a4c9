"""RoentGen's published evaluation figures beside ours, on the same folders of images.

    python benchmarks/published.py --out benchmarks/results/published.json --update docs/metrics.md
    python benchmarks/published.py --result benchmarks/results/published.json --update docs/metrics.md

The steps of `eval/calculate_fid.py` (FID in torchxrayvision's features) and `eval/calculate_ms-ssim.py` of the public
repository StanfordMIMI/RoentGen are carried out here by the packages that it calls (clean-fid, torchvision,
torchxrayvision, pytorch-msssim), and by roentgen. The same features are then used to say what the figure hangs on.
Without folders the images of data/sample stand for both sides: ID.jpg as they are, ID_0.jpg to ID_3.jpg four altered
copies of other ones, in the layout that the scripts read. Without torchxrayvision's weights on this disk its
architecture gets random ones with a fixed seed: that shows whether two chains agree and how far a change of the chain
moves the figure, and nothing about images; the result says which it was.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timing import require_packages
from tqdm import tqdm

from roentgen import errors
from roentgen.config import BatchSize, Range, Seed, parse_settings
from roentgen.errors import UserError
from roentgen.images import read_image
from roentgen.metrics import extractors
from roentgen.metrics.distribution import frechet
from roentgen.metrics.diversity.ms_ssim import MIN_SIDE, pair_ms_ssim
from roentgen.metrics.report.tables import Reported, figure
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import write_result
from roentgen.provenance import portable

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample" / "images"
NAME = "published"
PACKAGES = {"torchxrayvision": "torchxrayvision", "clean-fid": "cleanfid", "pytorch-msssim": "pytorch_msssim"}
PER_PROMPT = 4
SIDE = 352
"""Shorter side of the images that are made."""
ORDERS = 50
"""Random orders of the files, for what a cut of an unsorted list may give."""
Features = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Settings(Reported):
    """RoentGen's XRV FID and MS-SSIM by its scripts' steps and by ours, on the same files."""

    real: Annotated[Path | None, "folder of real images, ID.jpg (default: of data/sample)"] = None
    generated: Annotated[
        Path | None, "folder of generated images, ID_0.jpg to ID_3.jpg (default: altered images of data/sample)"
    ] = None
    images: Annotated[int, Range(4, 10**12), "at most so many on each side, from the head of the sorted list"] = 48
    seed: Annotated[Seed, "of the images that are made, of random weights and of random orders of files"] = 0
    batch_size: Annotated[BatchSize, "images through the network at a time"] = 16


def measured(s: Settings, out: Path) -> None:
    """Everything, to ``out``."""
    require_packages(PACKAGES)
    with tempfile.TemporaryDirectory() as scratch:
        compare(s, out, Path(scratch))


def compare(s: Settings, out: Path, scratch: Path) -> None:
    """The figures; what is made for them lies in ``scratch``."""
    real, generated, images, seed, batch_size = s.real, s.generated, s.images, s.seed, s.batch_size
    if real is None or generated is None:
        real, generated = scratch / "real", scratch / "generated"
        make_images(real, generated, images, seed=seed)
        source = "data/sample: real as they are, generated four altered copies of other images of it"
    else:
        source = f"{portable(real.resolve())} and {portable(generated.resolve())}"
    files = {
        "generated": files_of(generated, "*_0.jpg", "--generated")[:images],
        "real": files_of(real, "*.jpg", "--real")[:images],
    }
    prompts = [prompt_files(first) for first in files["generated"]]
    weights, words = xrv_weights(scratch, seed)

    theirs = {name: roentgens_features(each, weights, batch_size) for name, each in files.items()}
    ours: dict[str, dict[str, Features]] = {}
    for chain in ("xrv", "xrv-2022", "xrv-native"):
        extractor = extractors.xrv_extractor(chain, folder=weights)
        ours[chain] = {
            name: extractor([read_image(path) for path in tqdm(each, desc=f"{chain}, {name}", file=sys.stderr)])[
                "features"
            ]
            for name, each in files.items()
        }
    scores = roentgens_ms_ssim(prompts)
    pairs = np.array(list(combinations(range(PER_PROMPT), 2)))
    pictures = [np.stack([read_image(path) for path in each]) for each in prompts]
    likeness = np.stack([pair_ms_ssim(each, pairs) for each in pictures])
    large = [row for row, each in enumerate(pictures) if min(each.shape[1:]) // 2 >= MIN_SIDE]
    halved = [float(pair_ms_ssim(half(pictures[row]), pairs).mean()) for row in large]

    spread = [float(each.mean(axis=1).std(ddof=1)) for each in (scores, likeness)]
    agreement: list[dict[str, Any]] = [
        {"figure": figure, "script": script, "ours": mine, "difference": abs(mine - script) / abs(script)}
        for figure, script, mine in (
            ("FID, torchxrayvision features", roentgens_fid(**theirs), distance(ours["xrv"])),
            ("MS-SSIM within a prompt, mean", float(scores.mean()), float(likeness.mean())),
            ("MS-SSIM within a prompt, sd over prompts", spread[0], spread[1]),
        )
    ]
    count = len(files["real"])
    sizes = {
        "full": float(likeness[large].mean()) if large else float("nan"),
        "half": float(np.mean(halved)) if large else float("nan"),
        "prompts": len(large),
    }
    context = s.context(
        "benchmarks/published.py", extractor=f"torchxrayvision densenet121-res224-all, {words}",
        resize=f"{extractors.XRV_CHAINS['xrv']}; MS-SSIM: grey in [0, 1] in the files' own size",
        settings={"orders": ORDERS}, model={"name": source},
        inputs={name: {"n": len(each)} for name, each in files.items()},
    )  # fmt: skip
    write_result(
        out,
        metric="largest relative difference of a figure by roentgen from that of RoentGen's steps on the same files",
        value=max(row["difference"] for row in agreement),
        ci_method="none: both read the same files",
        n=count,
        context=context,
        warnings=[] if "random" not in words else [f"{words}: the size of the distances means nothing"],
        details={
            "agreement": agreement,
            "largest_feature_difference": float(
                max(np.abs(theirs[name] - ours["xrv"][name]).max() / np.abs(theirs[name]).max() for name in files)
            ),
            "changes": changed_figures(ours, count, seed),
            "ms_ssim_by_size": sizes,
            "weights": words,
            "packages": {name: importlib.metadata.version(name) for name in (*PACKAGES, "torchvision", "scipy")},
        },
    )


def distance(features: dict[str, Features]) -> float:
    return float(frechet.feature_distance(features["generated"], features["real"]))


def changed_figures(ours: dict[str, dict[str, Features]], count: int, seed: int) -> list[dict[str, Any]]:
    """The distance after each change of the chain or of the list of files, and how far that moves it."""
    usual = distance(ours["xrv"])
    orders = cut_orders(ours["xrv"], count // 2, seed)
    found = {
        "torchvision before 0.17: no antialiasing in the resize to 224 (`xrv-2022`)": distance(ours["xrv-2022"]),
        "aspect kept: centre crop of the image itself, not squashed to 299 x 299 (`xrv-native`)": distance(
            ours["xrv-native"]
        ),
        f"file list cut to the first {count // 2} of {count}: mean of {ORDERS} random orders": float(np.mean(orders)),
        "the lowest of these orders": min(orders),
        "the highest of these orders": max(orders),
    }
    return [{"change": change, "fid": value, "relative": value / usual - 1} for change, value in found.items()]


def half(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (N, H, W) at half the size, by antialiased bicubic."""
    height, width = images.shape[1] // 2, images.shape[2] // 2
    return np.stack(
        [np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)) for image in images]
    )


def cut_orders(features: dict[str, Features], kept: int, seed: int) -> list[float]:
    """Distances of the first ``kept`` files of each side in ``ORDERS`` random orders of its list."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(ORDERS):
        chosen = {name: each[rng.permutation(len(each))[:kept]] for name, each in features.items()}
        found.append(distance(chosen))
    return found


# -------------------------------------------------------------------------------------- the scripts' steps


def roentgens_features(files: Sequence[Path], weights: Path, batch_size: int) -> Features:
    """Features (N, 1024) by the steps of calculate_fid.py, through clean-fid's own loader and torchvision's resize.

    clean-fid reads RGB and resizes to 299 x 299 in float; the batch turns grey by torchvision's weights, goes to
    [-1024, 1024], through a crop that cuts the channel and row axes of BCHW (nothing, at 299 x 299), and to 224.
    """
    import torch
    import torchxrayvision as xrv
    from cleanfid import fid
    from torchvision import transforms

    net = xrv.models.DenseNet(weights=extractors.XRV_WEIGHTS, cache_dir=str(weights))
    resize = transforms.Resize(224)

    def network(batch: torch.Tensor) -> torch.Tensor:
        grey = transforms.functional.rgb_to_grayscale(batch, 1)
        scaled = 2048 * (grey / 255) - 1024
        side = min(scaled.shape[2:])
        first, second = scaled.shape[3] // 2 - side // 2, scaled.shape[2] // 2 - side // 2
        cropped = scaled[:, second : second + side, first : first + side]
        return net.features2(resize(cropped))

    with torch.inference_mode():
        found = fid.get_files_features(
            l_files=[str(path) for path in files], model=network, mode="clean", batch_size=batch_size,
            num_workers=0, device=torch.device("cpu"), verbose=False,
        )  # fmt: skip
    return np.asarray(found, dtype=np.float32)


def roentgens_fid(generated: Features, real: Features) -> float:
    """clean-fid's distance of two sets of features."""
    from cleanfid import fid

    return float(fid.fid_from_feats(generated, real))


def roentgens_ms_ssim(prompts: Sequence[Sequence[Path]]) -> NDArray[np.float64]:
    """(P, 6): pytorch-msssim of all pairs of each prompt's images, grey in [0, 1], as calculate_ms-ssim.py."""
    import pytorch_msssim
    import torch
    from torchvision.transforms.functional import to_tensor

    first, second = zip(*combinations(range(PER_PROMPT), 2), strict=True)
    rows = []
    for files in prompts:
        images = torch.stack([to_tensor(Image.open(path).convert("L")) for path in files])
        rows.append(
            pytorch_msssim.ms_ssim(images[list(first)], images[list(second)], data_range=1.0, size_average=False)
        )
    return torch.stack(rows).numpy().astype(np.float64)


# ---------------------------------------------------------------------------------------- files and weights


def files_of(folder: Path, pattern: str, flag: str) -> list[Path]:
    """Sorted files of ``folder``; UserError with fewer than four."""
    found = sorted(folder.glob(pattern))
    if len(found) < 4:
        raise UserError(f"{flag} {folder} has {len(found)} files {pattern}; at least 4 are needed")
    return found


def prompt_files(first: Path) -> list[Path]:
    """The ``PER_PROMPT`` images of the prompt whose first is ``first``; UserError if one is missing."""
    files = [first.with_name(first.name.replace("_0.jpg", f"_{number}.jpg")) for number in range(PER_PROMPT)]
    for path in files:
        if not path.is_file():
            raise UserError(f"--generated {first.parent} lacks {path.name}; each prompt needs ID_0.jpg to ID_3.jpg")
    return files


def make_images(real: Path, generated: Path, count: int, *, seed: int) -> None:
    """``count`` real images ID.jpg and as many times four altered ones of other images, from the sample."""
    sources = sorted(path for path in SAMPLE.iterdir() if path.suffix == ".jpg")
    chosen = np.random.default_rng(seed).permutation(len(sources))
    if 2 * count > len(sources):
        raise UserError(f"--images {count}: data/sample gives at most {len(sources) // 2} on each side")
    for folder in (real, generated):
        folder.mkdir(parents=True)
    for number in range(count):
        enlarged(sources[chosen[number]]).save(real / f"{number:05}.jpg", quality=95)
        picture = enlarged(sources[chosen[count + number]])
        width, height = picture.size
        for copy in range(PER_PROMPT):
            rng = np.random.default_rng([seed, number, copy])
            left, top, right, low = rng.uniform(0, 0.15, 4) * (width, height, width, height)
            box = (left, top, width - right, height - low)
            grey = (np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box)) / 255) ** 1.3
            pixels = np.clip(255 * grey + rng.normal(0, 4, grey.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(generated / f"{number:05}_{copy}.jpg", quality=95)


def enlarged(path: Path) -> Image.Image:
    """Grey, shorter side ``SIDE``, aspect kept."""
    picture = Image.fromarray(read_image(path))
    scale = SIDE / min(picture.size)
    size = (max(SIDE, round(picture.width * scale)), max(SIDE, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def xrv_weights(scratch: Path, seed: int) -> tuple[Path, str]:
    """Folder of torchxrayvision's weights and what they are: its own if they are on this disk, else random ones."""
    import torch
    import torchxrayvision as xrv

    name = str(xrv.models.model_urls[extractors.XRV_WEIGHTS]["weights_url"]).rpartition("/")[2]
    own = Path.home() / ".torchxrayvision" / "models_data"
    if (own / name).is_file():
        return own, "its published weights"
    torch.manual_seed(seed)
    folder = scratch / "weights"
    folder.mkdir()
    # Pickled whole, as the published file is; statistics as after some images, so that features follow the picture.
    net = xrv.models.DenseNet(weights=None, num_classes=18)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    settled(net, seed)
    torch.save(net, folder / name)
    return folder, f"random weights with seed {seed}"


def settled(net: Any, seed: int) -> None:
    """Batch norms with the statistics of smooth random pictures, so that no layer dies or grows."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((8, 1, 14, 14), generator=generator)
    pictures = torch.nn.functional.interpolate(coarse, size=(224, 224), mode="bicubic") * 2048 - 1024
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean over batches
    with torch.no_grad():
        net.features(pictures)
    net.eval()


# --------------------------------------------------------------------------------------------- the tables


def table(result: Mapping[str, Any]) -> str:
    """Markdown of a result: agreement, and what the figure hangs on."""
    details = result["details"]
    agreement = [
        [row["figure"], f"{row['script']:.6g}", f"{row['ours']:.6g}", f"{row['difference']:.0e}"]
        for row in details["agreement"]
    ]
    changes = [[row["change"], f"{row['fid']:.4g}", f"{row['relative']:+.0%}"] for row in details["changes"]]
    sizes = details["ms_ssim_by_size"]
    packages = ", ".join(f"{name} {version}" for name, version in details["packages"].items())
    parts = [
        markdown(["figure", "RoentGen's steps", "ours", "relative difference"], agreement),
        "What the FID hangs on, in the same features or in those that the change gives:",
        markdown(["change", "FID", "against RoentGen's steps"], changes),
        f"MS-SSIM at half the size: {figure(sizes, key='half', digits=3)}, where it was "
        f"{figure(sizes, key='full', digits=3)} ({sizes['prompts']} prompts).",
        f"{result['n']} images on each side, {result['model']['name']}; {result['extractor']}; the features themselves "
        f"differ by at most {details['largest_feature_difference']:.0e} of the largest; {packages}.",
        *(f"Note: {warning}." for warning in result["warnings"]),
        f"Made by `{result['command']}`.",
    ]
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="benchmarks/published.py", about=__doc__)
    if (s.real is None) != (s.generated is None):
        raise UserError("--real and --generated belong together; give both, or none for the images of data/sample")
    return s.report(NAME, measure=measured, table=table)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/published.py"))
