"""The networks that are trained, as one module, and the loss of one part of a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from roentgen.models.text_encoders import Tokens, encode_text_states

SHARDED_LAYERS = ("ResnetBlock2D", "BasicTransformerBlock", "CLIPEncoderLayer", "BertLayer", "RobertaLayer")


class Denoiser(nn.Module):
    """U-Net with what is trained beside it: the text encoder before it, the autoencoder's decoder next to it.

    One module, so that DDP, FSDP and DeepSpeed see one forward and one backward however many networks are trained.

    Args:
        unet: ``UNet2DConditionModel``.
        text_encoder: encoder to train, or None where states come ready made.
        decoder: autoencoder whose decoder is trained, or None. Its encoder is left alone: latents stay what they are.
        masked: the text encoder wants an attention mask (BERT).
        chunks: chunks of text; with more than one the U-Net is told which of them a text uses.
    """

    def __init__(self, unet: Any, *, text_encoder: Any, decoder: Any, masked: bool, chunks: int) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        if decoder is not None:
            self.decoder = nn.ModuleList([decoder.post_quant_conv or nn.Identity(), decoder.decoder])
        else:
            self.decoder = nn.ModuleList()
        self.masked = masked
        self.chunks = chunks
        # accelerate reads this name: the layers that FSDP gathers one at a time.
        kinds = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = [name for name in SHARDED_LAYERS if name in kinds]

    def forward(self, noisy: Tensor, t: Tensor, text: Tokens | Tensor, used: Tensor, latents: Tensor | None = None):  # type: ignore[no-untyped-def]
        """Prediction (N, C, h, w) for ``noisy`` latents at timesteps ``t`` (N,), and the decoded ``latents`` or None.

        ``text`` is tokens or states (N, L, D); ``used`` (N, L) bool marks the positions that the U-Net may read.
        """
        if isinstance(text, Tokens):
            text = encode_text_states(self.text_encoder, text, masked=self.masked)
        mask = used if self.chunks > 1 else None
        # Cached states are float16; DeepSpeed keeps weights in bfloat16 and, unlike autocast, converts no inputs.
        dtype = self.unet.dtype
        output = self.unet(noisy.to(dtype), t, text.to(dtype), encoder_attention_mask=mask).sample
        if latents is None:
            return output, None
        latents = latents.to(dtype)
        for layer in self.decoder:
            latents = layer(latents)
        return output, latents
