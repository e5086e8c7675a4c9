"""Edit an X-ray: add or remove a finding in a region, and leave every other pixel as it is.

The model works on the centre square of the image at its own size. What it changes is brought back to the image's own
size and added there, weighted from 1 inside the region to 0 at its edge; outside, the pixels are those of the input.
Light at import: no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from roentgen import images
from roentgen.errors import UserError
from roentgen.files import read_bytes, sha256
from roentgen.generators.base import Editing, Editor, Edits, Generator, Sample, Sampling, check_seed, check_text
from roentgen.generators.generate import check_settings, provenance_of
from roentgen.prompts.vocabulary import NORMAL_NOUNS, SIDES
from roentgen.reports.boxes import check_box, to_pixels

FEATHER = 1 / 12
"""Width of the edge inside a region over which the change fades in, as a share of the image's shorter side."""
COARSE = 0.6
"""Share of an image's contrast that is left at 32 x 32 pixels; 0.88 or more in 300 chest X-rays, 0.1 in noise."""
DEFAULTS: dict[str, Any] = {"guidance": 5.0}
"""Settings of sampling where none are given: an edit needs more guidance than an image from nothing."""
Region = NDArray[Any] | tuple[float, ...] | str | None
"""A mask (H, W), bool or uint8 (white above 127); a box (x1, y1, x2, y2) in fractions of the image; ``left`` or
``right``, the half; None for the whole."""


@dataclass(frozen=True)
class Edited(Sample):
    """An edited image, with the image before and the region, bool (H, W), that was allowed to change."""

    before: np.ndarray = field(repr=False)
    region: np.ndarray = field(repr=False)

    def strip(self) -> np.ndarray:
        """Before, after, and difference (grey 128 where nothing changed, brighter where it became brighter)."""
        difference = np.clip(self.image.astype(np.int16) - self.before + 128, 0, 255).astype(np.uint8)
        return images.make_grid([self.before, self.image, difference], ["before", "after", "difference"], columns=3)


def edit(
    model: Generator,
    image: str | Path | np.ndarray,
    text: str = "",
    *,
    remove: str = "",
    region: Region = None,
    editing: Editing | None = None,
    seed: int = 0,
    num_images: int = 1,
    on_step: Callable[[float], object] | None = None,
    **settings: Any,
) -> Iterator[Edited]:
    """Check everything now, then edit lazily: ``num_images`` edits with the seeds ``seed``, ``seed + 1``, ...

    Args:
        model: of a family that edits; inpainting checkpoints, too.
        image: file, or uint8 grey (H, W).
        text: what the region should show. Empty: no acute finding, where something is removed.
        remove: what should go; it takes the place of the negative prompt.
        region: where pixels may change; see ``Region``. The patient's left is on the image's right.
        editing: how much may change.
        settings: those of the model's family, such as ``steps``, ``guidance`` and ``sampler``; see ``DEFAULTS``.

    Raises:
        UserError: bad text, image, region or setting, or a model that does not edit.
    """
    editing = editing or Editing()
    settings = DEFAULTS | {key: value for key, value in settings.items() if value is not None}
    if not (text or remove):
        raise UserError("no text: say what the image should show, or pass --remove with what should go")
    if remove:
        check_text(remove, "--remove")
        if settings.get("negative_prompt"):
            raise UserError("--negative-prompt: --remove is the negative prompt; leave one out")
        settings["negative_prompt"] = remove
    text = text or NORMAL_NOUNS[0]
    check_text(text, "text")
    check_settings(num_images=num_images, seed=seed)
    check_seed(seed, num_images - 1)
    if editing.invert:
        settings = {"sampler": "ddim", **settings}
        if settings["sampler"] != "ddim":
            raise UserError(f"--sampler {settings['sampler']}: inversion takes ddim; leave it out, or add --no-invert")
        if num_images > 1:
            raise UserError(f"--num-images {num_images}: all would be equal with inversion; pass --no-invert too")
    if not isinstance(model, Editor):
        raise UserError(f"--model {model.info.name}: its family does not edit images; use a diffusion model")
    sampling = model.sampling(**settings)
    model.check(text, "text")
    before, marks = _source(image)
    mask = region_of(before.shape, region)
    marks |= {
        "edited": "true",
        "strength": f"{editing.strength:g}",
        "inverted": str(editing.invert).lower(),
        "detail": "kept" if editing.detail else "drawn",
        "region": f"{mask.mean():.4f} of the pixels",
        **provenance_of(model, sampling),
    }
    wish = Wish(before, text, seed, mask)
    _check_seen(mask)

    def run() -> Iterator[Edited]:
        for index in range(num_images):
            own = replace(wish, seed=seed + index)
            made = next(apply(model, [own], sampling, editing, on_step))
            yield Edited(made, text, own.seed, index, {"prompt": text, "seed": str(own.seed), **marks}, before, mask)

    return run()


@dataclass(frozen=True)
class Wish:
    """One edit: uint8 grey (H, W) before, the text, the seed, and the region, bool (H, W)."""

    before: np.ndarray
    text: str
    seed: int
    region: NDArray[np.bool_]


