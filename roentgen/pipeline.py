"""Load a model and generate: from prompts to an iterator of grey images, one seed an image.

The sampling loop is our own, so that each prompt is encoded once and each image's noise comes from its own
seed on the CPU: an image depends on (model, prompt, seed, steps, guidance, sampler), not on the batch size,
the order, the device, or what else was generated.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from roentgen import __version__, images
from roentgen.errors import UserError
from roentgen.files import sha256
from roentgen.models import loading, registry

if TYPE_CHECKING:
    import torch

    from roentgen.models.text_encoders import TextReader

# Name -> (diffusers scheduler, settings that must differ from the model's own scheduler config).
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": ("UniPCMultistepScheduler", {}),
    # diffusers' default clips the predicted sample to [-1, 1]: right for pixels, wrong for latents.
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}
DTYPES = ("auto", "float32", "float16", "bfloat16")
FALLBACKS: dict[str, Any] = {"steps": 25, "guidance": 4.0, "sampler": "dpm++"}


@dataclass(frozen=True)
class Model:
    """A loaded Stable Diffusion pipeline: its parts on one device, and what its ``roentgen.json`` says.

    hash: first 16 hex digits of the SHA-256 over its weight files. dtype: torch dtype of the U-Net.
    defaults: steps, guidance, sampler. vocabulary: lower-case words of its training text, or None if unknown.
    reader: how prompts become tokens. lora: what was merged into the weights, or None.
    """

    name: str
    folder: Path
    hash: str
    device: str
    dtype: Any
    vae: Any = field(repr=False)
    unet: Any = field(repr=False)
    text_encoder: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    scheduler: Any = field(repr=False)
    reader: TextReader = field(repr=False)
    defaults: Mapping[str, Any] = field(default_factory=lambda: dict(FALLBACKS))
    vocabulary: frozenset[str] | None = field(default=None, repr=False)
    compiled: bool = False
    lora: str | None = None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    def check_prompt(self, prompt: str, flag: str = "prompt") -> None:
        """UserError if ``prompt`` is longer than the model reads (it is never cut)."""
        lengths = self.reader.count([prompt])
        if lengths.cut:
            raise UserError(
                f"{flag} {prompt[:80]!r}{'...' if len(prompt) > 80 else ''} has {lengths.longest} tokens; the text "
                f"encoder of {self.name} takes at most {self.reader.limit} (with start and end): shorten it"
            )

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of ``prompt`` that the model has not seen in training, in order; empty if it is not known."""
        if self.vocabulary is None:
            return []
        return [word for word in dict.fromkeys(_words(prompt)) if word not in self.vocabulary]


@dataclass(frozen=True)
class Sample:
    """One generated image: uint8 grey [H, W], with what made it. ``index`` counts within its prompt."""

    image: np.ndarray
    prompt: str
    seed: int
    index: int
    provenance: dict[str, str]


def load_model(
    name: str = "mini",
    *,
    device: str | None = None,
    dtype: str | None = None,
    compile: bool = False,
    lora: str | Path | None = None,
) -> Model:
    """Load a named model, a diffusers folder or a hub id.

    ``device``: None or ``auto`` takes a GPU if there is one. ``dtype``: None or ``auto`` is float16 on a CUDA
    GPU and float32 elsewhere. ``compile``: torch.compile the U-Net. ``lora``: a diffusers LoRA to merge into the
    weights, as a file or a folder with pytorch_lora_weights.safetensors; the model's hash then covers it too.
    UserError on an unknown or damaged model or LoRA.
    """
    lora_file = None if lora is None else loading.find_lora(lora)
    source = registry.resolve(name)
    if (dtype or "auto") not in DTYPES:
        raise UserError(f"--dtype {dtype}: unknown; choose one of {', '.join(DTYPES)}")
    if source.folder is not None:
        loading.check_folder(source.folder)  # before seconds of imports
    device = pick_device(device)
    folder = loading.find_folder(source)
    classes = loading.check_folder(folder)

    import torch

    from roentgen.models.text_encoders import make_reader

    automatic = "float16" if device.startswith("cuda") else "float32"
    kind = getattr(torch, automatic if dtype in (None, "auto") else dtype)
    parts = loading.load_components(folder, classes, kind)
    digest = loading.model_hash(folder)
    if lora_file is not None:
        lora_digest = loading.add_lora(lora_file, parts)
        digest = sha256(f"{digest} {lora_digest}")[:16]
        lora = f"{lora_file.parent.name if lora_file.name == loading.LORA_FILE else lora_file.stem} {lora_digest[:16]}"
    for part in ("vae", "unet", "text_encoder"):
        parts[part].to(device, kind)
    if device == "cpu":  # its convolutions decode faster in this layout; the U-Net's do not
        parts["vae"].to(memory_format=torch.channels_last)
    if compile:
        parts["unet"].compile()
    settings = _roentgen_json(folder)
    words = settings.get("vocabulary")
    text = settings.get("text", {})
    chunks = text.get("chunks", 1) if isinstance(text, dict) else text
    if type(chunks) is not int or chunks < 1:
        raise UserError(f"{folder / 'roentgen.json'}: text.chunks is {chunks!r}; it must be a whole number from 1")
    try:
        reader = make_reader(parts["tokenizer"], parts["text_encoder"], chunks=chunks)
    except UserError as error:
        raise UserError(f"--model {name}: {error}") from None
    return Model(
        # A local path in every image's provenance would tell more of the user than of the model.
        name=name if name in registry.NAMED or source.folder is None else folder.resolve().name,
        folder=folder,
        hash=digest,
        device=device,
        dtype=kind,
        defaults={**FALLBACKS, **settings.get("defaults", {})},
        vocabulary=None if words is None else frozenset(part for word in words for part in _words(word)),
        compiled=compile,
        reader=reader,
        lora=None if lora is None else str(lora),
        **parts,
    )


