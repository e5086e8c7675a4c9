"""Generation: against stock diffusers, against itself at other batch sizes, and over samplers and models."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny import write_bert

from roentgen import generate, load_model
from roentgen.errors import UserError
from roentgen.generators.diffusion.model import Diffusion, lengthen
from roentgen.generators.diffusion.sampling import SAMPLERS, make_solver
from roentgen.models import lora

PROMPTS = ["left pleural effusion", "right pleural effusion", "no acute process"]


def stock_sampler(stock, name):
    """diffusers' own scheduler of that name, as ``SAMPLERS`` sets it up."""
    import diffusers

    class_name, changes = SAMPLERS[name]
    return getattr(diffusers, class_name).from_config(stock.scheduler.config, **changes)


def pictures(model, prompts=PROMPTS, **settings):
    return [sample.image.astype(int) for sample in generate(model, prompts, **settings)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_image_at_any_batch_size(tiny_model, sampler):
    one = pictures(tiny_model, num_images=2, sampler=sampler, batch_size=1)
    four = pictures(tiny_model, num_images=2, sampler=sampler, batch_size=4)
    assert len(one) == 6
    assert max(np.abs(a - b).max() for a, b in zip(one, four, strict=True)) <= 1
    # The comparison means something: other prompts and other seeds give other images.
    assert np.abs(one[0] - one[1]).max() > 10
    assert np.abs(one[0] - one[2]).max() > 1


def test_same_image_within_a_grey_level_in_any_company_and_by_any_threads(tiny_model):
    import torch

    alone = pictures(tiny_model, PROMPTS[:1], seeds=[3])[0]
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            many = pictures(tiny_model, [*PROMPTS[1:], PROMPTS[0]], seeds=[8] * (len(PROMPTS) - 1) + [3], batch_size=7)
            assert np.abs(many[-1] - alone).max() <= 1
            assert np.abs(many[0] - alone).max() > 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equals_stock_diffusers(tiny_model, tiny_pipeline, sampler, guidance):
    """The shipped kind of folder runs in DiffusionPipeline without our code, and gives the same pixels."""
    import torch
    from diffusers import DiffusionPipeline

    stock = DiffusionPipeline.from_pretrained(tiny_pipeline)
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = stock_sampler(stock, sampler)
    noise = tiny_model.initial_noise(5)[None]
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
    assert marks["model_hash"] == tiny_model.info.hash


def test_each_prompt_is_encoded_once_and_guidance_one_skips_half(tiny_model, monkeypatch):
    import dataclasses

    encoded, widths = [], []
    encode, call = Diffusion.encode_text, Diffusion.call_unet
    monkeypatch.setattr(Diffusion, "encode_text", lambda model, text: encoded.append(text) or encode(model, text))

    def counted(model, inputs, *rest, **named):
        widths.append(len(inputs))
        return call(model, inputs, *rest, **named)

    monkeypatch.setattr(Diffusion, "call_unet", counted)
    fresh = dataclasses.replace(tiny_model)  # it remembers nothing yet
    pictures(fresh, PROMPTS[:2] * 2, num_images=2, batch_size=1, steps=1)
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


@pytest.fixture(scope="module")
def long_pipeline(tiny_pipeline, tmp_path_factory):
    """The tiny pipeline, trained (as its roentgen.json says) with prompts of up to three chunks of text."""
    folder = shutil.copytree(tiny_pipeline, tmp_path_factory.mktemp("models") / "long")
    settings = json.loads((folder / "roentgen.json").read_text())
    (folder / "roentgen.json").write_text(json.dumps({**settings, "text": {"chunks": 3}}))
    return folder


def test_prompts_of_several_chunks(long_pipeline, tiny_model):
    """Whatever shares a batch or a run with a prompt, its image stays; one-chunk prompts are as without chunks."""
    model = load_model(str(long_pipeline), device="cpu", dtype="float32")
    two, three = "left " * 30, "right " * 60
    prompts = [PROMPTS[0], two, PROMPTS[1], PROMPTS[2], three, two]
    together = list(generate(model, prompts, batch_size=4))
    assert [sample.prompt for sample in together] == prompts
    for prompt, sample in zip(prompts, together, strict=True):
        alone = next(generate(model, prompt, batch_size=1))
        assert np.abs(sample.image.astype(int) - alone.image).max() <= 1, prompt
    short = next(generate(tiny_model, PROMPTS[0]))
    assert np.abs(together[0].image.astype(int) - short.image).max() <= 1
    # What stands in the second chunk is seen.
    other = next(generate(model, "left " * 29 + "heart"))
    assert np.abs(together[1].image.astype(int) - other.image).max() > 1
    with pytest.raises(UserError, match=r"69 tokens.*at most 68 \(with start and end\)"):
        generate(model, "left " * 67)


def test_chunks_equal_training(long_pipeline):
    """Generation repeats the shorter of prompt and negative prompt; training hides unused chunks with a mask."""
    import torch

    from roentgen.models.text_encoders import encode_text_states

    model = load_model(str(long_pipeline), device="cpu", dtype="float32", trainable=True)
    noise = model.initial_noise(1)[None]
    with torch.inference_mode():
        tokens = model.reader.tokens(["left " * 30])
        states = encode_text_states(model.text_encoder, tokens, masked=False)
        trained = model.unet(noise, 500, states, encoder_attention_mask=tokens.used).sample
        ours = model.encode_text("left " * 30)
        assert (states.shape[1], ours.shape[1]) == (72, 48)
        repeated = model.unet(noise, 500, lengthen(ours, 96)).sample
    torch.testing.assert_close(repeated, trained, atol=1e-5, rtol=1e-4)


def test_negative_prompt_of_other_length(long_pipeline):
    """Prompt and negative prompt of one and two chunks: without guidance's difference nothing changes."""
    model = load_model(str(long_pipeline), device="cpu", dtype="float32")
    plain = pictures(model, PROMPTS[:1], negative_prompt="", guidance=1.0)[0]
    same = pictures(model, PROMPTS[:1], negative_prompt="left " * 30, guidance=1.0 + 1e-6)[0]
    assert np.abs(plain - same).max() <= 1
    guided = pictures(model, PROMPTS[:1], negative_prompt="left " * 30, guidance=6.0)[0]
    assert np.abs(plain - guided).max() > 1


def test_bert_text_encoder_is_loaded_by_its_class(make_pipeline, tmp_path):
    """A pipeline that someone else put together, without the flag for the attention mask: as stock diffusers."""
    folder = make_pipeline(tmp_path / "bert")
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / name)
        shutil.copytree(write_bert(tmp_path / "parts" / name), folder / name)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder": ["transformers", "BertModel"], "tokenizer": ["transformers", "BertTokenizerFast"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    model = load_model(str(folder), device="cpu")
    assert type(model.text_encoder).__name__ == "BertModel"
    assert (model.reader.window, model.reader.masked) == (48, False)
    assert next(generate(model, "left pleural effusion")).image.shape == (32, 32)
    (folder / "text_encoder" / "config.json").write_text(
        json.dumps({**json.loads((folder / "text_encoder" / "config.json").read_text()), "use_attention_mask": True})
    )
    assert load_model(str(folder), device="cpu").reader.masked


