"""Captioners: tiny random models of the real classes learn, are continued exactly, and report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import reporters
import torch
import torch.nn.functional as F

from roentgen.errors import UserError
from roentgen.recipes.report_captions import load_best
from roentgen.recipes.report_models import _tokenizer
from roentgen.recipes.report_reward import agreement, log_likelihood
from roentgen.recipes.report_words import IGNORED, text_loss, tokens_of
from roentgen.reports import load_reporter
from roentgen.reports.captioners import findings_of, open_captioner, write_texts
from roentgen.training.checkpoints import trained_state

SHORT = ["--batch-size", 4, "--max-tokens", 24, "--eval-every", 8, "--validate", 4, "--no-augment", "--warmup", 0]


def start(arch: str, folder: Path) -> list[object]:
    """Flags that name an architecture and its tiny random start."""
    if arch == "xreport":
        return ["--arch", arch, *reporters.XREPORT]
    return ["--arch", arch, "--model", reporters.MAKERS[arch](folder / "start")]


def losses(out: str) -> list[float]:
    return [float(found) for found in re.findall(r"validation loss ([\d.]+)", out)]


@pytest.mark.parametrize("arch", ["xreport", "git", "blip", "encoder-decoder"])
def test_each_architecture_learns_and_reports(arch: str, tmp_path: Path) -> None:
    table = reporters.manifest(tmp_path / "data")
    out = tmp_path / "out"
    said = reporters.good(
        *start(arch, tmp_path), *SHORT, "--manifest", table, "--out", out, "--images", 48, "--rate", 0.02
    )
    found = losses(said)
    assert len(found) == 6 and min(found) < 0.8 * found[0], said
    report = load_reporter(str(out)).report(np.random.default_rng(0).integers(0, 255, (20, 70)).astype(np.uint8))
    assert report.refused  # too small to be read
    image = np.random.default_rng(0).integers(0, 255, (80, 70)).astype(np.uint8)
    reporter = load_reporter(str(out))
    one = reporter.report(image)
    assert (not one.refused and one.text == " ".join(f.text for f in one.findings)) or not one.findings
    assert reporter.report_many([image, image])[1] == one
    assert reporter.info.hash and reporter.info.kind == arch


@pytest.mark.parametrize("arch", ["xreport", "git"])
def test_a_stopped_run_goes_on_as_if_it_had_not(arch: str, tmp_path: Path) -> None:
    table = reporters.manifest(tmp_path / "data")
    flags = [*start(arch, tmp_path), *SHORT, "--manifest", table, "--rate", 0.01, "--images", 32]
    flags = [flag if flag != "--no-augment" else "--augment" for flag in flags]
    reporters.good(*flags, "--out", tmp_path / "whole")
    reporters.good(*flags, "--out", tmp_path / "parts")
    # As a run that was stopped after 16 images leaves it: the later checkpoint never came to be.
    kept = sorted((tmp_path / "parts" / "checkpoints").glob("state-*.pt"))
    assert [int(path.stem[-3:]) for path in kept] == [24, 32]
    kept[-1].unlink()
    (tmp_path / "parts" / "model.safetensors").unlink()
    said = reporters.good(*flags, "--out", tmp_path / "parts")
    assert "continuing at 24 images" in said
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    assert "rate" in reporters.refused(*flags, "--rate", 0.02, "--out", tmp_path / "parts")


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04" + b"\0" * 40, "other"])
def test_the_best_weights_are_damaged(tmp_path: Path, content: bytes | str) -> None:
    model = torch.nn.Linear(2, 2)
    if isinstance(content, str):
        torch.save({"x": torch.zeros(2)}, tmp_path / "best.pt")
    else:
        (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"best\.pt: cannot be read"):
        load_best(model, tmp_path / "best.pt")
    torch.save(trained_state(model), tmp_path / "best.pt")
    load_best(model, tmp_path / "best.pt")


def test_training_stops_early_where_nothing_gets_better(tmp_path: Path) -> None:
    table = reporters.manifest(tmp_path / "data")
    flags = [*start("xreport", tmp_path), *SHORT, "--manifest", table, "--images", 80, "--rate", 0, "--patience", 2]
    said = reporters.good(*flags, "--out", tmp_path / "out")
    assert "stopped at 24 images" in said


def test_padding_carries_no_loss_and_image_tokens_no_text(tmp_path: Path) -> None:
    captioner = open_captioner(reporters.git(tmp_path / "git"))
    ids, mask = tokens_of(captioner, reporters.TEXTS, 24, Path("m.csv"))
    pixels = captioner.pixels([np.full((32, 32), 60 * n, np.uint8) for n in range(4)])
    with torch.no_grad():
        loss = text_loss(captioner, captioner.model, pixels, ids, mask)
        padded = text_loss(captioner, captioner.model, pixels, F.pad(ids, (0, 6)), F.pad(mask, (0, 6)))
        labels = ids.masked_fill(mask == 0, IGNORED)
        theirs = captioner.model(pixel_values=pixels, input_ids=ids, attention_mask=mask, labels=labels).loss
    assert padded.item() == pytest.approx(loss.item(), rel=1e-5)
    assert theirs.item() == pytest.approx(loss.item(), rel=1e-5)


def test_blip_begins_as_it_will_when_it_writes(tmp_path: Path) -> None:
    captioner = open_captioner(reporters.blip(tmp_path / "blip"))
    ids, _ = tokens_of(captioner, reporters.TEXTS, 24, Path("m.csv"))
    assert (ids[:, 0] == captioner.model.config.text_config.bos_token_id).all()
    image = np.random.default_rng(0).integers(0, 255, (32, 32)).astype(np.uint8)
    seen = captioner.model.generate(pixel_values=captioner.pixels([image]), max_new_tokens=3, do_sample=False)
    assert seen[0, 0] == captioner.model.config.text_config.bos_token_id


@pytest.mark.parametrize("arch", ["git", "encoder-decoder"])
def test_frozen_encoders_stay_as_they_are_but_for_the_last_layers(arch: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    table = reporters.manifest(tmp_path / "data")
    flags = [*start(arch, tmp_path), *SHORT, "--manifest", table, "--images", 8, "--rate", 0.01]
    reporters.good(*flags, "--freeze-encoder", "--unfreeze-layers", 1, "--out", tmp_path / "out")
    before = load_file(tmp_path / "start" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    moved = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    seeing = {name for name in moved if "encoder.layer.1." in name or "encoder.layers.1." in name}
    fixed = [n for n in moved if ("image_encoder" in n or n.startswith("encoder.")) and n not in seeing]
    assert seeing and not fixed


def test_adapters_are_merged_into_the_folder(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    table = reporters.manifest(tmp_path / "data")
    flags = [*start("git", tmp_path), *SHORT, "--manifest", table, "--images", 16, "--rate", 0.05, "--lora-rank", 2]
    reporters.good(*flags, "--out", tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "out"))
    assert set(before) == set(after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(re.search(r"query|key|value|[qkv]_proj", name) for name in moved)


def test_agreement_counts_findings_sides_and_negation() -> None:
    assert agreement("Left effusion.", "There is a left pleural effusion.") == 1
    assert agreement("No effusion.", "Clear lungs.") == 1
    assert agreement("No effusion.", "Left effusion.") == 0
    assert agreement("Right effusion.", "Left effusion.") == pytest.approx(2 * 1 / 3)
    assert agreement("Left effusion. Cardiomegaly.", "Left effusion.") == pytest.approx(2 * 1.5 / 4)


def test_reward_raises_what_is_rewarded(tmp_path: Path) -> None:
    table = reporters.manifest(tmp_path / "data", texts=["Cardiomegaly.", "Cardiomegaly. Effusion."])
    first = reporters.good(
        *start("git", tmp_path),
        *SHORT,
        "--manifest",
        table,
        "--out",
        tmp_path / "taught",
        "--images",
        32,
        "--rate",
        0.02,
    )
    assert first
    flags = ["--arch", "git", "--model", tmp_path / "taught", *SHORT, "--manifest", table, "--images", 64]
    said = reporters.good(*flags, "--reward", "--rate", 0.01, "--kl", 0.01, "--out", tmp_path / "out")
    images = [np.full((40, 32), 60 * n + 30, np.uint8) for n in range(2)]
    before, after = (write_texts(open_captioner(tmp_path / name), images) for name in ("taught", "out"))
    mean = [np.mean([agreement(text, "Cardiomegaly.") for text in texts]) for texts in (before, after)]
    assert "distinct" in said and mean[1] >= mean[0]


def test_preferred_reports_become_likelier(tmp_path: Path) -> None:
    table = reporters.manifest(tmp_path / "data")
    ratings = table.parent / "ratings.csv"
    rows = [
        f"{n}.png,{text},{score}" for n in range(6) for text, score in (("Cardiomegaly.", 5), ("Left effusion.", 1))
    ]
    ratings.write_text("\n".join(["image,report,rating", *rows]) + "\n")
    flags = [*start("git", tmp_path), *SHORT, "--manifest", table, "--images", 48, "--rate", 0.005]
    reporters.good(*flags, "--preferences", ratings, "--beta", 0.5, "--out", tmp_path / "out")
    gaps = []
    for name in ("start", "out"):
        captioner = open_captioner(tmp_path / name)
        pixels = captioner.pixels([np.full((32, 32), 90, np.uint8)] * 2)
        ids, mask = tokens_of(captioner, ["Cardiomegaly.", "Left effusion."], 24, Path("m.csv"))
        with torch.no_grad():
            better, worse = log_likelihood(captioner, captioner.model, pixels, ids, mask).tolist()
        gaps.append(better - worse)
    assert gaps[1] > gaps[0] + 1
    for bad, names in (("0.png,Normal.,good", "line 2"), ("0.png,,3", "line 2"), ("z.png,Normal.,3", "z.png")):
        ratings.write_text(f"image,report,rating\n{bad}\n")
        assert names in reporters.refused(*flags, "--preferences", ratings, "--out", tmp_path / "bad")
    ratings.write_text("image,report,rating\n0.png,Normal.,3\n1.png,Normal.,4\n")
    assert "--preferences" in reporters.refused(*flags, "--preferences", ratings, "--out", tmp_path / "bad")


def test_beams_and_no_repeat(tmp_path: Path) -> None:
    captioner = open_captioner(reporters.encoder_decoder(tmp_path / "model"))
    image = np.random.default_rng(0).integers(0, 255, (32, 32)).astype(np.uint8)
    (plain,) = write_texts(captioner, [image], max_tokens=20)
    (never,) = write_texts(captioner, [image], max_tokens=20, no_repeat=1, beams=2)
    words = captioner.tokenizer(never, add_special_tokens=False)["input_ids"]
    assert len(words) == len(set(words)) or plain != never


def test_sentences_become_findings() -> None:
    found = findings_of("Small left pleural effusion and cardiomegaly. No pneumothorax. Lines unchanged.")
    assert [one.label for one in found] == ["Effusion", "Cardiomegaly", None, None]
    assert found[0].side == "left" and not found[2].present


def test_words_have_the_same_numbers_each_time() -> None:
    from roentgen.reports.xreport import make_tokenizer

    texts = ["Left effusion, small.", "No effusion."]
    one, other = (make_tokenizer(texts).get_vocab() for _ in range(2))
    assert one == other
    made = make_tokenizer(texts)
    assert made.decode(made("No LEFT mol.")["input_ids"], skip_special_tokens=True) == "no left mol."


# --------------------------------------------------------------------------------------------- bad input


def test_texts_that_cannot_be_learned_are_refused(tmp_path: Path) -> None:
    flags = [*start("xreport", tmp_path), *SHORT, "--out", tmp_path / "out"]
    same = reporters.manifest(tmp_path / "same", texts=["Normal chest."])
    assert "--manifest" in reporters.refused(*flags, "--manifest", same)
    long = reporters.manifest(tmp_path / "long", texts=["effusion " * 40, "normal"])
    assert "--max-tokens" in reporters.refused(*flags, "--manifest", long)
    empty = reporters.manifest(tmp_path / "empty", texts=["", "normal", "effusion"])
    assert "empty" in reporters.refused(*flags, "--manifest", empty)
    assert "--xreport.embedding-dims 15" in reporters.refused(
        *flags, "--manifest", long, "--xreport.embedding-dims", 15
    )
    gone = reporters.manifest(tmp_path / "gone")
    (gone.parent / "3.png").unlink()
    assert "3.png" in reporters.refused(*flags, "--manifest", gone)


def test_models_that_do_not_fit_are_refused(tmp_path: Path, hub_cache: object) -> None:
    table = reporters.manifest(tmp_path / "data")
    common = [*SHORT, "--manifest", table, "--out", tmp_path / "out"]
    folder = reporters.git(tmp_path / "git")
    assert "--model" in reporters.refused("--arch", "blip", "--model", folder, *common)
    assert "hf download microsoft/git-base" in reporters.refused("--arch", "git", *common)
    assert "--max-tokens" in reporters.refused("--arch", "git", "--model", folder, *common, "--max-tokens", 100)
    assert "--unfreeze-layers" in reporters.refused(
        "--arch", "git", "--model", folder, *common, "--freeze-encoder", "--unfreeze-layers", 9
    )
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="git"):
        load_reporter(str(folder))
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"model_type": "bert"}))
    with pytest.raises(UserError, match=r"config\.json"):
        load_reporter(str(folder))
    with pytest.raises(UserError, match="--model nowhere"):
        load_reporter("nowhere")


def test_a_tokenizer_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "config.json").write_text('{"model_type": "x"}')
    with pytest.raises(UserError, match=r"--xreport\.tokenizer"):
        _tokenizer(str(tmp_path / "words"))
