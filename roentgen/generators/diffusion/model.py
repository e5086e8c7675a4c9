"""The diffusion model as one object: it samples, it has a loss, it is loaded and saved as a diffusers pipeline.

The sampling loop is our own, so that each prompt is encoded once and each image's noise comes from its own
seed on the CPU: an image depends on (model, prompt, seed, steps, guidance, sampler), not on the order
or on what else was generated; batch size, threads and device change it by rounding alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from roentgen import images
from roentgen.errors import UserError, told_of
from roentgen.files import explained, file_sha256, new_folder, reason, sha256
from roentgen.generators.base import Info, checked_images, roentgen_json
from roentgen.generators.diffusion.parts import check_parts
from roentgen.generators.diffusion.sampling import Sampling, clean_estimate, make_solver, prompts_alone
from roentgen.generators.networks import Networks, info_of, place_of
from roentgen.models import hub, loading
from roentgen.models.autoencoder.channels import to_grey
from roentgen.models.autoencoder.latents import downsampling
from roentgen.models.lora import LORA_FILE, apply_lora
from roentgen.models.plain.decoder import Autoencoder
from roentgen.models.plain.unet import UNet
from roentgen.models.text_encoders import TextReader, encode_text_states, load_text_encoder, make_reader
from roentgen.models.trial import tried

if TYPE_CHECKING:
    from roentgen.generators.base import Editing, Edits
    from roentgen.generators.diffusion.objective import Objective

# Where RoentGen-v2's own training script leaves the text encoder that it trained; text_encoder/ is the base model's.
TRAINED_TEXT = "text_encoder_and_tokenizer"


@dataclass
class Diffusion(Networks):
    """A Stable Diffusion pipeline: its parts on one device, and what its ``roentgen.json`` says.

    reader: how prompts become tokens. compiled: the U-Net was compiled. projected: a text encoder of another width was
    put in, and the U-Net has a new projection. objective: what ``loss`` computes, once training has set it.
    """

    info: Info
    vae: Any = field(repr=False)
    unet: Any = field(repr=False)
    text_encoder: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    scheduler: Any = field(repr=False)
    reader: TextReader = field(repr=False)
    compiled: bool = False
    projected: bool = False
    objective: Objective | None = field(default=None, repr=False)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.out_channels, height, width

    @property
    def inpaints(self) -> bool:
        """Whether the U-Net reads, beside the latents, a mask and the latents of what is outside it."""
        return bool(self.unet.config.in_channels != self.unet.config.out_channels)

    @property
    def pixels(self) -> int:
        """Side of the images in pixels."""
        return min(self.latent_shape[1:]) * downsampling(self.vae)

    # ------------------------------------------------------------------------------------ loading, saving

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str,
        device: str | None = None,
        dtype: str | None = None,
        compile: bool = False,
        lora: Path | None = None,
        trainable: bool = False,
    ) -> Diffusion:
        """The pipeline in ``folder`` under the name ``name``; see ``generate.load_model`` for the rest."""
        classes = loading.check_folder(folder)
        device, kind = place_of(device, dtype)
        # Adapters are merged into the libraries' modules, too.
        parts = loading.load_components(folder, classes, kind, plain=not trainable and lora is None)
        digest = hub.model_hash(folder)
        if (folder / TRAINED_TEXT / "config.json").is_file():
            parts["tokenizer"], parts["text_encoder"] = load_text_encoder(str(folder / TRAINED_TEXT))
            parts["text_encoder"].requires_grad_(False)
            digest = _joined(digest, *map(file_sha256, hub.weights(folder / TRAINED_TEXT).files))
            print(f"roentgen: {name}: its text encoder is the trained one in {TRAINED_TEXT}/", file=sys.stderr)
        check_parts(name, parts)
        merged = None
        if lora is not None:
            lora_digest = apply_lora(lora, parts)
            digest = _joined(digest, lora_digest)
            merged = f"{lora.parent.name if lora.name == LORA_FILE else lora.stem} {lora_digest[:16]}"
        for part in ("vae", "unet", "text_encoder"):
            parts[part].to(device, kind)
        if device == "cpu":  # its convolutions decode faster in this layout; the U-Net's do not
            parts["vae"].to(memory_format=torch.channels_last)
        if compile:
            parts["unet"].compile()
        said = roentgen_json(folder)
        with told_of(f"--model {name}:"):
            chunks = said.get("text", {}).get("chunks", 1)
            reader = make_reader(parts["tokenizer"], parts["text_encoder"], chunks=chunks)
        info = info_of(said, name=name, folder=folder, place=(device, kind), hash=digest, lora=merged)
        return cls(info, reader=reader, compiled=compile, **parts)

    def save(self, folder: Path, facts: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> None:
        """Write an ordinary diffusers pipeline with ``facts`` as ``roentgen.json``; the old folder goes at the end."""
        from diffusers import StableDiffusionPipeline

        if isinstance(self.unet, UNet):
            raise RuntimeError("only a model that was loaded with trainable=True can be saved")
        pipeline: Any = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        if dtype != torch.float32:
            pipeline.to(dtype=dtype)
        with new_folder(folder, advice="checkpoints are kept: run the same command again") as temporary:
            try:
                pipeline.save_pretrained(temporary, safe_serialization=True)
            except SafetensorError as error:
                raise OSError(f"cannot write the pipeline: {error}") from error
            self._finish(temporary, facts)

    # ------------------------------------------------------------------------------------------ sampling

    def on(self, device: torch.device) -> Diffusion:
        """The same networks, moved to ``device``, which new samples are made on."""
        for module in (self.vae, self.unet, self.text_encoder):
            module.to(device)
        return replace(self, info=replace(self.info, device=str(device)))

    def sampling(self, **settings: Any) -> Sampling:
        """Settings of sampling: those given and not None, else the model's own, else the family's.

        UserError where one is out of range or unknown, or where the model cannot be sampled like that.
        """
        sampling: Sampling = self._settings(Sampling, "a diffusion model", settings)
        with explained(
            f"{self.info.name}: scheduler/scheduler_config.json does not fit",
            "copy it again",
            (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError),
        ):
            make_solver(self.scheduler, sampling.sampler, self.info.name).set_timesteps(sampling.steps)
        return sampling

    def batch_key(self, text: str) -> int:
        """Chunks of ``text``: those of a batch must be equal."""
        return self.reader.fitted(text).chunks

    @tried
    def sample(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
        on_step: Callable[[float], object] | None = None,
    ) -> Iterator[np.ndarray]:
        """One batch: the image of each text with its seed, uint8 grey (H, W), in order. UserError on one of NaN."""
        with torch.inference_mode():
            pixels = self.decode(self.latents(texts, seeds, sampling, on_step))
        yield from checked_images(pixels, texts, seeds)

    @torch.inference_mode()
    def latents(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
        on_step: Callable[[float], object] | None = None,
    ) -> Tensor:
        """Latents (N, C, h, w) of one batch, float32, scaled as the U-Net has them; ``decode`` makes images of them."""
        noise = torch.stack([self.initial_noise(seed) for seed in seeds])
        return self._denoise(noise, self.guided_text(texts, sampling), sampling, on_step)

    @tried
    def edit(
        self, batch: Edits, sampling: Sampling, editing: Editing, on_step: Callable[[float], object] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each image of a batch as its text says, and as the autoencoder alone gives it; see ``base.Editor``."""
        from roentgen.generators.diffusion import editing as latents

        yield from latents.edit(self, batch, sampling, editing, on_step)

    @tried
    def watch(self, text: str, seed: int, sampling: Sampling) -> Iterator[np.ndarray]:
        """The network's estimate of the image after each step but the last, and the image: uint8 grey (H, W)."""
        estimates: list[Tensor] = []
        with torch.inference_mode():
            noise = self.initial_noise(seed)[None]
            latents = self._denoise(noise, self.guided_text([text], sampling), sampling, None, estimates)
            for each in [*estimates[:-1], latents]:
                yield images.from_autoencoder(self.decode(each))[0]

    @tried
    def word_maps(self, text: str, seed: int, sampling: Sampling) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The image of ``text`` and ``seed``, and where each word was looked at; see ``base.Attentive``."""
        from roentgen.generators.diffusion.attention import word_maps

        return word_maps(self, text, seed, sampling)

    @torch.inference_mode()
    def trial(self) -> None:
        """See ``Networks``."""
        sampling = self.sampling(steps=1, sampler="ddim")
        latents = self._denoise(self.initial_noise(0)[None], self.guided_text([""], sampling), sampling, None)
        self.decode(latents)

    def initial_noise(self, seed: int) -> Tensor:
        """Unit normal float32 (C, h, w) from ``seed`` alone, made on the CPU: equal on every device."""
        return torch.randn(self.latent_shape, generator=torch.Generator("cpu").manual_seed(seed))

    def encode_text(self, text: str) -> Tensor:
        """Text-encoder output (1, chunks * L, D) of one prompt (or of "" for no prompt), as it was in training.

        A prompt takes as many chunks as it needs: a chunk that it does not need is hidden from the U-Net in training.
        """
        tokens = self.reader.fitted(text).tokens([text]).to(self.info.device)
        return encode_text_states(self.text_encoder, tokens, masked=self.reader.masked).to(self.dtype)

    def guided_text(self, texts: Sequence[str], sampling: Sampling) -> Any:
        """What the U-Net reads for each image: first of the negative prompt where there is guidance, then of its text.

        What is made of a text is made once, and the plain U-Net takes from it once what it needs at every step.
        """
        guided = sampling.guidance != 1
        distinct = list(dict.fromkeys(texts))
        states = [self._states(one) for one in [*([sampling.negative_prompt] if guided else []), *distinct]]
        length = math.lcm(*(one.shape[1] for one in states))
        stacked = torch.cat([lengthen(one, length) for one in states])
        own = [distinct.index(one) + guided for one in texts]
        rows = torch.tensor([*([0] * len(own) if guided else []), *own], device=stacked.device)
        if isinstance(self.unet, UNet):
            return [(keys[rows], values[rows]) for keys, values in self.unet.read(stacked)]
        return stacked[rows]

    def _denoise(
        self,
        noise: Tensor,
        text: Any,
        sampling: Sampling,
        on_step: Callable[[float], object] | None,
        estimates: list[Tensor] | None = None,
    ) -> Tensor:
        """Latents (N, C, h, w), float32, from unit noise; each step's estimate of them is put into ``estimates``.

        Latents and solver stay in float32 whatever the U-Net runs in: rounding there adds up over the steps.
        """
        solver = make_solver(self.scheduler, sampling.sampler, self.info.name)
        solver.set_timesteps(sampling.steps, device=self.info.device)
        latents = noise.to(self.info.device) * solver.init_noise_sigma
        beside = None
        if self.inpaints:
            from roentgen.generators.diffusion.editing import nothing_known

            beside = nothing_known(self, len(noise))
        bounds = (sampling.guided_from, sampling.guided_share)
        guided = range(*(math.ceil(round(bound * len(solver.timesteps), 6)) for bound in bounds))
        alone = text if sampling.guidance == 1 else prompts_alone(text)
        for number, step in enumerate(solver.timesteps):
            guidance, read = (sampling.guidance, text) if number in guided else (1.0, alone)
            inputs = solver.scale_model_input(latents, step)
            output = self.guided(inputs, step, read, guidance=guidance, beside=beside, first=number == 0)
            if estimates is not None:
                estimates.append(clean_estimate(solver, latents, output, step))
            latents = solver.step(output, step, latents, return_dict=False)[0]
            if on_step is not None:
                # PNDM takes more network calls than steps: count shares of a whole, so that the bar ends full.
                on_step(len(noise) / len(solver.timesteps))
        return latents

    def guided(
        self, latents: Tensor, step: Any, text: Any, *, guidance: float, beside: Tensor | None, first: bool = False
    ) -> Tensor:
        """The U-Net's output, float32 (N, C, h, w), by classifier-free guidance.

        Guided output = uncond + guidance * (cond - uncond), Ho & Salimans 2022 (arXiv 2207.12598). ``text`` is what
        ``guided_text`` gives; ``beside`` (N, C + 1, h, w) is what an inpainting U-Net reads beside the latents.
        """
        inputs = (latents if beside is None else torch.cat([latents, beside.to(latents)], dim=1)).to(self.dtype)
        if guidance == 1:
            return self.call_unet(inputs, step, text, first=first).float()
        output = self.call_unet(torch.cat([inputs, inputs]), step, text, first=first).float()
        unconditional, conditional = output.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def call_unet(self, inputs: Tensor, step: Any, text: Any, *, first: bool) -> Tensor:
        """The U-Net's output for latents (N, C, h, w); ``first`` is the call that may have to compile it."""
        try:
            output: Tensor = self.unet(inputs, step, encoder_hidden_states=text, return_dict=False)[0]
        except Exception as error:  # a missing C++ compiler or Triton comes as one of many classes
            if not (self.compiled and first):
                raise
            raise UserError(f"--compile: torch.compile does not work here ({reason(error)}); leave it out") from error
        return output

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, C, h, w) -> grey float32 (N, 1, H, W), nominally [-1, 1]; colour becomes luminance."""
        decoded = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.dtype), return_dict=False)[0]
        return to_grey(decoded.float())

    @tried
    @torch.inference_mode()
    def reconstruct(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W) through the autoencoder (posterior mode) and back; one of colour sees grey three times."""
        vae = self.whole_vae
        grey = images.to_autoencoder(pixels).to(self.info.device, self.dtype)
        latents = vae.encode(grey.expand(-1, vae.config.in_channels, -1, -1)).latent_dist.mode()
        return images.from_autoencoder(to_grey(vae.decode(latents, return_dict=False)[0].float()))

    @cached_property
    def whole_vae(self) -> Any:
        """The autoencoder with its encoder, which sampling is loaded without."""
        if not isinstance(self.vae, Autoencoder):
            return self.vae
        return loading.load_vae(self.info.folder / "vae").type(self.dtype).to(self.info.device)


def lengthen(states: Tensor, length: int) -> Tensor:
    """Repeat text states (N, L, D) along the tokens up to ``length``, a multiple of L.

    Attention over keys and values that all come equally often is attention over each of them once: the softmax's
    weights are shared among the copies and sum to the same. So the U-Net's output does not change.
    """
    return states.repeat(1, length // states.shape[1], 1)


def _joined(*digests: str) -> str:
    """One short hash of several."""
    return sha256(" ".join(digests))[:16]
