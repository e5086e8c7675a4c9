"""Networks that our recipes train, as folders: ``model.safetensors`` in half precision, and ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from roentgen.errors import UserError
from roentgen.files import explained, read_json, write_atomic

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_network(folder: Path, network: nn.Module, info: Mapping[str, Any]) -> None:
    """Write the weights, and ``info``: what the network is made from, and what else its readers need."""
    from safetensors.torch import save

    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in network.state_dict().items()}
    write_atomic(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
    write_atomic(folder / CONFIG, (json.dumps(info, indent=1, ensure_ascii=False) + "\n").encode())


def read_info(folder: Path, *, who: str, recipe: str) -> dict[str, Any]:
    """``config.json`` of a folder that ``recipe`` wrote; UserError that begins with ``who`` where a file is missing."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{who}: {name} is missing; give a folder that `roentgen train {recipe}` wrote")
    return read_json(folder / CONFIG, advice="train or copy it again")


def fill(network: nn.Module, folder: Path, *, who: str) -> nn.Module:
    """``network`` with the weights of ``folder``, in evaluation mode; UserError where they do not fit."""
    from safetensors.torch import load_file

    with explained(f"{who}: {WEIGHTS} cannot be loaded into this architecture", "train or copy it again"):
        state = load_file(folder / WEIGHTS)
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return network.eval()
