"""The model that a training starts from: a pipeline with changes, or a new one around an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roentgen.errors import UserError, told_of
from roentgen.files import fingerprint, sha256
from roentgen.generators.base import Info
from roentgen.generators.diffusion.model import Diffusion
from roentgen.generators.diffusion.objective import Loss
from roentgen.generators.diffusion.process import TARGETS, cumulative_alphas, min_snr_weights
from roentgen.generators.diffusion.text_swap import swap_text_encoder
from roentgen.generators.generate import load_model
from roentgen.models.loading import load_component, load_vae
from roentgen.models.text_encoders import encode_text_states, keep_layer, load_text_encoder, make_reader

# Linear betas reach almost pure noise at the last step, so that sampling may start from pure noise (Lin et al. 2024,
# section 2, show what goes wrong where they do not); "trailing" makes samplers start there.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


@dataclass(frozen=True)
class TextChoice:
    """Which text encoder a pipeline gets, and how it reads.

    Args:
        encoder: name in ``ENCODERS``, folder or hub id; None or "clip" keeps the pipeline's own.
        layer: last or penultimate hidden layer.
        window: tokens of a chunk, start and end included; None is the encoder's own limit.
        chunks: chunks of text at most; None is what the pipeline says, else 1.
    """

    encoder: str | None = None
    layer: str = "last"
    window: int | None = None
    chunks: int | None = None


def start(
    *,
    model: str | None,
    vae: Path | None = None,
    text: Path | None = None,
    unet: dict[str, Any] | None = None,
    prediction_type: str | None = None,
    loss: Loss | None = None,
    choice: TextChoice = TextChoice(),
    name: str = "in-training",
) -> Diffusion:
    """The pipeline ``model``, or a new one around ``vae``, ``text`` and a U-Net configuration, to be trained.

    All weights float32 on the CPU; the autoencoder is frozen. ``scheduler`` is a DDIMScheduler with the training
    schedule; ``loss`` is what it has to allow. A swapped text encoder of another width gets a projection into the
    U-Net, whose other weights stay. With both ``model`` and ``vae``, ``vae`` takes the place of the pipeline's
    autoencoder: its latents must have the same shape, and the U-Net has to learn what differs in them. The hash is that
    of the weights that training starts from.
    """
    chunks, origin, folder = choice.chunks, "", Path()
    if model is not None:
        loaded = load_model(model, device="cpu", dtype="float32", trainable=True)
        if not isinstance(loaded, Diffusion):
            raise UserError(f"--model {model}: no diffusion pipeline; this recipe trains those")
        if loaded.inpaints:
            raise UserError(f"--model {model}: an inpainting model; this recipe trains text-to-image pipelines")
        folder = loaded.info.folder
        autoencoder, network, scheduler = loaded.vae, loaded.unet, _changed(loaded.scheduler, clip_sample=False)
        encoder, tokenizer, origin = loaded.text_encoder, loaded.tokenizer, loaded.info.hash
        chunks = loaded.reader.chunks if chunks is None else chunks
        if vae is not None:
            with told_of("--vae"):
                own, autoencoder = autoencoder, load_vae(vae)
            shape = [(v.config.latent_channels, len(v.config.block_out_channels)) for v in (own, autoencoder)]
            if shape[0] != shape[1]:
                raise UserError(
                    f"--vae {vae}: its latents (channels and levels {shape[1]}) are not those of --model {model} "
                    f"({shape[0]})"
                )
            origin = f"{origin} {fingerprint(autoencoder)}"
    else:
        assert vae is not None and text is not None and unet is not None
        autoencoder, network, encoder, tokenizer, scheduler = _new(vae, text, unet)
    if prediction_type is not None:
        if prediction_type not in TARGETS:
            raise UserError(f"--prediction-type {prediction_type} is unknown; use one of {', '.join(TARGETS)}")
        scheduler = _changed(scheduler, prediction_type=prediction_type)
    if loss is not None and loss.zero_terminal_snr:
        if scheduler.config.prediction_type != "v_prediction":
            raise UserError(
                "--loss.zero-terminal-snr needs --prediction-type v_prediction: pure noise says nothing about epsilon"
            )
        # "trailing" starts sampling at the end, where there is nothing but noise.
        scheduler = _changed(scheduler, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    if loss is not None:
        min_snr_weights(scheduler.config.prediction_type, cumulative_alphas(scheduler), loss.min_snr_gamma)
    projected = False
    if choice.encoder not in (None, "clip"):
        own = make_reader(tokenizer, encoder)
        like = encode_text_states(encoder, own.tokens(["No acute cardiopulmonary process."]), masked=own.masked)
        tokenizer, encoder = load_text_encoder(str(choice.encoder), layer=choice.layer)
        projected = swap_text_encoder(network, encoder, like=like)
    elif choice.layer != "last":
        encoder = keep_layer(encoder, choice.layer)
    reader = make_reader(tokenizer, encoder, window=choice.window, chunks=1 if chunks is None else chunks)
    autoencoder.eval().requires_grad_(False)
    # Dropout, where a text encoder has it, would make a continued run differ from an unbroken one.
    encoder.eval()
    mark = sha256(f"{origin or fingerprint(autoencoder)} {fingerprint(encoder)}")[:16]
    info = Info(name=name, folder=folder, hash=mark, device="cpu", dtype="float32")
    return Diffusion(info, autoencoder, network, encoder, tokenizer, scheduler, reader, projected=projected)


def _new(vae: Path, text: Path, unet: dict[str, Any]) -> tuple[Any, Any, Any, Any, Any]:
    """Autoencoder, U-Net of random weights, text encoder, tokenizer and scheduler."""
    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel

    for name in ("tokenizer", "text_encoder"):
        if not (text / name).is_dir():
            raise UserError(f"--text {text}: {name}/ is missing; make it with roentgen train text-encoder")
    with told_of("--vae"):
        autoencoder = load_vae(vae)
    encoder = load_component(text, "text_encoder", "transformers", "CLIPTextModel", torch.float32)
    channels = autoencoder.config.latent_channels
    own = {"in_channels": channels, "out_channels": channels, "cross_attention_dim": encoder.config.hidden_size}
    try:
        network = UNet2DConditionModel(**{**own, **unet})
    except (TypeError, ValueError) as error:
        raise UserError(f"--unet: {str(error).splitlines()[0]}") from None
    tokenizer = load_component(text, "tokenizer", "transformers", "CLIPTokenizer", torch.float32)
    return autoencoder, network, encoder, tokenizer, DDIMScheduler(**SCHEDULE)


def _changed(scheduler: Any, **changes: Any) -> Any:
    """A DDIMScheduler of the same configuration but for ``changes``."""
    from diffusers import DDIMScheduler

    # diffusers drops from a configuration what it lists as left at its default, even where it was set since.
    defaults = [key for key in scheduler.config.get("_use_default_values", ()) if key not in changes]
    return DDIMScheduler.from_config({**scheduler.config, **changes, "_use_default_values": defaults})
