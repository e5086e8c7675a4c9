"""Generation: against stock diffusers, against itself at other batch sizes, and over samplers and models."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from roentgen import generate, load_model, pipeline
from roentgen.errors import UserError
from roentgen.models import loading, registry

PROMPTS = ["left pleural effusion", "right pleural effusion", "no acute process"]


def pictures(model, prompts=PROMPTS, **settings):
    return [sample.image.astype(int) for sample in generate(model, prompts, **settings)]


@pytest.mark.parametrize("sampler", pipeline.SAMPLERS)
def test_same_image_at_any_batch_size(tiny_model, sampler):
    one = pictures(tiny_model, num_images=2, sampler=sampler, batch_size=1)
    four = pictures(tiny_model, num_images=2, sampler=sampler, batch_size=4)
    assert len(one) == 6
    assert max(np.abs(a - b).max() for a, b in zip(one, four, strict=True)) <= 1
    # The comparison means something: other prompts and other seeds give other images.
    assert np.abs(one[0] - one[1]).max() > 10
    assert np.abs(one[0] - one[2]).max() > 1


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("sampler", pipeline.SAMPLERS)
def test_equals_stock_diffusers(tiny_model, tiny_pipeline, sampler, guidance):
    """The shipped kind of folder runs in DiffusionPipeline without our code, and gives the same pixels."""
    import torch
    from diffusers import DiffusionPipeline

    stock = DiffusionPipeline.from_pretrained(tiny_pipeline)
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = pipeline.make_scheduler(tiny_model, sampler)
    noise = pipeline.initial_noise(tiny_model, 5)[None]
    with torch.inference_mode():
        theirs = stock(
            PROMPTS[0],
            negative_prompt="heart",
            latents=noise,
            num_inference_steps=4,
            guidance_scale=guidance,
            output_type="np",
        ).images[0, :, :, 0]
    ours = pictures(
        tiny_model,
        PROMPTS[:1],
        seed=5,
        steps=4,
        guidance=guidance,
        negative_prompt="heart",
        sampler=sampler,
    )[0]
    assert np.abs(ours - np.rint(theirs * 255)).max() <= 1


def test_own_seeds_and_order_do_not_matter(tiny_model):
    samples = list(generate(tiny_model, PROMPTS[:2], seeds=[7, None], num_images=2, seed=3))
    assert [(sample.prompt, sample.seed, sample.index) for sample in samples] == [
        (PROMPTS[0], 7, 0),
        (PROMPTS[0], 8, 1),
        (PROMPTS[1], 3, 0),
        (PROMPTS[1], 4, 1),
    ]
    alone = next(generate(tiny_model, [PROMPTS[1]], seed=4))
    assert np.abs(alone.image.astype(int) - samples[3].image).max() <= 1


def test_sample_and_provenance(tiny_model):
    sample = next(generate(tiny_model, PROMPTS[0], seed=2))
    assert sample.image.shape == (32, 32)
    assert sample.image.dtype == np.uint8
    marks = sample.provenance
    assert marks["prompt"] == PROMPTS[0]
    assert (marks["seed"], marks["steps"], marks["guidance"], marks["sampler"]) == ("2", "3", "3", "dpm++")
    assert (marks["model"], marks["synthetic"], marks["software"]) == ("tiny", "true", "roentgen")
    assert marks["model_hash"] == tiny_model.hash


def test_each_prompt_is_encoded_once_and_guidance_one_skips_half(tiny_model, monkeypatch):
    encoded, widths = [], []
    encode, call = pipeline.encode_text, pipeline._call_unet
    monkeypatch.setattr(pipeline, "encode_text", lambda model, text: encoded.append(text) or encode(model, text))

    def counted(model, inputs, *rest, **named):
        widths.append(len(inputs))
        return call(model, inputs, *rest, **named)

    monkeypatch.setattr(pipeline, "_call_unet", counted)
    pictures(tiny_model, PROMPTS[:2] * 2, num_images=2, batch_size=1, steps=1)
    assert sorted(encoded) == ["", *PROMPTS[:2]]
    assert set(widths) == {2}
    widths.clear()
    pictures(tiny_model, PROMPTS[:1], guidance=1, steps=1)
    assert set(widths) == {1}


def test_steps_are_reported_in_images(tiny_model):
    done: list[float] = []
    pictures(tiny_model, num_images=2, sampler="pndm", steps=3, on_step=done.append)
    assert sum(done) == pytest.approx(6)


def test_colour_model_gives_luminance(make_pipeline, tmp_path):
    model = load_model(str(make_pipeline(tmp_path / "colour", channels=3)), device="cpu")
    image = next(generate(model, PROMPTS[0])).image
    assert image.shape == (32, 32)
    assert image.std() > 0


def test_bert_text_encoder_is_loaded_by_its_class(make_pipeline, tmp_path):
    import json

    from transformers import BertConfig, BertModel, BertTokenizer

    folder = make_pipeline(tmp_path / "bert")
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "pleural", "effusion", "left"]
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(folder / "tokenizer" / "vocab.txt"), model_max_length=16).save_pretrained(folder / "tokenizer")
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
        )
    ).save_pretrained(folder / "text_encoder")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder": ["transformers", "BertModel"], "tokenizer": ["transformers", "BertTokenizer"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    model = load_model(str(folder), device="cpu")
    assert type(model.text_encoder).__name__ == "BertModel"
    assert next(generate(model, "left pleural effusion")).image.shape == (32, 32)


def test_half_precision_variant_is_found(tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "half")
    for name in ("vae", "unet"):
        file = folder / name / "diffusion_pytorch_model.safetensors"
        file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "model.fp16.safetensors")
    assert loading.weights(folder / "unet").variant == "fp16"
    model = load_model(str(folder), device="cpu")
    assert next(generate(model, PROMPTS[0])).image.shape == (32, 32)


def test_model_hash_follows_the_weights(tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "copy")
    before = loading.model_hash(folder)
    assert before == loading.model_hash(tiny_pipeline)
    (folder / "roentgen.json").unlink()
    assert loading.model_hash(folder) == before
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert loading.model_hash(folder) != before


def test_hub_cache_is_used_without_network(tiny_pipeline, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--someone--cxr" / "snapshots" / "0123"
    shutil.copytree(tiny_pipeline, snapshot)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, "_download", lambda hub_id: pytest.fail("went to the hub"))
    assert loading.find_folder(registry.resolve("someone/cxr")) == snapshot
    assert load_model("someone/cxr", device="cpu").name == "someone/cxr"


def test_second_hub_id_is_tried(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    def download(hub_id):
        if hub_id.startswith("stabilityai/"):
            raise OSError("gone")
        return tiny_pipeline

    monkeypatch.setattr(loading, "_download", download)
    assert loading.find_folder(registry.resolve("sd-2.1-base")) == tiny_pipeline


def test_token_window_counts_start_and_end(tiny_model):
    tiny_model.check_prompt("left " * 22)
    with pytest.raises(UserError, match=r"25 tokens.*at most 24"):
        tiny_model.check_prompt("left " * 23)


def test_unknown_words(tiny_model):
    assert tiny_model.unknown_words("Left PLEURAL effusion, 54-year-old's zebra; zebra") == [
        "year",
        "old",
        "zebra",
    ]


def test_ddim_does_not_clip_latents(tiny_model):
    import dataclasses

    from diffusers import PNDMScheduler

    model = dataclasses.replace(tiny_model, scheduler=PNDMScheduler(skip_prk_steps=True))  # as in SD 1.x
    assert pipeline.make_scheduler(model, "ddim").config.clip_sample is False


def test_zero_terminal_snr_refuses_pndm(tiny_model):
    import dataclasses

    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(tiny_model.scheduler.config, rescale_betas_zero_snr=True)
    model = dataclasses.replace(tiny_model, scheduler=scheduler)
    with pytest.raises(UserError, match="--sampler pndm"):
        generate(model, PROMPTS[0], sampler="pndm")
    assert next(generate(model, PROMPTS[0], sampler="dpm++")).image.std() > 0
