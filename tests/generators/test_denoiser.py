"""What a fine-tune trains: padding, decoding, adapters, schedules that leave things to defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from roentgen.generators.diffusion.denoiser import Denoiser

# ------------------------------------------------------------------------------------- trained module


@pytest.fixture
def parts(tiny_pipeline: Path) -> Any:
    from roentgen.generators.diffusion.build import start

    return start(model=str(tiny_pipeline))


@pytest.mark.parametrize("zero", [False, True])
def test_a_schedule_that_leaves_things_to_defaults_can_be_changed(
    zero: bool, tiny_pipeline: Path, tmp_path: Path
) -> None:
    """Stable Diffusion 1.x says neither prediction type nor spacing; what is asked for must not become the default."""
    import json
    import shutil

    from roentgen.generators.diffusion.build import start
    from roentgen.generators.diffusion.objective import Loss
    from roentgen.generators.diffusion.process import cumulative_alphas

    folder = shutil.copytree(tiny_pipeline, tmp_path / "old")
    config = {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "PNDMScheduler"]}))
    loss = Loss(zero_terminal_snr=zero, min_snr_gamma=None)
    made = start(model=str(folder), prediction_type="v_prediction", loss=loss).scheduler
    again = type(made).from_config(made.config)  # as samplers do
    for scheduler in (made, again):
        assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.clip_sample is False
        assert scheduler.config.rescale_betas_zero_snr is zero
        assert not zero or scheduler.config.timestep_spacing == "trailing"
        assert (cumulative_alphas(scheduler)[-1] == 0) == zero


def denoiser_of(parts: Any, *, chunks: int = 1, learn: bool = True, decoder: bool = False) -> Denoiser:
    return Denoiser(
        parts.unet,
        text_encoder=parts.text_encoder if learn else None,
        decoder=parts.vae if decoder else None,
        masked=False,
        chunks=chunks,
    ).eval()


@torch.no_grad()
def test_padding_chunks_do_not_change_the_output(parts: Any) -> None:
    from roentgen.models.text_encoders import make_reader

    torch.manual_seed(0)
    noisy, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    texts, outputs = ["left pleural effusion", "no acute process"], []
    for chunks in (1, 3):
        tokens = make_reader(parts.tokenizer, parts.text_encoder, chunks=chunks).tokens(texts)
        outputs.append(denoiser_of(parts, chunks=chunks)(noisy, t, tokens, tokens.used)[0])
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)
    everything = torch.ones_like(tokens.used)
    assert not torch.allclose(outputs[0], denoiser_of(parts, chunks=3)(noisy, t, tokens, everything)[0], atol=1e-5)


@torch.no_grad()
def test_the_denoiser_decodes_as_the_autoencoder_does(parts: Any) -> None:
    torch.manual_seed(0)
    noisy, states, used = torch.randn(1, 4, 8, 8), torch.randn(1, 24, 16), torch.ones(1, 24, dtype=torch.bool)
    model = denoiser_of(parts, learn=False, decoder=True)
    assert model(noisy, torch.tensor([5]), states, used)[1] is None
    decoded = model(noisy, torch.tensor([5]), states, used, noisy)[1]
    assert torch.allclose(decoded, parts.vae.decode(noisy).sample, atol=1e-6)


def test_adapters_are_trained_saved_loaded_and_merged(parts: Any, tiny_pipeline: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline

    from roentgen.models.lora import add_lora, merge_lora, save_lora

    names = set(parts.unet.state_dict())
    add_lora(parts.unet, parts.text_encoder, rank=2, alpha=6)
    torch.manual_seed(0)
    for module in (parts.unet, parts.text_encoder):
        learning = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        assert learning and all("lora_" in name for name, _ in learning)
        for _, p in learning:
            p.data.normal_(std=0.2)
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 24, 16))
    ids = torch.arange(24)[None]
    with torch.no_grad():
        adapted = parts.unet(*inputs).sample, parts.text_encoder(ids)[0]
        save_lora(tmp_path, parts.unet, parts.text_encoder)
        merge_lora(parts.unet)
        merge_lora(parts.text_encoder)
        merged = parts.unet(*inputs).sample, parts.text_encoder(ids)[0]
        stock = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
        plain = stock.unet(*inputs).sample
        stock.load_lora_weights(tmp_path)  # with alpha 6 of rank 2, a scale of three
        loaded = stock.unet(*inputs).sample, stock.text_encoder(ids)[0]
    assert set(parts.unet.state_dict()) == names
    assert not torch.allclose(plain, adapted[0], atol=1e-2)
    for ours, other in ((merged, adapted), (loaded, adapted)):
        assert all(torch.allclose(x, y, atol=1e-4) for x, y in zip(ours, other, strict=True))
