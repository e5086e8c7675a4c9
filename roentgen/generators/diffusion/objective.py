"""What a diffusion model learns from: which of its parts are trained, what is drawn for a batch, and the loss."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from roentgen.config import Range, Share
from roentgen.generators.base import Batch
from roentgen.generators.diffusion import process
from roentgen.generators.diffusion.denoiser import Denoiser
from roentgen.images import to_autoencoder
from roentgen.models.autoencoder.latents import linear_encoder, linear_posterior
from roentgen.models.autoencoder.losses import pyramid_l1
from roentgen.models.lora import add_lora
from roentgen.models.text_encoders import Tokens, encode_text_states

if TYPE_CHECKING:
    from roentgen.generators.diffusion.model import Diffusion


# Layers of the U-Net that read the text: all four, or the two that make keys and values of it (Custom Diffusion,
# Kumari et al. 2023, section 3.2).
CROSS_ATTENTION = {"crossattn_kv": ("attn2.to_k.", "attn2.to_v."), "crossattn": ("attn2.",)}


@dataclass(frozen=True)
class Train:
    """What is trained; the rest is frozen."""

    unet: Annotated[bool, "the U-Net"] = True
    unet_only: Annotated[
        Literal["crossattn", "crossattn_kv"] | None,
        "of the U-Net only its cross-attention, or only the keys and values of that; null for all of it",
    ] = None
    text_encoder: Annotated[bool, "the text encoder"] = True
    vae_decoder: Annotated[bool, "the autoencoder's decoder (its encoder never is: latents stay what they are)"] = False


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters instead of full weights."""

    rank: Annotated[int, Range(0, 4096), "rank of the adapters; 0 is full fine-tuning"] = 0
    alpha: Annotated[int | None, Range(1, 65_536), "scale of the adapters times their rank; null is the rank"] = None
    unet: Annotated[bool, "adapters on the U-Net, where that is trained"] = True
    text_encoder: Annotated[bool, "adapters on the text encoder, where that is trained"] = True


@dataclass(frozen=True)
class Loss:
    """The diffusion loss."""

    min_snr_gamma: Annotated[float | None, Range(0, 1000, above=True), "min-SNR loss weight; null for none"] = 5.0
    noise_offset: Annotated[Share, "strength of one noise value added to each channel as a whole"] = 0.0
    zero_terminal_snr: Annotated[
        bool, "rescale the noise schedule so that it ends in pure noise (needs v_prediction)"
    ] = False
    balance: Annotated[
        float,
        Range(0, 10),
        "power of the loss weight of rare findings: 0 none, 1 every finding counts as much as every other",
    ] = 0.0


class Losses(NamedTuple):
    """Of each sample of a batch, (n,) float32: squared error, what is minimised, and the reward's part before its
    weight."""

    error: Tensor
    loss: Tensor
    reward_loss: Tensor


def set_trained(model: Diffusion, train: Train, lora: Lora, *, rates: tuple[float, float, float]) -> list[dict]:
    """Optimiser groups of U-Net, text encoder and decoder with their peak ``rates``; the rest is frozen, adapters are
    put in place."""
    for module, wanted in ((model.unet, train.unet), (model.text_encoder, train.text_encoder)):
        module.requires_grad_(wanted)
    if train.unet and train.unet_only is not None:
        for name, parameter in model.unet.named_parameters():
            parameter.requires_grad_(any(part in name for part in CROSS_ATTENTION[train.unet_only]))
    if lora.rank:
        add_lora(*adapted(model, train, lora), rank=lora.rank, alpha=lora.alpha)
    if model.projected:  # a new layer has to learn, whatever else does
        model.unet.encoder_hid_proj.requires_grad_(True)
    if train.vae_decoder:
        for module in filter(None, (model.vae.post_quant_conv, model.vae.decoder)):
            module.requires_grad_(True)
    for name, parameter in model.text_encoder.named_parameters():
        if name.startswith("pooler"):  # Stable Diffusion does not use it: it would never get a gradient
            parameter.requires_grad_(False)
    groups = []
    for module, rate in zip((model.unet, model.text_encoder, model.vae), rates, strict=True):
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if learning:
            groups.append({"params": learning, "lr": rate})
    return groups


