"""What the autoencoder recipe computes: crops, losses, and the whitening of the finished latents."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roentgen.models.autoencoder.pca import POSTERIOR_STD
from roentgen.models.autoencoder.perceptual import FeatureHeads, FrozenFeatures, feature_l1, fooled, hinge


class Autoencode(nn.Module):
    """An ``AutoencoderKL`` as one forward pass, so that DDP sees encoder and decoder together."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, noise: Tensor, code: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (N, 1, H, W) in [-1, 1], noise (N, C, H/f, W/f) -> reconstruction, posterior mean, log variance.

        ``code`` (N, C, H/f, W/f) are latents known beforehand (a frozen encoder): the encoder is then not run, and
        the noise is that of ``pca.POSTERIOR_STD``.
        """
        if code is not None:
            latents = code + POSTERIOR_STD * noise
            return self.vae.decode(latents).sample, code, torch.full_like(code, 2 * math.log(POSTERIOR_STD))
        posterior = self.vae.encode(x).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample, posterior.mean, posterior.logvar


class Spikes:
    """Watches the last two up blocks of a decoder for spikes, which group norms hide: they leave rings in white areas.

    A decoder may learn to set the scale of a whole feature map by one huge value, as the droplets of StyleGAN do
    (Karras et al. 2020, section 2). The loss is by how much a map's largest value passes ``LIMIT`` standard deviations.
    """

    LIMIT = 10.0

    def __init__(self, decoder: nn.Module) -> None:
        self.seen: list[Tensor] = []
        blocks: Any = decoder.up_blocks
        for block in blocks[-2:]:
            for layer in block.resnets:
                layer.register_forward_hook(lambda module, inputs, output: self.keep(output))

    def keep(self, output: Tensor) -> None:
        if torch.is_grad_enabled():  # pictures on the way are not trained on
            self.seen.append(output)

    def __call__(self) -> Tensor:
        """The loss of the maps (N, C, H, W) of the forward pass before this call, averaged over them."""
        maps, self.seen = [x.float() for x in self.seen], []
        over = []
        for x in maps:
            sd, mean = torch.std_mean(x, (2, 3), keepdim=True)
            over.append(F.relu(((x - mean) / (sd + 1e-6)).abs().amax((2, 3)) - self.LIMIT).mean())
        return torch.stack(over).mean()


class SpectrumLoss:
    """Draws the mean power spectrum of what a decoder makes towards that of real images, at every frequency by itself.

    A batch is too small for a spectrum, so both are running means over batches, of which the batch at hand has its
    part; the loss is the batch's power over the mean of its kind, weighed by the logarithm of that mean over the
    real one. Where a regular grid stands out, that weight is positive at its frequencies. Frequencies go from 12
    cycles an image to nearly the finest, on crops under a Hann window.

    Args:
        side: pixels of a crop's side.
        whole: pixels of a whole image's side.
    """

    MEMORY = 0.98  # of the running means, once they are warm
    LOW, HIGH = 12, 0.484  # cycles an image of 256 pixels, and cycles a pixel

    def __init__(self, accelerator: Any, side: int) -> None:
        self.accelerator = accelerator
        window = torch.hann_window(side, periodic=False, device=accelerator.device)
        self.window = window[:, None] * window
        radius = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None])
        self.band = ((radius >= self.LOW / 256) & (radius < self.HIGH)).to(accelerator.device)
        self.means: Tensor | None = None
        self.batches = 0

    def power(self, images: Tensor) -> Tensor:
        """Mean power spectrum of (N, 1, H, W) at the frequencies of the band, (F,)."""
        grey = images.float()[:, 0]
        spectra = torch.fft.rfft2((grey - grey.mean((1, 2), keepdim=True)) * self.window).abs().square()
        return spectra.mean(0)[self.band]

    def __call__(self, target: Tensor, drawn: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of each kind of ``drawn`` images, averaged, and how far spectra are apart (mean log ratio).

        All are (N, 1, H, W) in [-1, 1]; the kinds are the same at every call.
        """
        powers = torch.stack([self.power(images) for images in drawn])
        both = torch.cat([self.power(target)[None], powers.detach()])
        both = self.accelerator.reduce(both, "mean")
        keep = self.MEMORY if self.batches > 50 else 0.9
        self.means = both if self.means is None else keep * self.means + (1 - keep) * both
        self.batches += 1
        ratio = (self.means[1:] / self.means[:1]).log()
        return (ratio.clamp(-1, 1) * powers / self.means[1:]).mean(), ratio.abs().mean()

    def state_dict(self) -> dict[str, Any]:
        """The running means."""
        return {"means": self.means, "batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        self.means, self.batches = state["means"], state["batches"]


class Critic:
    """Features of a frozen network as a loss, and heads on them that learn to tell real images from reconstructions.

    Both see a sub-crop at an offset drawn anew for each batch: the network's strides, seen always at the same places
    of the decoder's grid, would teach the decoder that grid.

    Args:
        accelerator: moves and prepares what learns.
        features: weight of the difference in features.
        adversary: weight of the heads' verdict; 0 trains no heads.
        rate: peak learning rate of the heads.
        worst: share of places of ``perceptual.fooled``.
    """

    MARGIN = 16

    def __init__(self, accelerator: Any, *, features: float, adversary: float, rate: float, worst: float = 0.0) -> None:
        self.accelerator = accelerator
        self.weights, self.worst = (features, adversary), worst
        self.network = FrozenFeatures().to(accelerator.device).to(memory_format=torch.channels_last)
        heads = FeatureHeads().to(accelerator.device)
        optimizer = torch.optim.AdamW(heads.parameters(), lr=rate, betas=(0.5, 0.95), weight_decay=0.0)
        self.heads, self.optimizer = accelerator.prepare(heads, optimizer)
        self._pair: tuple[list[Tensor], list[Tensor]] | None = None

    def judge(
        self, output: Tensor, target: Tensor, generator: torch.Generator, generated: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the reconstruction ``output`` against ``target``, both (N, 1, H, W) in [-1, 1], and its parts.

        ``generated`` (M, 1, H, W) are drawn from latents of a generator: they have no target, and only the heads
        judge them.
        """
        top, left = torch.randint(0, self.MARGIN, (2,), generator=generator).tolist()
        height, width = (side - self.MARGIN for side in output.shape[-2:])
        window = (..., slice(top, top + height), slice(left, left + width))
        with self.accelerator.autocast():
            with torch.no_grad():
                real = self.network(target[window])
            fake = self.network(output[window])
            difference = feature_l1(fake, real)
            loss, said = self.weights[0] * difference, {"features": difference.detach()}
            if self.weights[1]:
                self.heads.requires_grad_(False)
                kinds = {"adversary": fake}
                if generated is not None:
                    kinds["adversary of generated"] = self.network(generated[window])
                for name, maps in kinds.items():
                    verdict = fooled(self.heads(maps), self.worst)
                    loss = loss + self.weights[1] * verdict
                    said[name] = verdict.detach()
                fake = [torch.cat(each) for each in zip(*kinds.values(), strict=True)]
        self._pair = (real, [f.detach() for f in fake])
        return loss, said

    def learn(self) -> dict[str, Tensor]:
        """One step of the heads on the batch that ``judge`` saw last."""
        if not self.weights[1] or self._pair is None:
            return {}
        self.heads.requires_grad_(True)
        with self.accelerator.autocast():
            loss = hinge(self.heads(self._pair[0]), self.heads(self._pair[1]))
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"heads": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        """Weights of the heads and their optimiser."""
        return {"heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])


def random_crops(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """One random (size, size) crop of each image of (N, H, W), or of latents (N, C, H, W); any dtype."""
    n, (height, width) = len(pixels), pixels.shape[-2:]
    tops = torch.randint(0, height - size + 1, (n,), generator=generator).tolist()
    lefts = torch.randint(0, width - size + 1, (n,), generator=generator).tolist()
    return torch.stack([p[..., t : t + size, x : x + size] for p, t, x in zip(pixels, tops, lefts, strict=True)])


def halve(x: Tensor) -> Tensor:
    """Area-average (N, C, H, W) by two."""
    return F.avg_pool2d(x, 2)


def blur_by_two(x: Tensor) -> Tensor:
    """What a half-resolution copy of (N, C, H, W) looks like at full size: area down, bicubic up."""
    return F.interpolate(halve(x), scale_factor=2.0, mode="bicubic", align_corners=False).clamp(-1, 1)


def pyramid_l1(reconstruction: Tensor, target: Tensor) -> Tensor:
    """L1 over a Laplacian pyramid, (N,): bands of detail weigh as much as the coarse image.

    Plain L1 leaves fine detail, a small part of the energy of an X-ray, to the end of training. After the Laplacian
    pyramid loss of Bojanowski et al. (2018), eq. 2, with area averaging for the blur.
    """
    loss = reconstruction.new_zeros(reconstruction.shape[0])
    difference = reconstruction - target
    for _ in range(3):
        coarse = halve(difference)
        band = difference - F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        loss = loss + band.abs().mean((1, 2, 3))
        difference = coarse
    return loss + difference.abs().mean((1, 2, 3))


def reconstruction_loss(reconstruction: Tensor, target: Tensor, low_resolution: Tensor) -> Tensor:
    """``pyramid_l1`` per sample (N,); where ``low_resolution`` (N, bool) is set, compared at half the resolution.

    An image that was stored at half the output size says nothing about the finest band. Leaving that band free lets
    the images that do have it teach the decoder what fine detail looks like.
    """
    full = pyramid_l1(reconstruction, target)
    half = pyramid_l1(halve(reconstruction), halve(target))
    return torch.where(low_resolution, half, full)


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) averaged over latent elements, (N,) in nats (Kingma & Welling, App. B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean((1, 2, 3))


@torch.no_grad()
def whiten_latents(vae: Any, mean: Tensor, std: Tensor) -> None:
    """Fold a per-channel shift and scale into ``vae`` so that its latents have mean 0 and sd 1 per channel.

    ``mean`` and ``std`` (C,) are those of the posterior means over training data. Only ``quant_conv`` and
    ``post_quant_conv`` change, so the result is an ordinary ``AutoencoderKL`` with scaling factor 1.
    """
    c = mean.numel()
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:c] /= std.view(-1, 1, 1, 1)
    quant.bias[:c] = (quant.bias[:c] - mean) / std
    quant.bias[c:] -= 2 * std.log()  # the posterior's log variance shrinks with the scale
    post.bias += (post.weight * mean.view(1, -1, 1, 1)).sum((1, 2, 3))
    post.weight *= std.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=1.0)