def _roentgen_json(folder: Path) -> dict[str, Any]:
    file = folder / "roentgen.json"
    return loading.read_json(file) if file.is_file() else {}


def pick_device(device: str | None) -> str:
    import torch

    if device in (None, "auto"):
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device {device}: unknown device; use auto, cpu, cuda, cuda:N or mps") from error
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {device}: no CUDA GPU is available here; use --device cpu")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {device}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    if kind.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {device}: no Apple GPU is available here; use --device cpu")
    if kind.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {device}: unsupported; use auto, cpu, cuda, cuda:N or mps")
    return str(kind)


def throughput_dtype(device: str) -> str:
    """What ``dtype`` auto means for thousands of images: bfloat16 on a CPU that multiplies in it, else ``auto``.

    A single image is made in float32 on every CPU, so that it is the same everywhere but for rounding.
    """
    import torch

    if pick_device(device) != "cpu":
        return "auto"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # from PyTorch 2.11
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "auto"


# ------------------------------------------------------------------------------------------- checks


def check_settings(
    *,
    num_images: int = 1,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    batch_size: int = 4,
) -> None:
    """UserError on a setting out of range; needs no model, so that a typing error costs no loading."""
    for flag, value, least in (
        ("num-images", num_images, 1),
        ("batch-size", batch_size, 1),
        ("steps", steps, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"--{flag} {value}: must be at least {least}")
    if steps is not None and steps > 1000:
        raise UserError(f"--steps {steps}: must be at most 1000, the number of training steps; 25 is usual")
    if guidance is not None and not (math.isfinite(guidance) and guidance >= 0):
        raise UserError(f"--guidance {guidance}: must be 0 or more (1 is none, 4 is usual)")
    if sampler is not None and sampler not in SAMPLERS:
        raise UserError(f"--sampler {sampler}: unknown sampler; choose one of {', '.join(SAMPLERS)}")
    check_seed(seed)


def check_seed(seed: int, last: int = 0) -> None:
    """UserError unless ``seed`` to ``seed + last`` can seed torch's generator."""
    if seed < 0 or seed + last >= 2**63:
        raise UserError(f"--seed {seed}: must be from 0 to 2^63 - 1 less the number of images")


def check_text(prompt: object, flag: str = "prompt") -> None:
    """UserError if ``prompt`` is not text with at least one letter."""
    if not isinstance(prompt, str):
        raise UserError(f"{flag} {prompt!r} is not text; write a finding such as 'left pleural effusion'")
    if not prompt.strip():
        raise UserError(f"{flag} is empty; write a finding such as 'left pleural effusion'")
    if not any(character.isalpha() for character in prompt):
        raise UserError(f"{flag} {prompt[:80]!r} has no words; write a finding such as 'left pleural effusion'")


def _words(text: str) -> list[str]:
    """Lower-case runs of at least two letters: numbers, the s of a genitive and punctuation are not words."""
    return re.findall(r"[^\W\d_]{2,}", text.lower())


# --------------------------------------------------------------------------------------- generating


def generate(
    model: Model,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int | None] | None = None,
    num_images: int = 1,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    negative_prompt: str = "",
    batch_size: int = 4,
    encode: Callable[[str], torch.Tensor] | None = None,
    on_step: Callable[[float], object] | None = None,
) -> Iterator[Sample]:
    """Check everything now, then generate lazily: prompt by prompt, ``num_images`` each.

    Image i of a prompt has the seed ``seed + i``; ``seeds`` gives a prompt its own first seed (or None).
    ``steps``, ``guidance`` and ``sampler`` default to the model's. ``encode``: a ``text_cache`` of the model, for
    several calls with the same prompts. ``on_step`` is called after each denoising step with its share of the work,
    in images. UserError on bad settings or prompts, and on NaN images.
    """
    if isinstance(prompts, str):
        prompts = [prompts]
    if not prompts:
        raise UserError("no prompt: give at least one")
    if seeds is not None and len(seeds) != len(prompts):
        raise UserError(f"seeds: {len(seeds)} seeds for {len(prompts)} prompts; give one for each")
    steps = int(model.defaults["steps"]) if steps is None else steps
    guidance = float(model.defaults["guidance"]) if guidance is None else guidance
    sampler = str(model.defaults["sampler"]) if sampler is None else sampler
    check_settings(
        num_images=num_images,
        seed=seed,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        batch_size=batch_size,
    )
    for prompt in prompts:
        check_text(prompt)
    for prompt in dict.fromkeys(prompts):
        model.check_prompt(prompt)
    if negative_prompt:
        check_text(negative_prompt, "--negative-prompt")
        model.check_prompt(negative_prompt, "--negative-prompt")
    jobs: list[tuple[str, int, int]] = []
    for number, prompt in enumerate(prompts):
        own = None if seeds is None else seeds[number]
        first = seed if own is None else own
        check_seed(first, num_images - 1)
        jobs += [(prompt, first + index, index) for index in range(num_images)]

    provenance = {
        "negative_prompt": negative_prompt,
        "model": model.name,
        "model_hash": model.hash,
        **({} if model.lora is None else {"lora": model.lora}),
        "sampler": sampler,
        "steps": str(steps),
        "guidance": f"{guidance:g}",
        "version": __version__,
        "software": "roentgen",
        "synthetic": "true",
    }
    scheduler = make_scheduler(model, sampler)
    known = text_cache(model) if encode is None else encode
    return _run(model, jobs, scheduler, steps, guidance, negative_prompt, batch_size, provenance, known, on_step)


