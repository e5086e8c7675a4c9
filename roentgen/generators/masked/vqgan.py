"""What the VQ-GAN tokenizer is trained with: use of its codebook, losses, and a patch adversary.

A ``VQModel`` of diffusers is the network; Esser et al. (2021, "Taming transformers") the recipe: reconstruction,
commitment, a perceptual loss, and a discriminator of patches (Isola et al. 2017) that joins later.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roentgen.errors import UserError
from roentgen.generators.masked.tokenizer import use
from roentgen.models.classifier import load_classifier

LEAST_PERPLEXITY = 0.02  # of a codebook's size: below it a transformer would learn pictures of a handful of codes


class Vqgan(nn.Module):
    """A ``VQModel`` as one forward pass, so that several processes see encoder, codebook and decoder together."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (N, 1, H, W) in [-1, 1] -> reconstruction, loss of the codes, codes int64 (N, P), latents (N, P, C)."""
        latents = self.model.encode(x).latents
        rounded, loss, (_, _, codes) = self.model.quantize(latents)
        decoded = self.model.decoder(self.model.post_quant_conv(rounded))
        flat = latents.detach().flatten(2).transpose(1, 2)
        return decoded, loss, codes.view(len(x), -1), flat


class Patches(nn.Module):
    """Convolutions that tell of every patch of an image how real it looks; (N, 1, H, W) -> logits (N, 1, h, w)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for number in range(2):
            layers += [
                nn.Conv2d(width * 2**number, width * 2 ** (number + 1), 4, 2, 1),
                nn.GroupNorm(8, width * 2 ** (number + 1)),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


@torch.no_grad()
def revive(table: Tensor, last_used: Tensor, codes: Tensor, latents: Tensor, *, now: int, after: int, seed: int) -> int:
    """Set codes that nothing has chosen for ``after`` images to latents of this batch; how many.

    Args:
        table: the codebook (K, C), changed in place.
        last_used: int64 (K,), images seen when each code was last chosen; changed in place.
        codes: int64 (N, P) chosen in this batch.
        latents: (N, P, C) of this batch.
        now: images seen.
        after: images without use.
        seed: of which latents are taken.
    """
    last_used[codes.flatten().unique()] = now
    dead = (now - last_used >= after).nonzero()[:, 0]
    if len(dead):
        rows = latents.flatten(0, 1)
        generator = torch.Generator().manual_seed(seed + now)
        chosen = torch.randint(len(rows), (len(dead),), generator=generator).to(rows.device)
        table[dead] = rows[chosen].to(table)
        last_used[dead] = now
    return len(dead)


def perceptual_loss() -> tuple[str, Callable[[Tensor, Tensor], Tensor]]:
    """A loss of two images (N, 1, H, W) in [-1, 1], and its name: LPIPS where its weights are installed, else the
    difference in the features of the shipped classifier."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / "vgg16-397923af.pth"
    if weights.is_file():
        try:
            import lpips
        except ImportError:
            pass
        else:
            network = lpips.LPIPS(net="vgg", verbose=False).requires_grad_(False).eval()
            return "lpips", lambda a, b: network(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)).mean()
    trunk = load_classifier().net.trunk.requires_grad_(False).eval()
    stages = [trunk[: number + 1] for number in (2, 4, 5) if number < len(trunk)]

    def difference(a: Tensor, b: Tensor) -> Tensor:
        found = torch.zeros((), device=a.device)
        for stage in stages:
            first, second = stage.to(a.device)(a), stage(b)
            found = found + (first - second).abs().mean() / second.abs().mean().clamp(min=1e-6)
        return found / len(stages)

    return "features of the shipped classifier", difference


def check_use(codes: Tensor, size: int, where: str) -> None:
    """UserError where a codebook has collapsed: before a transformer is trained on it, not after."""
    share, perplexity = use(codes, size)
    if perplexity < LEAST_PERPLEXITY * size:
        raise UserError(
            f"{where}: its codebook has collapsed: perplexity {perplexity:.1f} of {size} codes, {share:.1%} in use; "
            "train the tokenizer longer, with more commitment or with fewer codes"
        )
