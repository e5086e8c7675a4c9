"""Editing an image in latents: part of the way back to noise, then denoised to another text.

Img2img by strength (SDEdit, Meng et al. 2022, arXiv 2108.01073), blending of latents outside a region at every step
(Avrahami et al. 2022, arXiv 2206.02779; for chest X-rays RadEdit, Perez-Garcia et al. 2024, arXiv 2312.12865), and DDIM
inversion (Song et al. 2021, arXiv 2010.02502) to start from the noise of this very image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from roentgen import images
from roentgen.errors import UserError
from roentgen.generators.diffusion import process
from roentgen.generators.diffusion.sampling import Sampling, make_solver
from roentgen.generators.diffusion.solvers import Solver

if TYPE_CHECKING:
    from roentgen.generators.base import Editing, Edits
    from roentgen.generators.diffusion.model import Diffusion

CORRECTIONS = 1
"""Rounds in which each step of the inversion is made again from its own result: DDIM reads the output there, not where
the step began (fixed-point inversion, Pan et al. 2023, arXiv 2309.04907)."""


def edit(
    model: Diffusion,
    batch: Edits,
    sampling: Sampling,
    editing: Editing,
    on_step: Callable[[float], object] | None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Edited and merely encoded images, uint8 (S, S), in order.

    Raises:
        UserError: a model that predicts a flow; an image of NaN.
    """
    pairs = torch.stack(_edited(model, batch, sampling, editing, on_step), dim=1)
    for pair, text, seed in zip(pairs, batch.texts, batch.seeds, strict=True):
        try:
            after, same = images.from_autoencoder(pair)
        except FloatingPointError as error:
            raise UserError(
                f"--dtype: the edit of seed {seed} to {text[:80]!r} came out as NaN; pass --dtype float32"
            ) from error
        yield after, same


@torch.inference_mode()
def _edited(
    model: Diffusion,
    batch: Edits,
    sampling: Sampling,
    editing: Editing,
    on_step: Callable[[float], object] | None,
) -> tuple[Tensor, Tensor]:
    """Edited and merely encoded images, grey float (N, 1, S, S), nominally in [-1, 1]; inversion needs ddim."""
    solver = make_solver(model.scheduler, sampling.sampler, model.info.name)
    if solver.config.get("prediction_type") == "flow_prediction":
        raise UserError(f"--model {model.info.name}: it predicts a flow, and edits need a model of noise or velocity")
    solver.set_timesteps(sampling.steps, device=model.info.device)
    begin = max(0, len(solver.timesteps) - max(1, round(editing.strength * len(solver.timesteps))))
    steps = solver.timesteps[begin:]
    if hasattr(solver, "set_begin_index"):  # not diffusers' PNDM, which counts no steps
        solver.set_begin_index(begin)

    x0 = encode(model, images.to_autoencoder(batch.pixels))
    count = len(x0)
    regions = torch.from_numpy(batch.regions).float().unsqueeze(1).to(x0.device)
    region = F.adaptive_max_pool2d(regions, x0.shape[-2:])  # a cell may change if any of its pixels may
    beside = None
    if model.inpaints:
        known = images.to_autoencoder(batch.pixels).to(x0.device) * (1 - regions)
        beside = torch.cat([region, encode(model, known)], dim=1)
    report = Progress(count, len(steps) * (1 + editing.invert * (1 + CORRECTIONS)), on_step)
    abar = _levels(solver).to(x0)
    if editing.invert:
        path = invert(model, x0, steps, solver, beside=beside, report=report)
    else:
        noise = torch.stack([model.initial_noise(seed) for seed in batch.seeds]).to(x0.device)
        path = [process.add_noise(x0, noise, abar, step.repeat(count)) for step in steps]
        if begin == 0:  # nothing of the image is left
            path[0] = noise * solver.init_noise_sigma
    text = model.guided_text(batch.texts, sampling)
    latents = path[0]
    for number, step in enumerate(steps):
        inputs = solver.scale_model_input(latents, step)
        output = model.guided(inputs, step, text, guidance=sampling.guidance, beside=beside, first=number == 0)
        latents = solver.step(output, step, latents, return_dict=False)[0]
        outside = path[number + 1] if number + 1 < len(steps) else x0
        latents = region * latents + (1 - region) * outside
        report()
    return model.decode(latents), model.decode(x0)


def encode(model: Diffusion, pixels: Tensor) -> Tensor:
    """Grey float (N, 1, H, W) in [-1, 1] -> scaled latents (N, C, h, w), float32, of the posterior's mode."""
    vae = model.whole_vae
    pixels = pixels.to(model.info.device, model.dtype).expand(-1, vae.config.in_channels, -1, -1)
    latents: Tensor = vae.encode(pixels).latent_dist.mode().float() * vae.config.scaling_factor
    return latents


def nothing_known(model: Diffusion, count: int) -> Tensor:
    """What an inpainting U-Net reads beside latents where all is to be painted: a whole mask, and mid-grey."""
    _, height, width = model.latent_shape
    factor = model.pixels // min(height, width)
    grey = encode(model, torch.zeros(1, 1, height * factor, width * factor))
    return torch.cat([torch.ones_like(grey[:, :1]), grey], dim=1).expand(count, -1, -1, -1)


def invert(
    model: Diffusion, x0: Tensor, steps: Tensor, solver: Any, *, beside: Tensor | None, report: Callable[[], object]
) -> list[Tensor]:
    """Latents (N, C, h, w) at each of ``steps`` (falling) from which DDIM without a text comes back to ``x0``."""
    abar, config = _levels(solver).to(x0), solver.config
    kind = config.get("prediction_type", "epsilon")
    text = model.guided_text([""] * len(x0), Sampling(guidance=1))
    before = int(steps[-1]) - len(abar) // len(solver.timesteps)
    last = torch.ones_like(abar[0]) if config.get("set_alpha_to_one", True) else abar[0]
    low = abar[before] if before >= 0 else last
    path: list[Tensor] = []
    latents = x0
    for step in steps.flip(0):
        high, times = abar[step], step.repeat(len(x0))
        moved = latents
        for _ in range(1 + CORRECTIONS):
            output = model.guided(moved, step, text, guidance=1, beside=beside)
            # Where the output stands for clean latents and noise of ``moved``, at the level that it is read at.
            clean = process.estimate_x0(kind, moved, output, abar, times)
            noise = (moved - high.sqrt() * clean) / (1 - high).sqrt()
            moved = high.sqrt() * (latents - (1 - low).sqrt() * noise) / low.sqrt() + (1 - high).sqrt() * noise
            report()
        path.insert(0, moved)
        latents, low = moved, high
    return path


def _levels(solver: Any) -> Tensor:
    """abar (T,) float32 of one of our solvers or of diffusers'."""
    levels: Tensor = solver.abar if isinstance(solver, Solver) else solver.alphas_cumprod
    return levels


class Progress:
    """Calls ``on_step`` with shares of the work, in images."""

    def __init__(self, images: int, calls: int, on_step: Callable[[float], object] | None) -> None:
        self.share = images / calls
        self.on_step = on_step

    def __call__(self) -> None:
        if self.on_step is not None:
            self.on_step(self.share)