# -------------------------------------------------------------------------------------------- LoRA


def write_lora(folder, pipeline_folder, *, parts=("unet", "text_encoder"), alpha=4):
    """A LoRA with weights unlike zero, saved by stock diffusers."""
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    stock = StableDiffusionPipeline.from_pretrained(pipeline_folder)
    layers = {"unet": ["to_q", "to_k", "to_v", "to_out.0"], "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"]}
    torch.manual_seed(0)
    given = {}
    for name in parts:
        module = getattr(stock, name)
        config = LoraConfig(r=2, lora_alpha=alpha, target_modules=layers[name], init_lora_weights=False)
        module.add_adapter(config)
        with torch.no_grad():
            for key, value in module.named_parameters():
                if "lora_" in key:
                    value.normal_(std=0.5)
        given[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
        given[f"{name}_lora_adapter_metadata"] = {"r": 2, "lora_alpha": alpha, "target_modules": layers[name]}
    if alpha == 2:  # the scale is 1 then, which is what a file without metadata says
        given = {key: value for key, value in given.items() if "metadata" not in key}
    StableDiffusionPipeline.save_lora_weights(folder, **given)


@pytest.mark.parametrize(
    ("parts", "alpha"), [(("unet", "text_encoder"), 4), (("unet", "text_encoder"), 2), (("unet",), 4)]
)
def test_lora_equals_stock_diffusers(tiny_model, tiny_pipeline, tmp_path, parts, alpha):
    import torch
    from diffusers import DiffusionPipeline

    write_lora(tmp_path / "adapted", tiny_pipeline, parts=parts, alpha=alpha)
    model = load_model(str(tiny_pipeline), device="cpu", dtype="float32", lora=tmp_path / "adapted")
    stock = DiffusionPipeline.from_pretrained(tiny_pipeline)
    stock.set_progress_bar_config(disable=True)
    stock.load_lora_weights(tmp_path / "adapted")
    stock.scheduler = stock_sampler(stock, "ddim")
    noise = tiny_model.initial_noise(5)[None]
    settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    with torch.inference_mode():
        theirs = stock(PROMPTS[0], latents=noise, **settings).images[0, :, :, 0]
    settings = {"seed": 5, "steps": 3, "guidance": 3.0, "sampler": "ddim"}
    sample = next(generate(model, PROMPTS[0], **settings))
    assert np.abs(sample.image.astype(int) - np.rint(theirs * 255)).max() <= 1
    plain = next(generate(tiny_model, PROMPTS[0], **settings))
    assert np.abs(sample.image.astype(int) - plain.image).max() > 5
    # The marks tell the two apart, and what is left are ordinary modules.
    assert sample.provenance["model_hash"] == model.info.hash != tiny_model.info.hash
    assert sample.provenance["lora"].startswith("adapted ")
    assert "lora" not in plain.provenance
    whole = load_model(str(tiny_pipeline), device="cpu", dtype="float32", trainable=True)
    assert set(model.unet.state_dict()) == set(whole.unet.state_dict())
    assert set(model.text_encoder.state_dict()) == set(whole.text_encoder.state_dict())
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


def test_lora_from_the_command_line(run_cli, tiny_pipeline, tmp_path):
    write_lora(tmp_path / "adapted", tiny_pipeline)
    file = tmp_path / "adapted" / lora.LORA_FILE
    hashes = set()
    for number, more in enumerate(([], ["--lora", tmp_path / "adapted"], ["--lora", file])):
        out = tmp_path / str(number)
        code, printed, _ = run_cli("generate", "left", "--model", tiny_pipeline, "--out", out, "--json", *more)
        assert code == 0
        hashes.add(json.loads(printed)["model_hash"])
    assert len(hashes) == 2


def test_token_window_counts_start_and_end(tiny_model):
    tiny_model.check("left " * 22)
    with pytest.raises(UserError, match=r"25 tokens.*at most 24"):
        tiny_model.check("left " * 23)


def test_unknown_words(tiny_model):
    assert tiny_model.info.unknown_words("Left PLEURAL effusion, 54-year-old's zebra; zebra") == [
        "year",
        "old",
        "zebra",
    ]


def test_ddim_does_not_clip_latents(tiny_model):
    from diffusers import PNDMScheduler

    # As in SD 1.x.
    assert make_solver(PNDMScheduler(skip_prk_steps=True), "ddim", "tiny").config["clip_sample"] is False


def test_zero_terminal_snr_refuses_pndm(tiny_model):
    import dataclasses

    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(tiny_model.scheduler.config, rescale_betas_zero_snr=True)
    model = dataclasses.replace(tiny_model, scheduler=scheduler)
    with pytest.raises(UserError, match="--sampler pndm"):
        generate(model, PROMPTS[0], sampler="pndm")
    assert next(generate(model, PROMPTS[0], sampler="dpm++")).image.std() > 0


@pytest.fixture
def widths(monkeypatch):
    """How many latents each call of the U-Net reads, as the calls come."""
    found = []
    call = Diffusion.call_unet

    def counted(model, inputs, *rest, **named):
        found.append(len(inputs))
        return call(model, inputs, *rest, **named)

    monkeypatch.setattr(Diffusion, "call_unet", counted)
    return found


def test_a_share_of_the_steps_is_guided(tiny_model, widths):
    """The first ones; the others read the prompt alone, as without guidance, and the marks say so."""
    settings = {"seed": 3, "steps": 5, "guidance": 4.0, "sampler": "ddim"}
    found = {share: pictures(tiny_model, PROMPTS[:2], guided_share=share, **settings) for share in (1, 0.6, 0.4, 0)}
    assert widths == [4] * 5 + [4] * 3 + [2] * 2 + [4] * 2 + [2] * 3 + [2] * 5
    whole = pictures(tiny_model, PROMPTS[:2], **settings)
    plain = pictures(tiny_model, PROMPTS[:2], **{**settings, "guidance": 1})
    assert all(np.array_equal(a, b) for a, b in zip(found[1], whole, strict=True))
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(found[0], plain, strict=True))
    apart = [np.abs(found[share][0] - whole[0]).mean() for share in (1, 0.6, 0.4, 0)]
    assert apart == sorted(apart) and apart[1] > 0
    marks = [next(generate(tiny_model, "left", steps=1, guided_share=share)).provenance for share in (1, 0.5)]
    assert "guided_share" not in marks[0] and marks[1]["guided_share"] == "0.5"
    with pytest.raises(UserError, match="--guided-share 2"):
        tiny_model.sampling(guided_share=2)


