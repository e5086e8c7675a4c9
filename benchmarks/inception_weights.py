"""Random weights for torch-fidelity's Inception-v3: the real architecture and file format, without a download."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


class Blank(FeatureExtractorInceptionV3):
    """The class loads a file as soon as it is made; this one keeps the weights it was made with."""

    def load_state_dict(self, *_: object, **__: object) -> None:  # type: ignore[override]
        return None


def write_random_inception(file: Path, *, seed: int) -> None:
    """Save a state that FeatureExtractorInceptionV3 loads.

    Convolutions keep the variance (He et al. 2015) and the batch norms' statistics are not trivial, so that features
    follow the picture: with PyTorch's initial weights they are nearly the same for all.
    """
    with tempfile.TemporaryDirectory() as folder:
        nothing = Path(folder) / "nothing.pth"
        torch.save({}, nothing)
        state = Blank("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(nothing)).state_dict()
    generator = torch.Generator().manual_seed(seed)
    for name, value in state.items():
        if value.ndim == 4:
            value.normal_(0, math.sqrt(2 / value[0].numel()), generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif name.endswith(("running_mean", "bn.bias")):
            value.normal_(0, 0.1, generator=generator)
    torch.save(state, file)
