"""What a feature extractor is: a network with the exact chain from pixels to its input; see ``extractors``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roentgen.errors import UserError
from roentgen.files import sha256

Grey = NDArray[np.uint8]
BATCH = 32


@dataclass(frozen=True)
class Extractor:
    """A network with its preprocessing; make one with ``load_extractor``.

    name: as in results. chain: every step from the decoded image to the network's input. dim: width of "features".
    hash: of the weights. outputs: names of what a call gives; "features" (n, dim), "probabilities"
    (n, F) are of ``findings`` in their order, "sides" (n, F, 2) are the same by side, 0 the patient's right.
    prepare: one image -> its part of a batch, C x H x W; called from several threads. forward: a batch on ``device``
    -> its outputs; on a CPU called from several threads too.
    """

    name: str
    chain: str
    dim: int
    hash: str
    outputs: tuple[str, ...]
    findings: tuple[str, ...]
    device: str
    prepare: Callable[[Grey], NDArray[np.float32]]
    forward: Callable[[Tensor], dict[str, Tensor]]

    def run(self, prepared: Sequence[NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Outputs (n, ...) of images that went through ``prepare``, all in one batch."""
        if len({image.shape for image in prepared}) > 1:  # a processor that keeps the aspect and does not crop
            parts = [self.run([image]) for image in prepared]
            return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(prepared)).to(self.device)
            found = self.forward(batch)
            return {name: found[name].float().cpu().numpy() for name in self.outputs}

    def __call__(self, images: Sequence[Grey], *, batch_size: int = BATCH) -> dict[str, NDArray[np.float32]]:
        """Outputs (n, ...) of grey uint8 images (H, W) of any sizes, ``batch_size`` at a time."""
        if len(images) == 0:
            raise ValueError("no images")
        parts = [
            self.run([self.prepare(checked(image)) for image in images[start : start + batch_size]])
            for start in range(0, len(images), batch_size)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    @property
    def key(self) -> str:
        """Folder name of this extractor's features: another chain or other weights give another."""
        chain = sha256(self.chain)[:8]
        plain = "".join(letter if letter.isalnum() else "-" for letter in Path(self.name).name)
        return f"{plain}-{self.hash}-{chain}"


class LastInput:
    """What a layer is given in forward passes, kept for the thread that made the pass."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self._of_thread = threading.local()
        layer.register_forward_pre_hook(self._keep)

    def _keep(self, layer: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        self._of_thread.value = given[0]

    def last(self) -> Tensor:
        """Input of the last pass in this thread, which is then forgotten."""
        value: Tensor = self._of_thread.value
        del self._of_thread.value
        return value


def checked(image: Grey) -> Grey:
    """``image`` if it is uint8 (H, W), not empty; ValueError else."""
    if image.dtype != np.uint8 or image.ndim != 2 or 0 in image.shape:
        raise ValueError(f"expected a grey uint8 (H, W) image, got {image.dtype} {image.shape}")
    return image


def require_file(file: Path, url: str, what: str, instead: str = "") -> None:
    """UserError where ``file`` is not there: where to fetch it, and what to do ``instead``."""
    if not file.is_file():
        raise UserError(f"{what} are not on this disk; put {url} at {file}{instead}")
