"""Which words made which pixels: the cross-attention of the U-Net, gathered while an image is made.

After DAAM (Tang et al. 2022, arXiv 2210.04885): at every step, in every layer that looks at the text, each place of the
picture spreads an attention of 1 over the tokens; the maps are brought to the size of the latents and averaged over
heads, layers and steps. A map says where the network looked a word up, which is a hint at what the word made and no
proof of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from roentgen.errors import UserError
from roentgen.generators.diffusion.sampling import Sampling

if TYPE_CHECKING:
    from roentgen.generators.diffusion.model import Diffusion

LOOKS = "attn2"
"""Name of the layers that look at the text, in diffusers' networks and in the plain ones."""


def word_maps(
    model: Diffusion, text: str, seed: int, sampling: Sampling
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]]:
    """The image of ``text`` and ``seed``, as ``sample`` makes it, and where each word was looked at.

    Returns:
        The image, uint8 (H, W); and for each word, lower-case and in order, a map float32 (h, w) of the latents' size:
        the share in [0, 1] of a place's attention that the word got. The words' maps sum to less than 1, since start,
        end, padding and punctuation get the rest. A word that comes twice has one map, the sum of both.

    Raises:
        UserError: a compiled model, whose layers cannot be watched; a text without a word.
    """
    if model.compiled:
        raise UserError("--compile: the attention of a compiled model cannot be watched; leave it out")
    words = model.reader.words(text)
    if not words:
        raise UserError(f"prompt {text[:80]!r} has no words to follow")
    seen = _Seen(list(words.values()), length=model.encode_text(text).shape[1], size=model.latent_shape[1:])
    with torch.inference_mode(), seen.watching(model.unet):
        image = next(iter(model.sample([text], [seed], sampling)))
    return image, dict(zip(words, seen.maps(), strict=True))


class _Seen:
    """Sums of attention maps. words: token positions of each word. length: tokens of the text. size: of the latents."""

    def __init__(self, words: Sequence[Sequence[int]], *, length: int, size: tuple[int, int]) -> None:
        self.words = words
        self.length = length
        self.size = size
        self.total = torch.zeros(len(words), *size)
        self.calls = 0

    @contextmanager
    def watching(self, unet: nn.Module) -> Iterator[None]:
        """Look on at the layers of ``unet``, which compute what they would have computed."""
        layers = [layer for name, layer in unet.named_modules() if name.rpartition(".")[2] == LOOKS]
        hooks = [layer.register_forward_pre_hook(self._look, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _look(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add one call's attention; with guidance the last row is the prompt's, the first the negative prompt's."""
        rows = args[0] if args else kwargs["hidden_states"]
        text = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]
        queries = _split(layer.to_q(rows[-1:]), layer.heads)
        keys = text[0][-1:] if isinstance(text, tuple) else _split(layer.to_k(text[-1:]), layer.heads)
        weights = queries.float() @ keys.float().transpose(2, 3) / queries.shape[-1] ** 0.5
        attention = weights.softmax(dim=-1).mean(dim=1)[0]  # (places, tokens)
        # A shorter text beside a longer negative prompt is repeated along the tokens: its copies count together.
        attention = attention.unflatten(1, (-1, self.length)).sum(dim=1)
        maps = torch.stack([attention[:, list(places)].sum(dim=1) for places in self.words])
        maps = maps.unflatten(1, _sides(len(attention), self.size))[None]
        self.total += F.interpolate(maps, self.size, mode="bilinear", align_corners=False)[0].cpu()
        self.calls += 1

    def maps(self) -> list[NDArray[np.float32]]:
        """The mean over all calls, for each word."""
        return [one.numpy() for one in self.total / self.calls]


def _split(x: Tensor, heads: int) -> Tensor:
    """(N, L, C) as (N, heads, L, C / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _sides(places: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a layer with so many places, in a network that halves ``size`` again and again."""
    height, width = size
    while height * width > places:
        height, width = -(-height // 2), -(-width // 2)
    return height, width
