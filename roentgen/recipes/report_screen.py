"""What the ``labels`` reporter refuses to read: images that are strange to its network, and turned or inverted ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.images import read_image
from roentgen.reports import screen
from roentgen.reports.finding_net import FindingNet, predict, squash

Image = NDArray[np.uint8]
DAMAGES: dict[str, Callable[[Image], Image]] = {
    "a quarter turn": lambda image: np.rot90(image).copy(),
    "a quarter turn back": lambda image: np.rot90(image, 3).copy(),
    "upside down": lambda image: image[::-1].copy(),
    "turned round": lambda image: np.rot90(image, 2).copy(),
    "inverted": lambda image: 255 - image,
    "one half": lambda image: image[:, : image.shape[1] // 2].copy(),
    "upper half": lambda image: image[: image.shape[0] // 2].copy(),
}
"""What is done to chest radiographs that no reader would read as they are. A mirrored one is not among them: it looks
as sound as the other, with the heart on the right."""
MOST = 500  # images of each kind, sound and damaged
LIMIT = 0.995  # share of validation images that each test lets through
PENALTY = 1e-3  # weight of the squared norm beside the mean loss


def fit_screen(
    net: FindingNet, train: Sequence[str], val: Sequence[str], *, size: int
) -> dict[str, NDArray[np.float32]]:
    """Arrays for ``roentgen.reports.screen``: of how training images look, and of how damaged ones differ.

    Args:
        net: the trained network.
        train, val: image files; the first are fitted, the second set the limits.
        size: side of the network's square.
    """
    rng = np.random.default_rng(0)

    def drawn(paths: Sequence[str], most: int) -> list[str]:
        return [paths[row] for row in rng.permutation(len(paths))[:most]]

    def features(images: Sequence[Image]) -> NDArray[np.float32]:
        device = str(next(net.parameters()).device)
        return predict(net, np.stack([squash(image, size) for image in images]), device=device).deep

    sound = [squash(read_image(path), size) for path in drawn(train, MOST)]
    kinds = list(DAMAGES.values())
    broken = [kinds[row % len(kinds)](squash(read_image(p), size)) for row, p in enumerate(drawn(train, MOST))]
    held = features([squash(read_image(path), size) for path in drawn(val, MOST)])
    good, bad = features(sound), features(broken)
    about: dict[str, Any] = screen.fit(good, held, share=LIMIT)
    weights, bias = _logistic(good, bad, about["mean"])
    about |= {"posture_weights": weights, "posture_bias": bias}
    about["posture_limit"] = float(np.quantile(screen.disorder(held, about), LIMIT))
    return {name: np.asarray(value, dtype=np.float32) for name, value in about.items()}


def _logistic(good: NDArray[np.float32], bad: NDArray[np.float32], mean: NDArray[Any]) -> tuple[NDArray[Any], float]:
    """Weights (D,) and bias of a logistic regression of damaged against sound features, with an L2 penalty."""
    from sklearn.linear_model import LogisticRegression

    x = np.concatenate([good, bad]).astype(np.float64) - mean
    fit = LogisticRegression(C=1 / (2 * PENALTY * len(x)), tol=1e-6, max_iter=1000).fit(
        x, np.arange(len(x)) >= len(good)
    )
    return fit.coef_[0], float(fit.intercept_[0])
