"""DDIM, DPM-Solver++ and UniPC as plain arithmetic, with the calls of diffusers' schedulers and their results.

Importing diffusers takes longer than sampling an image. These know schedules of linear and scaled linear betas; for
every other setting of a scheduler's configuration ``find`` has none, and diffusers' own class is taken.

Notation of Lu et al. (2022, arXiv 2211.01095): alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t), lambda_t =
log(alpha_t / sigma_t), h the step in lambda; the network's estimate of the clean latents is m. Coefficients are
float64, latents are what they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roentgen.errors import UserError
from roentgen.generators.diffusion.process import rescale_zero_terminal_snr

# Settings that change what a scheduler of diffusers computes, with the values that are computed here.
KNOWN: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear"),
    "trained_betas": (None,),
    "thresholding": (False,),
    "clip_sample": (False,),  # of the ddim here; the others have no such setting
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "solver_order": (2,),
    "algorithm_type": ("dpmsolver++",),
    "solver_type": ("midpoint", "bh2"),
    "lower_order_final": (True,),
    "euler_at_final": (False,),
    "final_sigmas_type": ("zero",),
    "predict_x0": (True,),
    "disable_corrector": ([],),
    "solver_p": (None,),
    "lambda_min_clipped": (-math.inf,),
    "variance_type": (None, "fixed_small"),
    **dict.fromkeys(("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"), (False,)),
    "use_karras_sigmas": (False, True),  # of the ddim here no setting
    "sigma_min": (None,),
    "sigma_max": (None,),
    **dict.fromkeys(("use_flow_sigmas", "use_dynamic_shifting"), (False,)),
}


class Solver:
    """What the samplers share: the schedule, the steps, and the estimate of the clean latents."""

    init_noise_sigma = 1.0
    spacing = "linspace"
    """``timestep_spacing`` where the configuration has none."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        count = int(config.get("num_train_timesteps", 1000))
        first, last = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        if config.get("beta_schedule", "linear") == "linear":
            betas = torch.linspace(first, last, count)
        else:
            betas = torch.linspace(first**0.5, last**0.5, count) ** 2
        abar = torch.cumprod(1 - betas, 0)
        self.abar = rescale_zero_terminal_snr(abar) if config.get("rescale_betas_zero_snr") else abar
        self.alphas_cumprod = self.abar  # as diffusers' schedulers call it
        self.kind = config.get("prediction_type", "epsilon")
        self.timesteps = torch.empty(0, dtype=torch.int64)
        self.number = 0

    def set_timesteps(self, steps: int, device: Any = None) -> None:
        """Begin a sampling of ``steps`` steps."""
        self.timesteps = torch.from_numpy(self._timesteps(steps)).to(device)
        self.number = 0

    def set_begin_index(self, begin: int) -> None:
        """Begin at step number ``begin``, with latents that are noised as they are there."""
        self.number = begin

    def scale_model_input(self, latents: Tensor, step: Any) -> Tensor:
        """The latents themselves: these schedules keep their variance."""
        return latents

    def step(self, output: Tensor, step: Any, latents: Tensor, *, return_dict: bool = False) -> tuple[Tensor]:
        """Latents of the next timestep, from the network's ``output`` for ``latents``; steps come in their order."""
        latents = self._next(output, latents)
        self.number += 1
        return (latents,)

    def _next(self, output: Tensor, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def _timesteps(self, steps: int) -> np.ndarray:
        """int64 (steps,), falling (Lin et al. 2024, table 2)."""
        count, spacing = len(self.abar), self.config.get("timestep_spacing", self.spacing)
        if spacing == "linspace":
            return np.linspace(0, count - 1, steps + 1).round()[::-1][:-1].astype(np.int64)
        if spacing == "leading":
            rising = np.arange(steps + 1) * (count // (steps + 1))
            return rising[::-1][:-1].astype(np.int64) + int(self.config.get("steps_offset", 0))
        return np.arange(count, 0, -count / steps).round().astype(np.int64) - 1

    def _estimate(self, output: Tensor, latents: Tensor, alpha: float, sigma: float) -> Tensor:
        """The clean latents that ``output`` stands for."""
        if self.kind == "sample":
            return output
        if self.kind == "v_prediction":
            return alpha * latents - sigma * output
        return (latents - sigma * output) / alpha


class DDIM(Solver):
    """Song et al. (2021, arXiv 2010.02502), equation 12 without noise."""

    spacing = "leading"

    def _timesteps(self, steps: int) -> np.ndarray:
        count, spacing = len(self.abar), self.config.get("timestep_spacing", self.spacing)
        if spacing == "linspace":
            return np.linspace(0, count - 1, steps).round()[::-1].astype(np.int64)
        if spacing == "leading":
            rising = np.arange(steps) * (count // steps)
            return rising[::-1].astype(np.int64) + int(self.config.get("steps_offset", 0))
        return super()._timesteps(steps)

    def _next(self, output: Tensor, latents: Tensor) -> Tensor:
        now = int(self.timesteps[self.number])
        then = now - len(self.abar) // len(self.timesteps)
        last = 1.0 if self.config.get("set_alpha_to_one", True) else float(self.abar[0])
        abar, following = float(self.abar[now]), float(self.abar[then]) if then >= 0 else last
        alpha, sigma = abar**0.5, (1 - abar) ** 0.5
        clean = self._estimate(output, latents, alpha, sigma)
        if self.kind == "v_prediction":
            noise = alpha * output + sigma * latents
        else:
            noise = output if self.kind == "epsilon" else (latents - alpha * clean) / sigma
        return following**0.5 * clean + (1 - following) ** 0.5 * noise


KARRAS_RHO = 7.0
"""The larger, the more of the steps are at low noise."""


def karras_levels(ratios: np.ndarray, steps: int) -> np.ndarray:
    """Noise over signal of each step, falling evenly in its seventh root between the ends of ``ratios`` (Karras et al.
    2022, arXiv 2206.00364, equation 5)."""
    high, low = ratios[-1] ** (1 / KARRAS_RHO), ratios[0] ** (1 / KARRAS_RHO)
    return np.asarray((high + np.linspace(0, 1, steps) * (low - high)) ** KARRAS_RHO)


class Multistep(Solver):
    """What the solvers of order two share: alphas, sigmas and lambdas at every step, and the last estimates."""

    def set_timesteps(self, steps: int, device: Any = None) -> None:
        super().set_timesteps(steps, device)
        ratios = self._ratios()
        if self.config.get("use_karras_sigmas"):
            levels = karras_levels(ratios, steps)
        elif len(set(self.timesteps.tolist())) < steps:
            raise UserError(
                f"--steps {steps}: too many for this sampler, with {len(self.abar)} noise levels to tell apart; pass "
                "fewer, or --sampler ddim"
            )
        else:
            levels = np.interp(self.timesteps.cpu().numpy(), np.arange(len(ratios)), ratios)
        levels = np.append(levels, 0.0)
        self.alphas: list[float] = (1 / np.sqrt(levels**2 + 1)).tolist()
        self.sigmas: list[float] = (levels / np.sqrt(levels**2 + 1)).tolist()
        self.before: Tensor | None = None

    def _timesteps(self, steps: int) -> np.ndarray:
        if not self.config.get("use_karras_sigmas"):
            return super()._timesteps(steps)
        # The network is told the timestep of training that is nearest to each noise level.
        ratios = self._ratios()
        nearest = np.interp(np.log(karras_levels(ratios, steps)), np.log(ratios), np.arange(len(ratios)))
        return nearest.round().astype(np.int64)

    def _ratios(self) -> np.ndarray:
        """float64: noise over signal at every timestep of training, rising."""
        abar = self.abar.double().clone()
        if self.config.get("rescale_betas_zero_snr"):
            abar[-1] = 2.0**-24  # their lambda is finite
        return np.asarray(((1 - abar) / abar).sqrt().numpy())

    def _lambda(self, number: int) -> float:
        sigma = self.sigmas[number]
        return math.log(self.alphas[number] / sigma) if sigma else math.inf

    def _first(self, start: int, latents: Tensor, clean: Tensor) -> Tensor:
        """The step of order one from ``start`` to the next: the exact solution where ``clean`` stays what it is."""
        h = self._lambda(start + 1) - self._lambda(start)
        return self.sigmas[start + 1] / self.sigmas[start] * latents - self.alphas[start + 1] * math.expm1(-h) * clean


class DPMSolver(Multistep):
    """DPM-Solver++ (2M), Lu et al. (2022), algorithm 2; order one in the first and the last step."""

    def _next(self, output: Tensor, latents: Tensor) -> Tensor:
        n, before = self.number, self.before
        clean = self._estimate(output, latents, self.alphas[n], self.sigmas[n])
        self.before = clean
        if before is not None and n < len(self.timesteps) - 1:
            ratio = (self._lambda(n) - self._lambda(n - 1)) / (self._lambda(n + 1) - self._lambda(n))
            clean = clean + (clean - before) / (2 * ratio)
        return self._first(n, latents, clean)


class UniPC(Multistep):
    """UniPC of order two with B2(h) = exp(h) - 1, Zhao et al. (2023, arXiv 2302.04867), algorithms 5 to 7 on the
    estimate of the clean latents: each output first corrects the latents that it was made of, then predicts the next.
    """

    def set_timesteps(self, steps: int, device: Any = None) -> None:
        super().set_timesteps(steps, device)
        self.older: Tensor | None = None
        self.start: Tensor | None = None

    def _next(self, output: Tensor, latents: Tensor) -> Tensor:
        n = self.number
        clean = self._estimate(output, latents, self.alphas[n], self.sigmas[n])
        if self.before is not None and self.start is not None:
            latents = self._corrected(n, clean, self.before, self.start)
        self.older, self.before, self.start = self.before, clean, latents
        if self.older is not None and n < len(self.timesteps) - 1:
            ratio = (self._lambda(n - 1) - self._lambda(n)) / (self._lambda(n + 1) - self._lambda(n))
            clean = clean + 0.5 * (self.older - clean) / ratio
        return self._first(n, latents, clean)

    def _corrected(self, n: int, clean: Tensor, before: Tensor, start: Tensor) -> Tensor:
        """The latents of step ``n`` again, with the estimate ``clean`` that they gave, from the step before."""
        h = self._lambda(n) - self._lambda(n - 1)
        slope = clean - before
        if self.older is None:  # order one
            return self._first(n - 1, start, before + 0.5 * slope)
        ratio = (self._lambda(n - 2) - self._lambda(n - 1)) / h
        # Weights (a, b) of the two differences: a + b = phi_1, ratio a + b = phi_2, scaled by B2 (equation 14).
        one = math.expm1(-h) / -h - 1
        two = one / -h - 0.5
        first, second = one / math.expm1(-h), 2 * two / math.expm1(-h)
        a = (first - second) / (1 - ratio)
        return self._first(n - 1, start, before + a * (self.older - before) / ratio + (first - a) * slope)


SOLVERS: dict[str, type[Solver]] = {
    "dpm++": DPMSolver,
    "dpm++-karras": DPMSolver,
    "unipc": UniPC,
    "unipc-karras": UniPC,
    "ddim": DDIM,
}


def find(sampler: str, config: Mapping[str, Any]) -> Solver | None:
    """The solver of ``sampler`` for a scheduler's configuration; None where diffusers' own class is needed."""
    known = all(config[key] in values for key, values in KNOWN.items() if key in config)
    return SOLVERS[sampler](config) if sampler in SOLVERS and known else None
