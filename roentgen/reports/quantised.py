"""Reporters in 8-bit integers for processors: a quarter of the memory, and faster where its kernels are.

Dynamic quantisation by torch (Linear layers: weights in int8 once, activations at each call). Convolutions of one
pixel, which are most of a labels reporter's work, are Linear layers over channels and become such first.
``eval/int8.py`` measures speed and what is lost.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from roentgen.errors import UserError
from roentgen.reports.base import Reporter


class Pointwise(nn.Module):
    """A 1 x 1 convolution as a Linear layer over the channels of (N, C, H, W), free where channels lie last."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.linear = nn.Linear(convolution.in_channels, convolution.out_channels, convolution.bias is not None)
        self.linear.weight = nn.Parameter(convolution.weight.detach().flatten(1))
        if convolution.bias is not None:
            self.linear.bias = nn.Parameter(convolution.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


def quantise(reporter: Reporter, *, flag: str = "--int8") -> Reporter:
    """A copy of ``reporter`` whose network computes in int8, on the CPU.

    Raises:
        UserError: it is on another device, torch was built without int8 kernels, or it is of a kind with no network.
    """
    from roentgen.reports.captioners import CaptionReporter
    from roentgen.reports.grounded import GroundedReporter
    from roentgen.reports.labels import LabelsReporter

    other: Any = copy.copy(reporter)
    if isinstance(reporter, GroundedReporter):
        other.reporter = quantise(reporter.reporter, flag=flag)
        other.grounder = quantise(reporter.grounder, flag=flag)
    elif isinstance(reporter, LabelsReporter):
        other.net = _int8(reporter.net, flag)
    elif isinstance(reporter, CaptionReporter):
        captioner = copy.copy(reporter.captioner)
        object.__setattr__(captioner, "model", _int8(captioner.model, flag))
        other.captioner = captioner
    else:
        raise UserError(f"{flag}: {reporter.info.name} has no network that could be quantised; leave it out")
    return other  # type: ignore[no-any-return]


def _int8(network: Any, flag: str) -> Any:
    if next(network.parameters()).device.type != "cpu":
        raise UserError(f"{flag}: int8 is for processors; pass --device cpu, or leave {flag} out")
    if torch.backends.quantized.engine == "none":
        raise UserError(f"{flag}: this build of torch has no int8 kernels; leave it out")
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and (*child.kernel_size, *child.stride, child.groups) == (1, 1, 1, 1, 1):
                setattr(parent, name, Pointwise(child))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own word that another library will do this one day
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        # A scale for each output channel: one for a whole layer loses a third of the findings of a labels reporter.
        return quantize_dynamic(network, {nn.Linear: per_channel_dynamic_qconfig})


def weight_bytes(reporter: Reporter) -> int:
    """Bytes of the network's weights as they lie in memory, packed or not."""
    import io

    network: Any = getattr(reporter, "net", None) or reporter.captioner.model  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return buffer.tell()
