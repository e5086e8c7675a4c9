"""What the recipes are made of: order, schedule, average, checkpoints, fast norms, the encoder, texts, rewards."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from roentgen.errors import UserError
from roentgen.prompts import Labels
from roentgen.training import conditioning, pca_encoder, reconstruction
from roentgen.training.fast_norm import use_fast_group_norm
from roentgen.training.state import EMA, Checkpoints, batch_generator, batch_indices, cosine_rate


def test_every_epoch_is_a_permutation_across_batches() -> None:
    seen = torch.cat([batch_indices(None, 10, size=4, seed=3, batch=b) for b in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_weighted_draws_follow_the_weights_and_the_batch_number_alone() -> None:
    weights = torch.tensor([1.0, 0.0, 3.0])
    drawn = torch.cat([batch_indices(weights, 3, size=100, seed=0, batch=b) for b in range(20)])
    assert (drawn == 1).sum() == 0
    assert 2.5 < (drawn == 2).sum() / (drawn == 0).sum() < 3.6
    again = batch_indices(weights, 3, size=100, seed=0, batch=7)
    assert torch.equal(again, drawn[700:800])


def test_streams_of_one_batch_differ() -> None:
    first, second = (torch.rand(1, generator=batch_generator(0, 5, stream)) for stream in (0, 1))
    assert first != second


def test_cosine_rate_by_hand() -> None:
    assert cosine_rate(500, peak=1.0, warmup=0, total=1000) == pytest.approx(0.5)
    assert cosine_rate(1000, peak=1.0, warmup=0, total=1000, floor=0.1) == pytest.approx(0.1)
    assert cosine_rate(0, peak=1.0, warmup=9, total=1000) == pytest.approx(0.1)


def test_ema_moves_half_way_in_a_half_life_and_swaps_back() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    ema = EMA([layer], halflife=10, rampup=1e9)
    nn.init.ones_(layer.weight)
    ema.update(10, 10)
    assert ema.shadow[0].item() == pytest.approx(0.5)
    ema.swap()
    assert layer.weight.item() == pytest.approx(0.5)
    ema.swap()
    assert layer.weight.item() == 1.0


def test_checkpoints_keep_two_and_say_what_differs(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    for images in (1, 2, 3):
        checkpoints.save(images, {"x": torch.tensor(images), "settings": {"rate": 1}})
    assert len(list(tmp_path.iterdir())) == 2
    state = checkpoints.latest()
    assert state is not None and state["images"] == 3
    with pytest.raises(UserError, match=r"rate \(1 there, 2 now\)"):
        checkpoints.check_same(state["settings"], {"rate": 2}, free=frozenset())
    checkpoints.check_same(state["settings"], {"rate": 2}, free=frozenset({"rate"}))


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "state-0000000001.pt").write_bytes(b"no")
    with pytest.raises(UserError, match=r"state-0000000001\.pt"):
        Checkpoints(tmp_path).latest()


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


def test_balanced_weights_lift_the_rare() -> None:
    table = pd.DataFrame({"No Finding": [1, 1, 1, 1, 0], "Hernia": [0, 0, 0, 0, 1]})
    weights = conditioning.balanced_weights(table, 1.0)
    assert weights is not None
    assert weights[4] / weights[0] == pytest.approx(4.0)
    assert conditioning.balanced_weights(table, 0.0) is None


def test_texts_depend_on_their_own_seed() -> None:
    rows = [Labels(findings=("Effusion",), sides={"Effusion": "left"}, view="PA", sex="F", age=50.0)] * 4
    texts = ["as written"] * 4
    both = conditioning.batch_texts(rows, texts, [0, 1], seeds=[5, 6], composed=1.0, dropout=0.3)
    alone = conditioning.batch_texts(rows, texts, [1], seeds=[6], composed=1.0, dropout=0.3)
    assert both[1:] == alone
    assert conditioning.batch_texts(rows, texts, [2], seeds=[1], composed=0.0, dropout=0.0) == ["as written"]
    seeds = [random.Random(0).randrange(10**9) + i for i in range(400)]
    dropped = conditioning.batch_texts(rows * 100, texts * 100, range(400), seeds=seeds, composed=1.0, dropout=0.1)
    assert 20 < dropped.count("") < 65


def test_reward_targets_ask_only_for_what_the_text_says() -> None:
    row = Labels(findings=("Effusion", "Mass"), sides={"Effusion": "left"}, view=None, sex=None, age=None)
    target, mask, sides, side_mask = conditioning.reward_targets(
        ["left pleural effusion", ""], [row, row], ["Effusion", "Mass", "Hernia"]
    )
    assert target[0].tolist() == [1, 0, 0]
    assert mask[0].tolist() == [1, 0, 1]  # the mass is there, unmentioned: no demand
    assert sides[0, 0].tolist() == [0, 1] and side_mask[0, 0].tolist() == [1, 1]
    assert mask[1].sum() == 0 and side_mask[1].sum() == 0


def test_reward_falls_when_the_right_side_wins() -> None:
    def net(margin: float):
        sides = torch.tensor([[[-margin, margin]]])
        return lambda latents: (torch.zeros(1, 1), sides)

    args = [torch.ones(1, 1), torch.ones(1, 1), torch.tensor([[[0.0, 1.0]]]), torch.ones(1, 1, 2)]
    low, high = (conditioning.reward_loss(net(m), torch.zeros(1), *args, positive_weight=4.0) for m in (2.0, -2.0))
    assert low < high


def test_the_preview_is_exact_where_latents_are_linear_in_pixels() -> None:
    images = torch.rand(20, 1, 8, 8) * 2 - 1
    mixing = torch.randn(4, 4)
    cells = torch.nn.functional.pixel_unshuffle(images, 2)
    latents = torch.einsum("ij,njhw->nihw", mixing, cells) + 0.3
    preview = conditioning.fit_preview(latents, images)
    assert torch.allclose(preview(latents), images, atol=1e-4)
