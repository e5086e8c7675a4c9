"""The diffusion arithmetic against closed forms and diffusers' own schedulers."""

from __future__ import annotations

import pytest
import torch

from roentgen.errors import UserError
from roentgen.generators.diffusion import process as diffusion


@pytest.fixture
def scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type="v_prediction")


def test_noise_and_velocity_agree_with_diffusers(scheduler) -> None:
    x0, noise = torch.randn(2, 5, 3, 4, 4)
    t = torch.tensor([0, 1, 499, 900, 999])
    abar = diffusion.cumulative_alphas(scheduler)
    assert torch.allclose(diffusion.add_noise(x0, noise, abar, t), scheduler.add_noise(x0, noise, t), atol=1e-6)
    assert torch.allclose(diffusion.velocity(x0, noise, abar, t), scheduler.get_velocity(x0, noise, t), atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_perfect_output_gives_the_clean_latents_back(kind: str, scheduler) -> None:
    x0, noise = torch.randn(2, 4, 3, 4, 4)
    t = torch.tensor([0, 100, 500, 700])
    abar = diffusion.cumulative_alphas(scheduler)
    xt = diffusion.add_noise(x0, noise, abar, t)
    output = diffusion.target(kind, x0, noise, abar, t)
    assert torch.allclose(diffusion.estimate_x0(kind, xt, output, abar, t), x0, atol=1e-3)


def test_min_snr_weights_by_hand() -> None:
    abar = torch.tensor([0.9, 0.5])  # SNR 9 and 1
    assert torch.allclose(diffusion.min_snr_weights("epsilon", abar, 5.0), torch.tensor([5 / 9, 1.0]))
    assert torch.allclose(diffusion.min_snr_weights("v_prediction", abar, 5.0), torch.tensor([0.5, 0.5]))
    assert torch.equal(diffusion.min_snr_weights("epsilon", abar, None), torch.ones(2))


def test_timesteps_fill_every_stratum_once() -> None:
    t = diffusion.stratified_timesteps(10, 1000, torch.Generator().manual_seed(0))
    assert sorted((t // 100).tolist()) == list(range(10))


def test_unknown_prediction_type_is_named() -> None:
    with pytest.raises(UserError, match=r"sample.*epsilon"):
        diffusion.min_snr_weights("sample", torch.ones(2), 5.0)


def test_zero_terminal_snr_is_that_of_diffusers(scheduler) -> None:
    from diffusers import DDIMScheduler
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    abar = diffusion.cumulative_alphas(scheduler)
    ours = diffusion.rescale_zero_terminal_snr(abar)
    assert ours[-1] == 0 and ours[0] == pytest.approx(abar[0].item(), rel=1e-6)
    assert (ours.diff() < 0).all()
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(scheduler.betas.double()), 0)
    assert torch.allclose(ours.double(), theirs, atol=1e-6)
    flagged = DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, rescale_betas_zero_snr=True)
    assert torch.equal(diffusion.cumulative_alphas(flagged), ours)


def test_at_zero_snr_the_target_is_the_clean_latents_and_the_input_noise(scheduler) -> None:
    x0, noise = torch.randn(2, 1, 3, 4, 4)
    abar, last = diffusion.rescale_zero_terminal_snr(diffusion.cumulative_alphas(scheduler)), torch.tensor([999])
    assert torch.equal(diffusion.add_noise(x0, noise, abar, last), noise)
    assert torch.equal(diffusion.velocity(x0, noise, abar, last), -x0)
    assert torch.equal(diffusion.estimate_x0("v_prediction", noise, -x0, abar, last), x0)


def test_min_snr_has_no_weight_for_no_signal() -> None:
    abar = torch.tensor([0.9, 0.0])
    with pytest.raises(UserError, match=r"--loss\.min-snr-gamma null"):
        diffusion.min_snr_weights("v_prediction", abar, 5.0)
    assert torch.equal(diffusion.min_snr_weights("v_prediction", abar, None), torch.ones(2))


def test_offset_noise_moves_whole_channels() -> None:
    noise, shift = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 1, 1)
    assert torch.equal(diffusion.offset_noise(noise, shift, 0.0), noise)
    moved = diffusion.offset_noise(noise, shift, 0.1) - noise
    assert torch.allclose(moved, 0.1 * shift.expand_as(noise), atol=1e-6)
