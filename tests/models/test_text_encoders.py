"""Text encoders: loading by name, layers, long texts, and another encoder in front of a trained U-Net."""

from __future__ import annotations

import copy
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import bert_config, write_bert, write_clip_text, write_cxr_bert, write_roberta, write_wordpiece

from roentgen import generate, load_model
from roentgen.errors import UserError
from roentgen.generators.diffusion.text_swap import swap_text_encoder
from roentgen.models import hub
from roentgen.models.text_encoders import (
    encode_text_states,
    files_to_fetch,
    keep_layer,
    load_text_encoder,
    make_reader,
)

SHORT = "left pleural effusion"
LONG = "small left pleural effusion and large right pleural effusion no acute process heart is normal in size"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("text") / "bert")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip_text(tmp_path_factory.mktemp("text") / "clip")


@torch.no_grad()
def states(name, texts, *, chunks=1, layer="last"):
    tokenizer, encoder = load_text_encoder(str(name), layer=layer)
    reader = make_reader(tokenizer, encoder, chunks=chunks)
    return encode_text_states(encoder, reader.tokens(texts), masked=reader.masked)


# ---------------------------------------------------------------------------------------- loading


def test_bert_equals_transformers(bert):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, encoder = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()
    batch = tokenizer([SHORT, "no"], padding="max_length", max_length=48, return_tensors="pt")
    with torch.no_grad():
        expected = encoder(**batch).last_hidden_state
    torch.testing.assert_close(states(bert, [SHORT, "no"]), expected)
    assert load_text_encoder(str(bert))[1].pooler is None