def test_an_interval_of_the_steps_is_guided(tiny_model, widths):
    """Guidance may begin later, and end earlier; the marks say when."""
    settings = {"seed": 3, "steps": 5, "guidance": 4.0, "sampler": "ddim"}
    pictures(tiny_model, PROMPTS[:2], guided_from=0.4, guided_share=0.8, **settings)
    never = pictures(tiny_model, PROMPTS[:2], guided_from=0.8, guided_share=0.4, **settings)
    assert widths == [2, 2, 4, 4, 2] + [2] * 5
    plain = pictures(tiny_model, PROMPTS[:2], **{**settings, "guidance": 1})
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(never, plain, strict=True))
    marks = [next(generate(tiny_model, "left", steps=1, guided_from=share)).provenance for share in (0, 0.5)]
    assert "guided_from" not in marks[0] and marks[1]["guided_from"] == "0.5"
    with pytest.raises(UserError, match="--guided-from -1"):
        tiny_model.sampling(guided_from=-1)


def test_reconstruction_by_three_channels_is_that_by_one(tiny_pipeline, tmp_path):
    from roentgen.models.autoencoder.channels import with_channels
    from roentgen.models.loading import load_vae

    colour = shutil.copytree(tiny_pipeline, tmp_path / "colour")
    with_channels(with_channels(load_vae(tiny_pipeline / "vae"), 1), 3).save_pretrained(colour / "vae")
    grey = shutil.copytree(tiny_pipeline, tmp_path / "grey")
    with_channels(load_vae(tiny_pipeline / "vae"), 1).save_pretrained(grey / "vae")
    models = [load_model(str(folder), device="cpu", dtype="float32") for folder in (grey, colour)]
    assert [model.vae.config.in_channels for model in models] == [1, 3]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    one, three = (model.reconstruct(pixels) for model in models)
    assert one.shape == pixels.shape and np.abs(one.astype(int) - three).max() <= 1
