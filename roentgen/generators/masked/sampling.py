"""How a masked transformer is sampled: steps, guidance, temperature, order. Light at import: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from roentgen.errors import UserError
from roentgen.generators.base import check_text

SAMPLERS = ("halton", "confidence")
GUIDANCE_SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    Args:
        steps: parallel steps in which the picture is filled.
        guidance: guidance scale; 1 is none.
        guidance_schedule: constant, or linear or cosine from 1 up to the guidance scale.
        temperature: of the codes' distribution in the first step; 0 takes the likeliest.
        temperature_end: in the last one, with a straight line between them.
        top_k: share of a codebook's likeliest codes that is drawn from.
        sampler: which sites are filled first: halton (evenly spread) or confidence (those the network is surest of).
        randomness: of confidence: Gumbel noise on the log probability, falling to 0.
        negative_prompt: what to steer away from.
    """

    steps: int = 8
    guidance: float = 2.0
    guidance_schedule: str = "constant"
    temperature: float = 1.0
    temperature_end: float = 1.0
    top_k: float = 1.0
    sampler: str = "halton"
    randomness: float = 4.0
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        for name in ("guidance", "temperature", "temperature_end", "top_k", "randomness"):
            object.__setattr__(self, name, float(getattr(self, name)))  # a whole number of a JSON file, too
        if self.steps < 1:
            raise UserError(f"--steps {self.steps}: must be at least 1")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise UserError(f"--guidance {self.guidance}: must be 0 or more (1 is none, 2 is usual)")
        for name in ("temperature", "temperature_end", "randomness"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= 100):
                raise UserError(f"--{name.replace('_', '-')} {value:g}: must be from 0 to 100 (1 is usual)")
        if not 0 < self.top_k <= 1:
            raise UserError(f"--top-k {self.top_k:g}: must be above 0 and at most 1, the share of codes that is kept")
        if self.sampler not in SAMPLERS:
            raise UserError(
                f"--sampler {self.sampler}: unknown sampler; a masked transformer has {', '.join(SAMPLERS)}"
            )
        if self.negative_prompt:
            check_text(self.negative_prompt, "--negative-prompt")
        if self.guidance_schedule not in GUIDANCE_SCHEDULES:
            raise UserError(
                f"--guidance-schedule {self.guidance_schedule}: unknown; choose one of {', '.join(GUIDANCE_SCHEDULES)}"
            )

    def provenance(self) -> dict[str, str]:
        """Every setting as text."""
        return {
            "steps": str(self.steps),
            "guidance": f"{self.guidance:g}",
            "guidance_schedule": self.guidance_schedule,
            "temperature": f"{self.temperature:g}",
            "temperature_end": f"{self.temperature_end:g}",
            "top_k": f"{self.top_k:g}",
            "sampler": self.sampler,
            "randomness": f"{self.randomness:g}",
            "negative_prompt": self.negative_prompt,
        }

    def guidance_at(self, progress: float) -> float:
        """Guidance scale of the step that begins at ``progress`` in [0, 1)."""
        share = {
            "constant": 1.0,
            "linear": progress,
            "cosine": (1 - math.cos(math.pi * progress)) / 2,
        }[self.guidance_schedule]
        return 1 + (self.guidance - 1) * share

    def temperature_at(self, progress: float) -> float:
        """Temperature of the step that begins at ``progress`` in [0, 1)."""
        last = 1 - 1 / self.steps
        share = progress / last if last > 0 else 0.0
        return self.temperature + (self.temperature_end - self.temperature) * share