@pytest.mark.parametrize("safe", [True, False])
def test_cxr_bert_without_remote_code(tmp_path, safe):
    from transformers import BertConfig, BertForMaskedLM

    folder = write_cxr_bert(tmp_path / "cxr", safe=safe)
    tokenizer, encoder = load_text_encoder(str(folder))
    assert type(encoder).__name__ == "BertModel"
    assert "auto_map" not in encoder.config.to_dict()
    assert tokenizer(SHORT).input_ids[0] == tokenizer.cls_token_id
    values = json.loads((folder / "config.json").read_text())
    config = BertConfig.from_dict({k: v for k, v in values.items() if k not in ("model_type", "auto_map")})
    peer = BertForMaskedLM.from_pretrained(folder, config=config).eval()
    batch = tokenizer([SHORT], padding="max_length", max_length=48, return_tensors="pt")
    with torch.no_grad():
        expected = peer(**batch, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(states(folder, [SHORT]), expected)


def test_masked_language_model_and_whole_clip(tmp_path, clip):
    """Checkpoints with heads or a vision model on top give the encoder inside."""
    from transformers import BertForMaskedLM, CLIPModel

    write_wordpiece(tmp_path / "mlm")
    torch.manual_seed(3)
    BertForMaskedLM(bert_config()).save_pretrained(tmp_path / "mlm")
    mlm = BertForMaskedLM.from_pretrained(tmp_path / "mlm")
    found = load_text_encoder(str(tmp_path / "mlm"))[1]
    assert torch.equal(found.embeddings.word_embeddings.weight, mlm.bert.embeddings.word_embeddings.weight)

    folder = write_clip_text(tmp_path / "whole", whole=True)
    found = load_text_encoder(str(folder))[1]
    assert type(found).__name__ == "CLIPTextModel"
    theirs = dict(CLIPModel.from_pretrained(folder).text_model.named_parameters())
    ours = {name.removeprefix("text_model."): value for name, value in found.named_parameters()}
    assert set(ours) == set(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_pipeline_folder_gives_its_text_encoder(tiny_pipeline, tiny_model):
    tokenizer, encoder = load_text_encoder(str(tiny_pipeline))
    tokens = make_reader(tokenizer, encoder).tokens([SHORT])
    with torch.no_grad():
        expected = encode_text_states(tiny_model.text_encoder, tokens, masked=False)
        torch.testing.assert_close(encode_text_states(encoder, tokens, masked=False), expected)


def test_half_precision_checkpoint_is_loaded_in_float32(tmp_path, bert):
    from transformers import BertModel

    folder = shutil.copytree(bert, tmp_path / "half")
    BertModel.from_pretrained(bert).half().save_pretrained(folder)
    assert {p.dtype for p in load_text_encoder(str(folder))[1].parameters()} == {torch.float32}


def test_hub_cache_then_download(bert, hub_cache, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda hub_id, choose: asked.append(hub_id) or bert)
    load_text_encoder("sapbert")
    assert asked == ["cambridgeltl/SapBERT-from-PubMedBERT-fulltext"]
    hub_cache("cambridgeltl/SapBERT-from-PubMedBERT-fulltext", bert)
    load_text_encoder("sapbert")
    assert len(asked) == 1


def test_files_to_fetch():
    """One format of the weights only, and no other framework's."""
    text = ["config.json", "tokenizer_config.json", "vocab.txt"]
    extra = ["README.md", "flax_model.msgpack", "tf_model.h5", "training_args.bin", "modeling_cxrbert.py"]
    old = ["pytorch_model.bin"]
    assert files_to_fetch([*text, *extra, *old]) == text + old
    assert files_to_fetch([*text, *extra, *old, "model.safetensors"]) == [*text, "model.safetensors"]
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert files_to_fetch([*text, *parts]) == text + parts
    pipeline = ["model_index.json", "text_encoder/config.json", "text_encoder/model.safetensors"]
    pipeline += ["text_encoder/model.fp16.safetensors", "tokenizer/vocab.json", "unet/config.json"]
    assert files_to_fetch(pipeline) == [
        "text_encoder/config.json",
        "tokenizer/vocab.json",
        "text_encoder/model.safetensors",
    ]


# --------------------------------------------------------------------------------- one sentence each


def refuses(pattern, name, **options):
    with pytest.raises(UserError, match=pattern) as caught:
        load_text_encoder(str(name), **options)
    assert "\n" not in str(caught.value)


def test_names_and_layers_that_do_not_exist(bert):
    refuses(r"--text-encoder radbrt: unknown; did you mean radbert\?.*cxr-bert", "radbrt")
    refuses(r"clip is the text encoder of the pipeline itself", "clip")
    refuses(r"--text-layer second: unknown; choose one of last, penultimate", bert, layer="second")


@pytest.mark.usefixtures("hub_cache")
def test_offline(monkeypatch):
    """The real download function, with the hub switched off."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refuses(
        r"--text-encoder cxr-bert: microsoft/BiomedVLP.* run `hf download microsoft/BiomedVLP-CXR-BERT-specialized "
        r"--local-dir FOLDER`.*vocab\.txt and model\.safetensors or pytorch_model\.bin, then pass --text-encoder F",
        "cxr-bert",
    )


def test_folders_that_are_not_whole(tmp_path, bert, clip):
    (tmp_path / "empty").mkdir()
    refuses(r"no text encoder in .*empty \(no config\.json\)", tmp_path / "empty")

    folder = shutil.copytree(bert, tmp_path / "unworded")
    for file in (*folder.glob("vocab*"), *folder.glob("tokenizer*")):
        file.unlink()
    refuses(r"the tokenizer is missing from .*unworded \(vocab\.txt, or tokenizer\.json\)", folder)

    folder = shutil.copytree(clip, tmp_path / "unworded-clip")
    (folder / "merges.txt").unlink()
    refuses(r"the tokenizer is missing from .*\(merges\.txt, or", folder)

    folder = shutil.copytree(bert, tmp_path / "weightless")
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"x")
    refuses(r"weightless has no weights", folder)

    folder = shutil.copytree(bert, tmp_path / "cut")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-5])
    refuses(r"model\.safetensors: truncated", folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(whole[:100])
    refuses(r"cut: cannot be loaded as BertModel", folder)


def test_other_models(tmp_path, bert, clip):
    folder = shutil.copytree(bert, tmp_path / "t5")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "t5"}))
    refuses(r"config\.json is of type 't5'; text encoders of the types BERT, RoBERTa and CLIP", folder)

    (folder / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 3}))
    refuses(r"16 weights of BertModel are missing \(such as encoder\.layer\.2", folder)

    (folder / "config.json").write_text(json.dumps({**values, "hidden_size": 32}))
    refuses(r"t5: cannot be loaded as BertModel", folder)

    shutil.copy(clip / "model.safetensors", folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values))
    refuses(r"weights of BertModel are missing", folder)


def test_tokenizer_and_encoder_must_belong_together(bert, clip):
    from transformers import BertModel

    (clip_words, clip_text), (words, _) = load_text_encoder(str(clip)), load_text_encoder(str(bert))
    small = bert_config()
    small.vocab_size = 20
    with pytest.raises(UserError, match=rf"tokenizer has {len(words)} tokens but its text encoder knows 20"):
        make_reader(words, BertModel(small))
    with pytest.raises(UserError, match=r"--text-window 25: the text encoder has 24 positions"):
        make_reader(clip_words, clip_text, window=25)
    with pytest.raises(UserError, match=r"--text-window 2: must be more than 2"):
        make_reader(clip_words, clip_text, window=2)
    with pytest.raises(UserError, match=r"--text-chunks 0"):
        make_reader(clip_words, clip_text, chunks=0)


def test_roberta_has_fewer_positions_than_it_says(tmp_path):
    tokenizer, encoder = load_text_encoder(str(write_roberta(tmp_path / "roberta")))
    assert encoder.config.max_position_embeddings == 26
    reader = make_reader(tokenizer, encoder)  # this tokenizer has no limit of its own
    assert (reader.window, reader.masked, tokenizer.model_max_length) == (24, True, 24)
    with torch.no_grad():
        assert encode_text_states(encoder, reader.tokens(["x" * 99]), masked=True).shape == (1, 24, 16)
    with pytest.raises(UserError, match=r"--text-window 25: the text encoder has 24 positions"):
        make_reader(tokenizer, encoder, window=25)


# ------------------------------------------------------------------------------------------ layers


def test_penultimate_bert(bert):
    tokenizer, encoder = load_text_encoder(str(bert))
    tokens = make_reader(tokenizer, encoder).tokens([SHORT])
    with torch.no_grad():
        hidden = encoder(tokens.ids, attention_mask=tokens.attention, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states(bert, [SHORT], layer="penultimate"), hidden[-2])
    assert not torch.allclose(hidden[-1], hidden[-2])


def test_penultimate_clip_is_clip_skip_of_diffusers(make_pipeline, clip, tmp_path, monkeypatch):
    """And the saved encoder gives it without being told."""
    from diffusers import StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_pretrained(make_pipeline(tmp_path / "stock"))
    stock.tokenizer, stock.text_encoder = load_text_encoder(str(clip))
    make_reader(stock.tokenizer, stock.text_encoder)
    if not hasattr(stock.text_encoder, "text_model"):  # transformers 5 has flattened CLIP; clip_skip looks inside
        monkeypatch.setattr(type(stock.text_encoder), "text_model", property(lambda self: self), raising=False)
    settings = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    with torch.no_grad():
        expected, _ = stock.encode_prompt(SHORT, "cpu", **settings, clip_skip=1)
        whole, _ = stock.encode_prompt(SHORT, "cpu", **settings)
    torch.testing.assert_close(states(clip, [SHORT], layer="penultimate"), expected)
    assert not torch.allclose(whole, expected)

    tokenizer, encoder = load_text_encoder(str(clip), layer="penultimate")
    for part in (tokenizer, encoder):
        part.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(states(tmp_path / "saved", [SHORT]), expected)
    # A training that goes on from the saved encoder, with the same settings, takes no second layer away.
    torch.testing.assert_close(states(tmp_path / "saved", [SHORT], layer="penultimate"), expected)


def test_too_few_layers(tmp_path):
    folder = write_bert(tmp_path / "flat", layers=1)
    refuses(r"--text-layer penultimate: the text encoder has one layer only", folder, layer="penultimate")
    linear = torch.nn.Linear(1, 1)
    linear.config = SimpleNamespace(to_dict=dict)
    with pytest.raises(UserError, match="--text-layer penultimate: Linear is of an unknown kind"):
        keep_layer(linear, "penultimate")


# ---------------------------------------------------------------------------------------- long text


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_one_chunk_is_the_tokenizers_own_padding_and_cutting(request, kind):
    tokenizer, encoder = load_text_encoder(str(request.getfixturevalue(kind)))
    reader = make_reader(tokenizer, encoder, window=12)
    tokens = reader.tokens(["", SHORT, LONG])
    theirs = tokenizer(["", SHORT, LONG], padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    assert torch.equal(tokens.ids, theirs.input_ids)
    assert torch.equal(tokens.attention, theirs.attention_mask)
    assert tokens.used.all()
    assert reader.masked == (kind == "bert")


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_chunks_hold_the_whole_text(request, kind):
    tokenizer, encoder = load_text_encoder(str(request.getfixturevalue(kind)))
    words = tokenizer(LONG, add_special_tokens=False).input_ids
    window = len(words) // 3 + 1 + 2
    assert len(words) % 3 and len(words) > 12
    reader = make_reader(tokenizer, encoder, window=window, chunks=3)
    tokens = reader.tokens([LONG, "", SHORT])
    start, end = tokenizer("").input_ids
    rows, lengths = tokens.ids.reshape(3, 3, window), tokens.attention[0].reshape(3, window).sum(1).tolist()
    pieces = [row[:length] for row, length in zip(rows[0].tolist(), lengths, strict=True)]
    assert [(piece[0], piece[-1]) for piece in pieces] == [(start, end)] * 3
    assert [token for piece in pieces for token in piece[1:-1]] == words
    assert tokens.used.reshape(3, 3, window).any(2).tolist() == [[True] * 3, [True, False, False], [True, False, False]]
    assert torch.equal(tokens.used.reshape(3, 3, window).any(2), tokens.used.reshape(3, 3, window).all(2))
    assert torch.equal(rows[1, 0], rows[1, 2])  # unused chunks hold the empty text
    assert reader.fitted(LONG).chunks == 3
    assert reader.fitted("").chunks == reader.fitted(SHORT).chunks == 1


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_a_text_does_not_depend_on_its_batch(request, kind):
    folder = request.getfixturevalue(kind)
    tokenizer, encoder = load_text_encoder(str(folder))
    reader = make_reader(tokenizer, encoder, window=12, chunks=2)
    with torch.no_grad():
        together = encode_text_states(encoder, reader.tokens([LONG, SHORT, ""]), masked=reader.masked)
        alone = encode_text_states(encoder, reader.tokens([SHORT]), masked=reader.masked)
        # The first chunk of a text is what the first chunk alone would be.
        single = make_reader(tokenizer, encoder, window=12)
        first = encode_text_states(encoder, single.tokens([LONG]), masked=single.masked)
    torch.testing.assert_close(together[1:2], alone)
    torch.testing.assert_close(together[:1, :12], first)
    assert together.shape == (3, 24, 16)


def test_unused_chunks_do_not_reach_the_unet(trainable_model, clip):
    """With ``used`` as the U-Net's mask, a text in two chunks of which it needs one gives what it gives in one."""
    tokenizer, encoder = load_text_encoder(str(clip))
    noise = torch.randn(1, *trainable_model.latent_shape, generator=torch.Generator().manual_seed(0))
    outputs = []
    with torch.no_grad():
        for chunks in (1, 2):
            tokens = make_reader(tokenizer, encoder, chunks=chunks).tokens([SHORT])
            text = encode_text_states(encoder, tokens, masked=False)
            mask = tokens.used if chunks > 1 else None
            outputs.append(trainable_model.unet(noise, 500, text, encoder_attention_mask=mask).sample)
            if chunks == 2:
                assert not torch.allclose(trainable_model.unet(noise, 500, text).sample, outputs[0], atol=1e-6)
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-6, rtol=1e-5)


def test_counts(clip):
    tokenizer, encoder = load_text_encoder(str(clip))
    texts = ["left " * n for n in (1, 22, 23, 44, 45)]
    one = make_reader(tokenizer, encoder).count(texts)
    two = make_reader(tokenizer, encoder, chunks=2)
    assert (one.total, one.chunked, one.cut, one.longest) == (5, 0, 3, 47)
    counts = two.count(texts)
    assert (counts.total, counts.chunked, counts.cut, counts.longest) == (5, 2, 1, 47)
    assert two.limit == 46
    assert two.count([]).longest == 2
    assert two.tokens([]).ids.shape == (0, 48)


def test_tokens_can_be_moved_and_chosen(clip):
    reader = make_reader(*load_text_encoder(str(clip)), chunks=2)
    tokens = reader.tokens([SHORT, "no", LONG])
    assert torch.equal(tokens[1:].ids, reader.tokens(["no", LONG]).ids)
    chosen = tokens[torch.tensor([2, 0])].to("cpu")
    assert torch.equal(chosen.used, reader.tokens([LONG, SHORT]).used)
    assert chosen.chunks == 2


# ------------------------------------------------------------------------------------------- swaps


def stock_pipeline(folder):
    from diffusers import StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    return stock


def swapped(make_pipeline, folder, encoder_folder, **options):
    """The tiny pipeline with another text encoder, saved by stock diffusers; and its U-Net before the swap."""
    stock = stock_pipeline(make_pipeline(folder / "before"))
    before = {name: value.clone() for name, value in stock.unet.state_dict().items()}
    tokenizer, encoder = load_text_encoder(str(encoder_folder))
    make_reader(tokenizer, encoder, **options)
    added = swap_text_encoder(stock.unet, encoder)
    stock.register_modules(tokenizer=tokenizer, text_encoder=encoder)
    stock.save_pretrained(folder / "after")
    shutil.copy(folder / "before" / "roentgen.json", folder / "after")
    return folder / "after", before, added


@pytest.mark.parametrize("width", [16, 24])
def test_swapped_pipeline_runs_here_and_in_stock_diffusers(make_pipeline, tmp_path, width):
    from diffusers import DPMSolverMultistepScheduler

    bert = write_bert(tmp_path / "bert", width=width)
    folder, before, added = swapped(make_pipeline, tmp_path, bert)
    assert added == (width != 16)
    stock, model = stock_pipeline(folder), load_model(str(folder), device="cpu", dtype="float32")
    after = stock.unet.state_dict()
    assert set(after) - set(before) == ({"encoder_hid_proj.weight", "encoder_hid_proj.bias"} if added else set())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    settings = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    with torch.no_grad():
        theirs, _ = stock.encode_prompt(SHORT, "cpu", **settings)
        ours = model.encode_text(SHORT)
    assert ours.shape == (1, 48, width)
    torch.testing.assert_close(ours, theirs)
    stock.scheduler = DPMSolverMultistepScheduler.from_config(stock.scheduler.config)
    noise = model.initial_noise(5)[None]
    image = stock(SHORT, latents=noise, num_inference_steps=2, guidance_scale=3.0, output_type="np").images[0, :, :, 0]
    sample = next(generate(model, SHORT, seed=5, steps=2, guidance=3.0, sampler="dpm++"))
    assert np.abs(sample.image.astype(int) - np.rint(image * 255)).max() <= 1
    # Words reach the image through the new encoder.
    other = next(generate(model, "no acute process", seed=5, steps=2, guidance=3.0, sampler="dpm++"))
    assert np.abs(sample.image.astype(int) - other.image.astype(int)).max() > 1


def wide(width):
    """Something with the configuration of an encoder of that width."""
    return SimpleNamespace(config=SimpleNamespace(hidden_size=width))


@torch.no_grad()
@pytest.mark.parametrize("width", [8, 160])
def test_projection_keeps_the_size_of_the_states(trainable_model, width):
    unet = copy.deepcopy(trainable_model.unet)
    like = 3.0 * torch.randn(4, 24, 16)
    assert swap_text_encoder(unet, wide(width), like=like)
    assert unet.config.encoder_hid_dim == unet.encoder_hid_proj.in_features == width
    states = torch.nn.functional.layer_norm(torch.randn(500, width), (width,))
    out = unet.encoder_hid_proj(states).square().mean().sqrt()
    assert out.item() == pytest.approx(like.square().mean().sqrt().item(), rel=0.03)
    # The start does not hang on the global generator.
    other = copy.deepcopy(trainable_model.unet)
    torch.manual_seed(2)
    swap_text_encoder(other, wide(width), like=like)
    assert torch.equal(unet.encoder_hid_proj.weight, other.encoder_hid_proj.weight)


def test_second_swap_replaces_or_removes_the_projection(trainable_model):
    unet = copy.deepcopy(trainable_model.unet)
    assert swap_text_encoder(unet, wide(24))
    assert swap_text_encoder(unet, wide(32), like=torch.randn(2, 5, 24))
    assert unet.encoder_hid_proj.weight.shape == (16, 32)
    assert not swap_text_encoder(unet, wide(16))
    assert unet.encoder_hid_proj is None
    assert (unet.config.encoder_hid_dim, unet.config.encoder_hid_dim_type) == (None, None)
    assert set(unet.state_dict()) == set(trainable_model.unet.state_dict())
    unet.register_to_config(encoder_hid_dim_type="image_proj")
    with pytest.raises(UserError, match="the U-Net reads image_proj"):
        swap_text_encoder(unet, wide(24))
