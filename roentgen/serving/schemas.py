"""Bodies of requests. Their fields of sampling are the families' own settings, with the ranges of the command line."""

from __future__ import annotations

import math
import re
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model

from roentgen.config import Seed
from roentgen.config.ranges import Range
from roentgen.config.settings import settings_of
from roentgen.config.values import arm, unwrap
from roentgen.generators import FAMILIES

JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def bounded(hint: Any, about: str = "") -> Any:
    """A setting's type with its range, as pydantic checks it, with the command line's words for what is wrong."""
    base, extras = unwrap(arm(unwrap(hint)[0]))
    limits = [extra for extra in (*unwrap(hint)[1], *extras) if isinstance(extra, Range)]

    def check(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("must be a finite number")
        for limit in limits:
            if wrong := limit.wrong(value):
                raise ValueError(f"{value} {wrong}")
        return value

    said: dict[str, Any] = {"type": JSON_TYPES[base]}
    if about:
        said["description"] = about
    for limit in limits:
        said["exclusiveMinimum" if limit.above else "minimum"] = limit.low
        said["exclusiveMaximum" if limit.below else "maximum"] = limit.high
    return Annotated[base, AfterValidator(check), WithJsonSchema(said)]


def family_settings() -> dict[str, tuple[Any, str]]:
    """(type, help) of the sampling settings of all families, by name."""
    found: dict[str, tuple[Any, str]] = {}
    for package in FAMILIES.values():
        for one in settings_of(import_module(package).Sampling):
            found.setdefault(one.key, (one.hint, one.help))
    return found


SETTINGS = family_settings()
SAMPLERS = [name for package in FAMILIES.values() for name in import_module(f"{package}.sampling").SAMPLERS]
"""Names of all families' samplers."""


class Lenient(BaseModel):
    """What is not known is kept apart, so that the reply can say that it was ignored."""

    model_config = ConfigDict(extra="allow")

    def ignored(self) -> list[str]:
        """Names of the fields that were sent with a value and are not known here."""
        return sorted(key for key, value in (self.model_extra or {}).items() if value is not None)


_SAMPLED: dict[str, Any] = {
    "seed": (bounded(Seed) | None, Field(None, description="of the first image, the others count on; random if null")),
    **{key: (bounded(hint, about) | None, Field(None, description=about)) for key, (hint, about) in SETTINGS.items()},
}
Sampled: Any = create_model("Sampled", __base__=Lenient, **_SAMPLED)


def _numbers(value: Any) -> Any:
    """A list as it is, or the parts of a text with commas or spaces between them."""
    return re.split(r"[\s,]+", value.strip("[] \t")) if isinstance(value, str) else value


class ImageRequest(Sampled):  # type: ignore[misc]
    """OpenAI's request for images, with the sampling settings of ``roentgen generate`` beside it."""

    prompt: str = Field(description="what to show, such as 'left pleural effusion'", examples=["left pleural effusion"])
    model: str | None = Field(None, description="a name of /v1/models; the server's first model if null")
    n: int | None = Field(None, ge=1, description="images; 1 if null")
    size: str | None = Field(None, description="WIDTHxHEIGHT; the model's own size is made, and the reply says which")
    response_format: Literal["url", "b64_json"] | None = Field(None, description="both if null")
    output_format: Literal["png", "jpeg"] | None = Field(None, description="png if null")
    stream: bool | None = Field(None, description="server-sent events: one an image, and progress if asked for")
    progress: bool | None = Field(None, description="with stream: events 'image_generation.progress' as well")

    def settings(self) -> dict[str, Any]:
        """The sampling settings that were given."""
        return {key: getattr(self, key) for key in SETTINGS if getattr(self, key) is not None}


class EditRequest(ImageRequest):
    """OpenAI's request to edit an image, as a form; what a ``mask`` shows transparent or white may change."""

    prompt: str = Field("", description="what the image should show")
    remove: str = Field("", description="what should go; takes the place of the negative prompt")
    strength: float = Field(0.7, description="share of the denoising that is done again, above 0 to 1")
    lung: Literal["left", "right"] | None = Field(None, description="change this half, the patient's, only")
    box: Annotated[list[float], BeforeValidator(_numbers)] | None = Field(
        None, min_length=4, max_length=4, description="change inside x1,y1,x2,y2 only, in fractions of the image"
    )
    invert: bool | None = Field(None, description="begin with the image's own noise; true for one image if null")
    detail: bool = Field(True, description="keep what the autoencoder cannot draw")


class WebRequest(Lenient):
    """The web UI's request for images; keys that are not listed are ignored."""

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = Field(-1, ge=-1, le=2**63 - 1, description="-1: random")
    steps: bounded(SETTINGS["steps"][0]) | None = None  # type: ignore[valid-type]
    cfg_scale: bounded(SETTINGS["guidance"][0]) | None = None  # type: ignore[valid-type]
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: int = Field(1, ge=1)
    n_iter: int = Field(1, ge=1)
    width: int | None = None
    height: int | None = None
    override_settings: dict[str, Any] | None = None
    send_images: bool = True


class WebEditRequest(WebRequest):
    """The web UI's request to edit an image: ``init_images`` and ``mask`` are base64 or data URLs."""

    init_images: list[str] = Field(min_length=1, max_length=1)
    mask: str | None = None
    inpainting_mask_invert: int = 0
    denoising_strength: float = 0.75
    include_init_images: bool = False


class ReportForm(BaseModel):
    """What may be known beside the images of a report."""

    model: str | None = Field(None, description="a reporter of /v1/models; the first if null")
    indication: str = ""
    technique: str = ""
    comparison: str = ""
    prior_report: str = ""


class PngInfoRequest(BaseModel):
    """A PNG as base64 or data URL."""

    image: str
