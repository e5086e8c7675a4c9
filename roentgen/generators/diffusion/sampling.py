"""How a diffusion model is sampled: steps, guidance, sampler, negative prompt. Light at import: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from roentgen.config import Guidance, Share, Steps
from roentgen.errors import UserError
from roentgen.files import explained
from roentgen.generators.base import check_text

Sampler = Literal["dpm++", "dpm++-karras", "unipc", "unipc-karras", "ddim", "pndm"]
DPM = "DPMSolverMultistepScheduler"
SECOND_ORDER = {"algorithm_type": "dpmsolver++", "solver_order": 2}
# Name -> (diffusers scheduler, settings that must differ from the model's own scheduler config).
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": (DPM, {**SECOND_ORDER, "use_karras_sigmas": False}),
    "dpm++-karras": (DPM, {**SECOND_ORDER, "use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {"use_karras_sigmas": False}),
    "unipc-karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
    # diffusers' default clips the predicted sample to [-1, 1]: right for pixels, wrong for latents.
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}
# Prediction types that each scheduler of diffusers computes with.
PREDICTION_TYPES: dict[str, tuple[str, ...]] = {
    "dpm++": ("epsilon", "v_prediction", "sample", "flow_prediction"),
    "dpm++-karras": ("epsilon", "v_prediction", "sample"),
    "unipc": ("epsilon", "v_prediction", "sample", "flow_prediction"),
    "unipc-karras": ("epsilon", "v_prediction", "sample"),
    "ddim": ("epsilon", "v_prediction", "sample"),
    "pndm": ("epsilon", "v_prediction"),
}


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    Args:
        steps: denoising steps.
        guidance: guidance scale; 1 is none.
        sampler: dpm++, unipc, ddim or pndm; dpm++-karras and unipc-karras space their steps by noise level
            (Karras et al. 2022, arXiv 2206.00364, equation 5).
        negative_prompt: what to steer away from.
        guided_share: share of the steps that are guided, from the first one; the others read the prompt alone, and take
            half the time.
        guided_from: share of the steps after which guidance begins; with ``guided_share`` an interval of the noise
            levels is guided (Kynkäänniemi et al. 2024, arXiv 2404.07724).
    """

    steps: Steps = 25
    guidance: Guidance = 4.0
    sampler: str = "dpm++"
    negative_prompt: str = ""
    guided_share: Share = 1.0
    guided_from: Share = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance", float(self.guidance))  # a whole number of a JSON file, too
        if type(self.steps) is not int:
            raise UserError(f"--steps {self.steps!r}: must be a whole number")
        if self.steps < 1:
            raise UserError(f"--steps {self.steps}: must be at least 1")
        if self.steps > 1000:
            raise UserError(f"--steps {self.steps}: must be at most 1000, the number of training steps; 25 is usual")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise UserError(f"--guidance {self.guidance}: must be 0 or more (1 is none, 4 is usual)")
        if not 0 <= self.guided_share <= 1:
            raise UserError(f"--guided-share {self.guided_share}: must be from 0 to 1; 1 guides every step")
        if not 0 <= self.guided_from <= 1:
            raise UserError(f"--guided-from {self.guided_from}: must be from 0 to 1; 0 guides from the first step on")
        if self.sampler not in SAMPLERS:
            raise UserError(f"--sampler {self.sampler}: unknown sampler; choose one of {', '.join(SAMPLERS)}")
        if self.negative_prompt:
            check_text(self.negative_prompt, "--negative-prompt")

    def provenance(self) -> dict[str, str]:
        """Every setting as text; the interval that is guided where it is not all."""
        return {
            "negative_prompt": self.negative_prompt,
            "sampler": self.sampler,
            "steps": str(self.steps),
            "guidance": f"{self.guidance:g}",
            **({} if self.guided_share == 1 else {"guided_share": f"{self.guided_share:g}"}),
            **({} if self.guided_from == 0 else {"guided_from": f"{self.guided_from:g}"}),
        }


def make_solver(scheduler: Any, sampler: str, model: str) -> Any:
    """The sampler with noise schedule and prediction type of ``scheduler``, that of ``model``: ours, else diffusers'.

    UserError where the sampler cannot compute with them.
    """
    from roentgen.generators.diffusion.solvers import find

    config = scheduler.config
    if "beta_schedule" not in config:
        raise UserError(
            f"--model {model}: its scheduler {type(scheduler).__name__} has no noise schedule of betas, from which "
            "every sampler here starts; use a Stable Diffusion 1.x or 2.x pipeline"
        )
    changes = SAMPLERS[sampler][1]
    predicts = config.get("prediction_type", "epsilon")
    if predicts not in PREDICTION_TYPES[sampler]:
        fits = [name for name, types in PREDICTION_TYPES.items() if predicts in types]
        advice = f"use {' or '.join(fits)}" if fits else f"its prediction type {predicts} is unknown"
        raise UserError(f"--sampler {sampler} does not fit {model}, which predicts {predicts}; {advice}")
    if sampler == "pndm" and config.get("rescale_betas_zero_snr"):
        raise UserError(f"--sampler pndm cannot start from pure noise, as {model} needs; use dpm++ or ddim")
    if predicts == "flow_prediction":
        changes = {**changes, "use_flow_sigmas": True}
    # What is left at the default of one class of diffusers gets the default of the next.
    usual = config.get("_use_default_values", ())
    with explained(f"--model {model}: its scheduler cannot be used", "fetch it again"):
        ours = find(sampler, {key: value for key, value in config.items() if key not in usual} | changes)
        scheduler = stock_scheduler(config, sampler, **changes) if ours is None else ours
    return scheduler


def stock_scheduler(config: Any, sampler: str, **changes: Any) -> Any:
    """diffusers' own scheduler of ``sampler``, from a scheduler's configuration with ``changes``."""
    import diffusers

    class_name, settings = SAMPLERS[sampler]
    return getattr(diffusers, class_name).from_config(config, **{**settings, **changes})


def clean_estimate(solver: Any, latents: Any, output: Any, step: Any) -> Any:
    """The clean latents that the network's ``output`` for ``latents`` at timestep ``step`` stands for."""
    kind = solver.config.get("prediction_type", "epsilon")
    if kind == "sample":
        return output
    if kind == "flow_prediction":  # x_t = (1 - s) x_0 + s noise, with s = t / T
        return latents - float(step) / solver.config.get("num_train_timesteps", 1000) * output
    signal = float(solver.alphas_cumprod[int(step)])
    if kind == "v_prediction":
        return signal**0.5 * latents - (1 - signal) ** 0.5 * output
    return (latents - (1 - signal) ** 0.5 * output) / max(signal, 1e-8) ** 0.5


def prompts_alone(text: Any) -> Any:
    """Of what a U-Net reads with guidance, states or a layer's keys and values, the half that is of the prompts."""
    if isinstance(text, list):
        return [(keys.chunk(2)[1], values.chunk(2)[1]) for keys, values in text]
    return text.chunk(2)[1]