def text_cache(model: Model, size: int = 256) -> Callable[[str], torch.Tensor]:
    """``encode_text`` of the model that remembers the last ``size`` prompts."""
    return lru_cache(maxsize=size)(lambda text: encode_text(model, text))


def make_scheduler(model: Model, sampler: str) -> Any:
    """The sampler's diffusers scheduler with the model's own noise schedule and prediction type."""
    import diffusers

    class_name, changes = SAMPLERS[sampler]
    if sampler == "pndm" and model.scheduler.config.get("rescale_betas_zero_snr"):
        raise UserError(f"--sampler pndm cannot start from pure noise, as {model.name} needs; use dpm++ or ddim")
    return getattr(diffusers, class_name).from_config(model.scheduler.config, **changes)


def _run(
    model: Model,
    jobs: Sequence[tuple[str, int, int]],
    scheduler: Any,
    steps: int,
    guidance: float,
    negative_prompt: str,
    batch_size: int,
    provenance: Mapping[str, str],
    encode: Callable[[str], torch.Tensor],
    on_step: Callable[[float], object] | None,
) -> Iterator[Sample]:
    import torch

    for batch in _batches(model, jobs, batch_size):
        try:
            with torch.inference_mode():
                text = torch.cat([encode(prompt) for prompt, _, _ in batch])
                if guidance != 1:
                    negative = encode(negative_prompt)
                    length = math.lcm(text.shape[1], negative.shape[1])
                    text = _lengthen(text, length)
                    text = torch.cat([_lengthen(negative, length).expand(len(batch), -1, -1), text])
                noise = torch.stack([initial_noise(model, seed) for _, seed, _ in batch])
                latents = _denoise(model, scheduler, noise, text, steps, guidance, on_step)
                pixels = _decode(model, latents)
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(f"--batch-size {batch_size}: out of GPU memory; pass a smaller one") from error
        for number, (prompt, seed, index) in enumerate(batch):
            try:
                image = images.from_autoencoder(pixels[number : number + 1])[0]
            except FloatingPointError as error:
                raise UserError(
                    f"--dtype: the image of {prompt[:80]!r}, seed {seed}, came out as NaN; pass "
                    "--dtype float32, or fetch the model again"
                ) from error
            yield Sample(image, prompt, seed, index, {"prompt": prompt, "seed": str(seed), **provenance})


def initial_noise(model: Model, seed: int) -> torch.Tensor:
    """Unit normal float32 [C, h, w] from ``seed`` alone, made on the CPU: equal on every device."""
    import torch

    return torch.randn(model.latent_shape, generator=torch.Generator("cpu").manual_seed(seed))


