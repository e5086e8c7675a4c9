"""The resizes of published FID code, which a distance means nothing without."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Grey = NDArray[np.uint8]


def resize_tf1(image: Grey, side: int) -> NDArray[np.float32]:
    """uint8 (H, W) -> float32 (side, side) in [0, 255], as ``resize_bilinear`` of TensorFlow 1 did.

    No half-pixel centres and no antialiasing: pixel i of the result is taken at i * H / side.
    """
    pixels = image.astype(np.float32)
    rows, next_rows, down = _tf1_places(image.shape[0], side)
    columns, next_columns, right = _tf1_places(image.shape[1], side)
    left_part, right_part = pixels[:, columns], pixels[:, next_columns]
    across = left_part + (right_part - left_part) * right
    upper, lower = across[rows], across[next_rows]
    return upper + (lower - upper) * down[:, None]


def _tf1_places(length: int, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Lower and upper neighbour and the weight of the upper one, for each of ``side`` places."""
    places = np.arange(side, dtype=np.float32) * np.float32(length / side)
    lower = places.astype(np.int64)
    return lower, np.minimum(lower + 1, length - 1), places - lower.astype(np.float32)


def resize_clean(image: Grey, side: int) -> NDArray[np.float32]:
    """uint8 (H, W) -> float32 (side, side) in [0, 255]: clean-fid's resize (Parmar et al. 2022), never rounded."""
    exact = Image.fromarray(image.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(exact, dtype=np.float32).clip(0, 255)