def adapted(model: Diffusion, train: Train, lora: Lora) -> tuple[Any, Any]:
    """U-Net and text encoder where adapters are trained on them, else None."""
    return (
        model.unet if lora.rank and train.unet and lora.unet else None,
        model.text_encoder if lora.rank and train.text_encoder and lora.text_encoder else None,
    )


def learns_text(model: Diffusion) -> bool:
    """Whether the text encoder, or an adapter on it, is trained."""
    return any(parameter.requires_grad for parameter in model.text_encoder.parameters())


def denoiser_of(model: Diffusion, train: Train) -> Denoiser:
    """What is trained, as one module."""
    return Denoiser(
        model.unet,
        text_encoder=model.text_encoder if learns_text(model) else None,
        decoder=model.vae if train.vae_decoder else None,
        masked=model.reader.masked,
        chunks=model.reader.chunks,
    )


class Objective:
    """The loss of a diffusion model on batches.

    Args:
        model: what is trained; ``network`` is its ``Denoiser``, which a run replaces by the one that accelerate wraps.
        loss: options of the loss.
        train: what is trained.
        device: of the batches.
        precision: bf16, fp16 or no.
        latents_online: batches hold pixels, not latents.
        text_online: batches hold tokens, not states, though the text encoder is frozen.
        autocast: context of the networks' forward passes.
        read: pixels uint8 (n, S, S) of rows, for a decoder that is trained on cached latents.
    """

    def __init__(
        self,
        model: Diffusion,
        loss: Loss,
        train: Train,
        *,
        device: torch.device,
        precision: str,
        latents_online: bool,
        text_online: bool,
        autocast: Callable[[], AbstractContextManager[Any]],
        read: Callable[[Any], Any],
    ) -> None:
        self.kind: str = model.scheduler.config.prediction_type
        self.abar = process.cumulative_alphas(model.scheduler).to(device)
        self.weights = process.min_snr_weights(self.kind, self.abar, loss.min_snr_gamma)
        self.latent_shape = model.latent_shape
        self.scale: float = model.vae.config.scaling_factor
        self.masked = model.reader.masked
        self.noise_offset = loss.noise_offset
        self.decodes = train.vae_decoder
        self.vae = frozen_copy(model.vae, device, precision) if latents_online else None
        self.linear = linear_encoder(model.vae) if latents_online else None
        self.text_encoder = frozen_copy(model.text_encoder, device, precision) if text_online else None
        self.autocast = autocast
        self.read = read
        self.network: Any = denoiser_of(model, train)
        self.reward: Callable[[Tensor, list[str], Tensor, Any], Tensor] | None = None
        self.reward_weight = 0.0

    def __call__(self, batch: Batch) -> Losses:
        """Losses of each sample. The mean of ``loss`` is what a step minimises."""
        x0, noise, t = self.clean(batch), batch.draws["noise"], batch.draws["t"]
        xt = process.add_noise(x0, noise, self.abar, t)
        output, pictures = self._forward(batch, xt, x0)
        error = (output - process.target(self.kind, x0, noise, self.abar, t)).square().mean((1, 2, 3))
        missed = torch.zeros_like(error)
        if self.reward is not None:
            # At large t noise hides the findings and the text must supply them; at small t the estimate shows
            # them already and the likelihood is flat. The reward's weight is that of the diffusion loss.
            estimate = process.estimate_x0(self.kind, xt, output, self.abar, t) / self.scale
            missed = self.reward(estimate, batch.texts, batch.rows, self.autocast)
        total = batch.weight * self.weights[t] * (error + self.reward_weight * missed)
        if pictures is not None:
            # Neither network is in the other's loss; only the clipping of gradients sees both.
            pixels = batch.images[0] if self.vae is not None else torch.from_numpy(self.read(batch.rows.numpy()))
            total = total + pyramid_l1(pictures.float(), to_autoencoder(pixels.to(output.device)))
        return Losses(error, total, missed)

    def error(self, batch: Batch) -> Tensor:
        """Squared error (n,) of the prediction alone, for validation."""
        x0, noise, t = self.clean(batch), batch.draws["noise"], batch.draws["t"]
        output, _ = self._forward(batch, process.add_noise(x0, noise, self.abar, t), None)
        return (output - process.target(self.kind, x0, noise, self.abar, t)).square().mean((1, 2, 3))

    def _forward(self, batch: Batch, xt: Tensor, x0: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The network's prediction (n, C, h, w) float32, and the decoded latents where the decoder is trained."""
        with self.autocast():
            output, pictures = self.network(
                xt,
                batch.draws["t"],
                self.condition(batch.text),
                batch.used,
                x0 / self.scale if self.decodes and x0 is not None else None,
            )
        return output.float(), pictures

    def clean(self, batch: Batch) -> Tensor:
        """Clean latents (n, C, h, w), float32, times the scaling factor.

        From the cache or encoded here, both draw from the same posterior with the batch's own noise; they differ by
        rounding.
        """
        if self.vae is None:
            mean, std = batch.images
        else:
            (pixels,) = batch.images
            x = to_autoencoder(pixels)
            with torch.no_grad():
                if self.linear is not None:
                    mean, std = linear_posterior(self.vae, self.linear, x)
                else:
                    x = x.to(self.vae.dtype).expand(-1, self.vae.config.in_channels, -1, -1)
                    posterior = self.vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
                    mean, std = posterior.mean, posterior.std
        return (mean.float() + std.float() * batch.draws["posterior"]) * self.scale

    def condition(self, text: Tokens | Tensor) -> Tokens | Tensor:
        """What the network takes for a batch's text: states by a frozen encoder, or the text as it is."""
        if self.text_encoder is None or not isinstance(text, Tokens):
            return text
        with torch.no_grad():
            return encode_text_states(self.text_encoder, text, masked=self.masked)

    def mean_latents(self, batch: Batch) -> Tensor:
        """Clean latents (n, C, h, w) float32 before the scaling factor, of the posterior's mean."""
        still = {"posterior": torch.zeros((), device=self.abar.device)}
        return self.clean(dataclasses.replace(batch, draws=still)) / self.scale  # type: ignore[type-var]

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Noise and posterior noise (count, C, h, w) and timesteps (count,) of a batch."""
        shape = (count, *self.latent_shape)
        noise, posterior = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        t = process.stratified_timesteps(count, len(self.abar), generator)
        if self.noise_offset:
            apart = torch.Generator().manual_seed(generator.initial_seed() + 1)
            shift = torch.randn((count, shape[1], 1, 1), generator=apart)
            noise = process.offset_noise(noise, shift, self.noise_offset)
        return {"noise": noise, "posterior": posterior, "t": t}

    def fixed_draw(self, count: int) -> dict[str, Tensor]:
        """The same noise and timesteps whenever it is asked for, and the mean of the posterior: for validation."""
        generator = torch.Generator().manual_seed(0)
        spread = ((torch.arange(count) + 0.5) / count * len(self.abar)).long()
        t = spread[torch.randperm(count, generator=generator)]
        noise = torch.randn((count, *self.latent_shape), generator=generator)
        return {"noise": noise, "posterior": torch.zeros_like(noise), "t": t}


def frozen_copy(module: Any, device: torch.device, precision: str) -> Any:
    """A copy of a frozen ``module`` on ``device`` in the dtype it is used in, so that no step converts its weights.

    bfloat16 for fp16 too: Stable Diffusion's autoencoders overflow in float16.
    """
    made = copy.deepcopy(module).to(device, torch.float32 if precision == "no" else torch.bfloat16)
    return made.to(memory_format=torch.channels_last).requires_grad_(False).eval()