def _batches(
    model: Model, jobs: Sequence[tuple[str, int, int]], batch_size: int
) -> Iterator[Sequence[tuple[str, int, int]]]:
    """``jobs`` in order, in batches whose prompts fill equally many chunks: an image must not depend on its batch."""
    chunks = {prompt: model.reader.fitted(prompt).chunks for prompt in dict.fromkeys(job[0] for job in jobs)}
    for _, run in groupby(jobs, key=lambda job: chunks[job[0]]):
        alike = list(run)
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]


def encode_text(model: Model, text: str) -> torch.Tensor:
    """Text-encoder output [1, chunks * L, D] of one prompt (or of "" for no prompt), as it was in training.

    A prompt takes as many chunks as it needs: a chunk that it does not need is hidden from the U-Net in training.
    """
    from roentgen.models.text_encoders import encode_text_states

    tokens = model.reader.fitted(text).tokens([text]).to(model.device)
    return encode_text_states(model.text_encoder, tokens, masked=model.reader.masked).to(model.dtype)


def _lengthen(states: torch.Tensor, length: int) -> torch.Tensor:
    """Repeat text states [N, L, D] along the tokens up to ``length``, a multiple of L.

    Attention over keys and values that all come equally often is attention over each of them once: the softmax's
    weights are shared among the copies and sum to the same. So the U-Net's output does not change.
    """
    return states.repeat(1, length // states.shape[1], 1)


def _denoise(
    model: Model,
    scheduler: Any,
    noise: torch.Tensor,
    text: torch.Tensor,
    steps: int,
    guidance: float,
    on_step: Callable[[float], object] | None,
) -> torch.Tensor:
    """Latents [N, C, h, w], float32, from unit noise by ``steps`` steps of classifier-free guidance.

    Guided output = uncond + guidance * (cond - uncond), Ho & Salimans 2022 (arXiv 2207.12598). Latents and
    solver stay in float32 whatever the U-Net runs in: rounding there adds up over the steps.
    """
    import torch

    scheduler.set_timesteps(steps, device=model.device)  # also clears a multistep solver's memory
    latents = noise.to(model.device) * scheduler.init_noise_sigma
    for number, step in enumerate(scheduler.timesteps):
        inputs = scheduler.scale_model_input(latents, step).to(model.dtype)
        if guidance != 1:
            inputs = torch.cat([inputs, inputs])
        output = _call_unet(model, inputs, step, text, first=number == 0).float()
        if guidance != 1:
            unconditional, conditional = output.chunk(2)
            output = unconditional + guidance * (conditional - unconditional)
        latents = scheduler.step(output, step, latents, return_dict=False)[0]
        if on_step is not None:
            # PNDM takes more network calls than steps: count shares of a whole, so that the bar ends full.
            on_step(len(noise) / len(scheduler.timesteps))
    return latents


def _call_unet(model: Model, inputs: torch.Tensor, step: Any, text: torch.Tensor, first: bool) -> torch.Tensor:
    if not (model.compiled and first):
        return model.unet(inputs, step, encoder_hidden_states=text, return_dict=False)[0]
    try:
        return model.unet(inputs, step, encoder_hidden_states=text, return_dict=False)[0]
    except Exception as error:  # a missing C++ compiler or Triton comes as one of many classes
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--compile: torch.compile does not work here ({reason}); leave it out") from error


def _decode(model: Model, latents: torch.Tensor) -> torch.Tensor:
    """Latents [N, C, h, w] -> grey float32 [N, 1, H, W], nominally [-1, 1]; colour becomes luminance."""
    decoded = model.vae.decode((latents / model.vae.config.scaling_factor).to(model.dtype), return_dict=False)[0]
    decoded = decoded.float()
    if decoded.shape[1] == 1:
        return decoded
    if decoded.shape[1] != 3:
        raise UserError(f"--model {model.name}: its autoencoder has {decoded.shape[1]} channels; 1 or 3 can be saved")
    red, green, blue = decoded.clamp(-1, 1).split(1, dim=1)  # clamp first, as a picture viewer would
    return 0.299 * red + 0.587 * green + 0.114 * blue


def warn_unknown_words(model: Model, prompts: Sequence[str]) -> dict[str, list[str]]:
    """One line on stderr for all words that the model has not seen; return them by prompt."""
    unknown = {prompt: model.unknown_words(prompt) for prompt in prompts}
    words = list(dict.fromkeys(word for found in unknown.values() for word in found))
    if words:
        print(
            f"roentgen: warning: {model.name} has never seen these words in training, so expect them to have "
            f"little effect: {', '.join(words)}",
            file=sys.stderr,
        )
    return unknown
