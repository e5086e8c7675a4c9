"""Which words made which pixels: maps by hand, on both kinds of networks, and as the command writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roentgen import generate, images, load_model
from roentgen.commands import report_words
from roentgen.errors import UserError
from roentgen.generators.diffusion.attention import _Seen, _sides
from roentgen.generators.generate import word_maps
from roentgen.reports import Finding, Report

PROMPT = "Left effusion, no left pneumothorax."


@pytest.mark.parametrize("settings", [{}, {"guidance": 1}, {"guided_share": 0.5}, {"negative_prompt": "heart"}])
def test_maps_of_both_networks_agree_and_change_no_image(
    settings: dict[str, Any], tiny_model: Any, trainable_model: Any
) -> None:
    settings = {"steps": 4, **settings}
    plain, stock = (word_maps(model, PROMPT, 5, **settings) for model in (tiny_model, trainable_model))
    assert list(plain) == ["left", "effusion", "no", "pneumothorax"]
    for word, one in plain.items():
        assert one.shape == tiny_model.latent_shape[1:] and one.dtype == np.float32
        np.testing.assert_allclose(one, stock[word], atol=1e-4)
    assert sum(one.max() for one in plain.values()) > 0 and (sum(plain.values()) < 1).all()
    image, _ = tiny_model.word_maps(PROMPT, 5, tiny_model.sampling(**settings))
    assert (image == next(generate(tiny_model, PROMPT, seed=5, **settings)).image).all()
    assert not any(module._forward_pre_hooks for module in tiny_model.unet.modules())


def test_a_map_is_the_share_of_a_words_tokens() -> None:
    """One layer of one head, 2 x 2 places and 3 tokens: the softmax by hand."""
    layer = torch.nn.Module()
    layer.heads, layer.to_q, layer.to_k = 1, torch.nn.Identity(), torch.nn.Identity()  # type: ignore[assignment]
    rows = torch.tensor([[[1.0], [0.0], [0.0], [2.0]]])
    text = torch.tensor([[[0.0], [1.0], [3.0]]])
    seen = _Seen([(1,), (1, 2)], length=3, size=(2, 2))
    seen._look(layer, (torch.cat([rows + 7, rows]),), {"encoder_hidden_states": torch.cat([text - 5, text])})
    seen._look(layer, (rows, text.repeat(1, 2, 1)), {})  # copies beside a longer text change nothing
    shares = np.exp(np.outer([1, 0, 0, 2], [0, 1, 3]))
    shares /= shares.sum(1, keepdims=True)
    first, both = seen.maps()
    np.testing.assert_allclose(first.ravel(), shares[:, 1], rtol=1e-5)
    np.testing.assert_allclose(both.ravel(), shares[:, 1:].sum(1), rtol=1e-5)


def test_layers_of_odd_sizes_find_their_shape() -> None:
    assert [_sides(n, (15, 10)) for n in (150, 40, 12)] == [(15, 10), (8, 5), (4, 3)]


def test_words_know_their_tokens_in_every_chunk(tiny_model: Any) -> None:
    import dataclasses

    reader = dataclasses.replace(tiny_model.reader, window=6, chunks=3)
    text = "left effusion, no left effusion right"
    ids = reader.tokens([text]).ids[0]
    for word, places in reader.words(text).items():
        plain = reader._plain([word])[0]
        assert ids[list(places)].tolist() == plain * text.count(word)
    assert len(reader.words(text)["effusion"]) == 2 * len(reader._plain(["effusion"])[0])
    assert reader.words("-- . ,") == {}


def test_the_command_lights_the_image_by_each_word(run_cli: Any, tiny_pipeline: Path, tmp_path: Path) -> None:
    arguments = ["generate", "left effusion", "--model", tiny_pipeline, "--steps", 2, "--show-words", "-o", tmp_path]
    code, out, err = run_cli(*arguments)
    assert code == 0, err
    assert sorted(Path(line).name for line in out.split()) == ["left-effusion_0.png", "left-effusion_0_words.png"]
    picture = images.read_image(tmp_path / "left-effusion_0_words.png")
    assert picture.shape[1] > 3 * images.read_image(tmp_path / "left-effusion_0.png").shape[1]
    marks = images.read_provenance(tmp_path / "left-effusion_0_words.png")
    assert marks["synthetic"] == "true" and marks["shows"] == "words"
    code, _, err = run_cli(*arguments)
    assert code == 2 and "--overwrite" in err


def test_what_cannot_be_watched_is_said(tiny_model: Any) -> None:
    import dataclasses

    with pytest.raises(UserError, match="--compile"):
        word_maps(dataclasses.replace(tiny_model, compiled=True), PROMPT)
    with pytest.raises(UserError, match="--model mini-other"):
        other: Any = type("Other", (), {"info": dataclasses.replace(tiny_model.info, name="mini-other")})()
        other.check = lambda text: None
        word_maps(other, PROMPT)


def test_a_map_lights_its_image() -> None:
    image = np.full((4, 6), 200, np.uint8)
    shown = images.lit(image, np.array([[0.0, 1.0]], np.float32), dark=0.25)
    assert shown[0, 0] == 50 and shown[0, -1] == 200
    assert (images.lit(image, np.zeros((2, 2), np.float32)) == image).all()


def test_a_report_on_a_generated_image_is_lit_by_its_words(run_cli: Any, tiny_pipeline: Path, tmp_path: Path) -> None:
    code, out, err = run_cli("generate", "left effusion", "--model", tiny_pipeline, "--steps", 2, "-o", tmp_path)
    assert code == 0, err
    image = Path(out.strip())
    found = Report((Finding("Left effusion.", "Effusion", boxes=((0.5, 0.5, 1.0, 1.0),)),), "Left effusion.")
    with pytest.MonkeyPatch.context() as patch:  # its marks say no path of this machine
        patch.setattr(report_words, "_model", lambda name: load_model(str(tiny_pipeline), device="cpu"))
        picture, ratios = report_words.words_picture(image, images.read_image(image), found, title="x")
    assert picture.mode == "RGB" and 0.3 < ratios["Effusion"] < 3
    # What cannot be made again from its marks: pictures of another kind, and edits.
    for more in ({"shows": "words"}, {"edited": "true"}):
        other = tmp_path / "other.png"
        marks = report_words.marks_of(image) | more
        images.save_image(images.read_image(image), other, format="png", provenance=marks, overwrite=True)
        with pytest.raises(UserError, match=r"--words: .*other\.png"):
            report_words.marks_of(other)
    (tmp_path / "plain.png").write_bytes(b"")
    images.save_image(np.zeros((64, 64), np.uint8), tmp_path / "plain.png", format="png", provenance={}, overwrite=True)
    code, _, err = run_cli("report", tmp_path / "plain.png", "--words", "-o", tmp_path / "out")
    assert code == 2 and "--words" in err and "plain.png" in err
    code, _, err = run_cli("report", image, "--words")
    assert code == 2 and "--out" in err


def test_attention_in_a_box_is_over_that_of_the_image() -> None:
    map = np.array([[1.0, 1.0], [1.0, 5.0]])
    assert report_words._inside(map, [(0.5, 0.5, 1.0, 1.0)]) == 2.5
    assert report_words._inside(map, [(0.0, 0.0, 0.01, 0.01)]) == 0.5  # at least a cell
