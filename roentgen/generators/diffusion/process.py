"""Diffusion as pure functions on tensors: noise, targets, estimates, weights.

Notation of Ho et al. (2020): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, with abar_t the cumulative product of
(1 - beta). Latents are (N, C, h, w) after the scaling factor; timesteps are int64 (N,) in [0, T).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from roentgen.errors import UserError


def _per_sample(values: Tensor, t: Tensor) -> Tensor:
    return values.to(t.device)[t].view(-1, 1, 1, 1)


def add_noise(x0: Tensor, noise: Tensor, abar: Tensor, t: Tensor) -> Tensor:
    """x_t of Ho et al. (2020), eq. 4."""
    a = _per_sample(abar, t)
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def velocity(x0: Tensor, noise: Tensor, abar: Tensor, t: Tensor) -> Tensor:
    """v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans & Ho 2022, section 4)."""
    a = _per_sample(abar, t)
    return a.sqrt() * noise - (1 - a).sqrt() * x0


def _epsilon(x0: Tensor, noise: Tensor, abar: Tensor, t: Tensor) -> Tensor:
    return noise


def _x0_from_epsilon(xt: Tensor, output: Tensor, abar: Tensor, t: Tensor) -> Tensor:
    a = _per_sample(abar, t)
    return (xt - (1 - a).sqrt() * output) / a.sqrt()


def _x0_from_velocity(xt: Tensor, output: Tensor, abar: Tensor, t: Tensor) -> Tensor:
    a = _per_sample(abar, t)
    return a.sqrt() * xt - (1 - a).sqrt() * output


TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": _epsilon,
    "v_prediction": velocity,
}
ESTIMATES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": _x0_from_epsilon,
    "v_prediction": _x0_from_velocity,
}


def target(prediction_type: str, x0: Tensor, noise: Tensor, abar: Tensor, t: Tensor) -> Tensor:
    """What the network should output, same shape as ``x0``."""
    return _named(TARGETS, prediction_type)(x0, noise, abar, t)


def estimate_x0(prediction_type: str, xt: Tensor, output: Tensor, abar: Tensor, t: Tensor) -> Tensor:
    """The clean latents that the network's ``output`` stands for, same shape as ``xt``."""
    return _named(ESTIMATES, prediction_type)(xt, output, abar, t)


def min_snr_weights(prediction_type: str, abar: Tensor, gamma: float | None) -> Tensor:
    """Loss weight of each timestep, (T,): min-SNR-gamma (Hang et al. 2023, eq. 8 and section 3.4); None is all ones."""
    _named(TARGETS, prediction_type)
    if gamma is None:
        return torch.ones_like(abar)
    if prediction_type == "v_prediction" and bool((abar == 0).any()):
        raise UserError(
            "min-SNR gives the last timestep no weight where its signal is zero; "
            "set --loss.min-snr-gamma null with --loss.zero-terminal-snr"
        )
    snr = abar / (1 - abar)
    clipped = snr.clamp(max=gamma)
    # With eps as target the weight on x_0 is SNR; with v it is SNR + 1.
    return clipped / snr.clamp(min=1e-8) if prediction_type == "epsilon" else clipped / (snr + 1)


def offset_noise(noise: Tensor, shift: Tensor, strength: float) -> Tensor:
    """Noise (N, C, h, w) plus ``strength`` times one ``shift`` (N, C, 1, 1) a channel, which lets a model learn to
    change an image's mean grey (N. Guttenberg, "Diffusion with offset noise", 2023); strength 0 leaves it as it is."""
    return noise + strength * shift


def rescale_zero_terminal_snr(abar: Tensor) -> Tensor:
    """Cumulative alphas (T,) shifted and scaled in their square roots so that the last is 0 and the first stays (Lin
    et al. 2024, algorithm 1): the last timestep is pure noise, as it is at the start of sampling."""
    root = abar.double().sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return (((root - last) * first / (first - last)).square()).to(abar.dtype)


def stratified_timesteps(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """int64 (count,) in [0, steps), one in each of ``count`` equal strata, in random order: less noise than uniform."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    order = torch.randperm(count, generator=generator)
    return (u[order] * steps).long().clamp(max=steps - 1)


def cumulative_alphas(scheduler: Any) -> Tensor:
    """abar (T,) float32 of a diffusers scheduler, zero at the end if its configuration says so."""
    from diffusers import DDPMScheduler

    # diffusers' samplers keep the last value just above zero to divide by it; training needs no such thing.
    config = {**scheduler.config, "rescale_betas_zero_snr": False}
    abar = DDPMScheduler.from_config(config).alphas_cumprod.float()
    return rescale_zero_terminal_snr(abar) if scheduler.config.get("rescale_betas_zero_snr") else abar


def _named(table: dict[str, Any], prediction_type: str) -> Any:
    if prediction_type not in table:
        raise UserError(f"prediction type {prediction_type!r} is unknown; use one of {', '.join(table)}")
    return table[prediction_type]