def apply(
    model: Editor,
    wishes: Sequence[Wish],
    sampling: Sampling,
    editing: Editing,
    on_step: Callable[[float], object] | None = None,
) -> Iterator[np.ndarray]:
    """One batch of edits that have been checked: uint8 (H, W) each, in order, as large as what they were made of."""
    squares = [_square(wish.before.shape) for wish in wishes]
    side = model.pixels
    small = [images.resize_center_crop(wish.before[square], side) for wish, square in zip(wishes, squares, strict=True)]
    inside = [
        np.asarray(_image(wish.region[square]).resize((side, side), Image.Resampling.BOX)) > 0
        for wish, square in zip(wishes, squares, strict=True)
    ]
    batch = Edits(np.stack(small), np.stack(inside), [wish.text for wish in wishes], [wish.seed for wish in wishes])
    made = model.edit(batch, sampling, editing, on_step)
    for wish, square, (after, same) in zip(wishes, squares, made, strict=True):
        weight = _weights(wish.region, square)
        yield _put_back(wish.before, after, same if editing.detail else None, weight, square)


def region_of(shape: tuple[int, ...], region: Region, *, what: str = "region") -> NDArray[np.bool_]:
    """``region`` as a mask (H, W) of an image of ``shape``; UserError, which begins with ``what``, if it is none."""
    height, width = shape
    mask = np.zeros((height, width), dtype=np.bool_)
    if region is None:
        mask[_square(shape)] = True
    elif isinstance(region, str):
        if region not in SIDES:
            raise UserError(f"{what} {region!r}: choose {' or '.join(SIDES)}, as seen from the patient")
        half = slice(width // 2, width) if region == "left" else slice(0, width // 2)
        mask[:, half] = True
    elif isinstance(region, tuple):
        x1, y1, x2, y2 = to_pixels(check_box(region, what=what), width, height)
        mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
    else:
        if region.shape != (height, width):
            size = " x ".join(map(str, region.shape[::-1]))
            raise UserError(f"{what}: its size {size} is not the image's, {width} x {height}; make them equal")
        mask = np.asarray(region if region.dtype == np.bool_ else region > 127, dtype=np.bool_)
        if not mask.any():
            raise UserError(f"{what}: it is empty; paint white (above 127) where the image may change")
    return mask


def warnings_of(image: np.ndarray) -> list[str]:
    """What makes uint8 (H, W) look unlike a frontal chest X-ray, by rough signs; a reason to look, no more."""
    from roentgen.data.check import ImageFacts, frontal_measures, image_problems

    low, high = np.percentile(image, [1, 99])
    symmetry, contrast = frontal_measures(image)
    coarse = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BOX), dtype=np.float64)
    facts = ImageFacts(
        width=image.shape[1],
        height=image.shape[0],
        grey_range=float(high - low),
        symmetry=symmetry,
        contrast=contrast,
    )
    found = image_problems(facts)
    if high > low and coarse.std() < COARSE * image.std():
        found.append(("no X-ray", "most of its contrast is fine grain"))
    return [f"{kind}: {message}; the model knows frontal chest X-rays only" for kind, message in found]


def _source(image: str | Path | np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    """Pixels of the image to edit, uint8 (H, W), and what the result says of it: hashes, never a name."""
    marks = {}
    if isinstance(image, np.ndarray):
        pixels = image
    else:
        data = read_bytes(Path(image))
        pixels = images.read_image(image, data=data)
        marks["source_sha256"] = sha256(data)
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or 0 in pixels.shape:
        raise UserError(f"image: expected uint8 grey (H, W), got {pixels.dtype} {pixels.shape}")
    height, width = pixels.shape
    return pixels, {**marks, "source_pixels_sha256": sha256(f"{width}x{height}:".encode() + pixels.tobytes())}


def _check_seen(mask: NDArray[np.bool_]) -> None:
    if not mask[_square(mask.shape)].any():
        side = min(mask.shape)
        raise UserError(f"region: none of it is in the centre square of {side} x {side} pixels, the model sees no more")


def _square(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The centre square of an image."""
    height, width = shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)


def _image(mask: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _weights(mask: NDArray[np.bool_], square: tuple[slice, slice]) -> NDArray[np.float32]:
    """Share of the change (H, W) that each pixel takes: 0 outside of the mask and of the square, 1 well inside."""
    seen = np.zeros(mask.shape, dtype=np.uint8)
    seen[square] = np.asarray(_image(mask[square]))
    radius = FEATHER * min(mask.shape) / 2
    blurred = np.asarray(Image.fromarray(seen).filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255
    # At a straight edge the blurred mask is one half: from there it rises to 1. Small regions never get there.
    rising = np.where(seen > 0, np.clip(2 * blurred - 1, 0, 1), 0).astype(np.float32)
    if rising.max() < 1:
        rising = np.where(seen > 0, blurred / blurred[seen > 0].max(), 0).astype(np.float32)
    return np.asarray(rising, dtype=np.float32)


def _put_back(
    before: np.ndarray,
    after: np.ndarray,
    same: np.ndarray | None,
    weight: NDArray[np.float32],
    square: tuple[slice, slice],
) -> np.ndarray:
    """``before`` with what the model changed, uint8 (H, W).

    after, same: uint8 (S, S), the square edited and merely encoded; None for ``same`` draws the square anew.
    """
    side = before[square].shape[0]
    made = before.astype(np.float32)
    new = _resized(after.astype(np.float32), side)
    base = made[square] if same is None else _resized(same.astype(np.float32), side)
    made[square] += weight[square] * (new - base)
    return np.clip(np.rint(made), 0, 255).astype(np.uint8)


def _resized(image: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """float32 (S, S) at another size, bicubic."""
    if image.shape[0] == side:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
