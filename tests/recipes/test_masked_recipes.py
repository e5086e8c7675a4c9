"""The recipes of image tokens and masked transformers: they learn, go on where they stopped, refuse in a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from forks import Forks
from masked import Tiny, make_tiny
from recipe import ROOT, few_rows, good, part, refused
from tiny import write_bert

from roentgen import config as cfg
from roentgen.recipes import CONFIGS
from roentgen.recipes.tokenizer import Settings, k_means


@pytest.fixture(scope="module")
def tiny(make_pipeline: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("masked"), make_pipeline)


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that nobody interrupts, with texts composed afresh."""
    out = tmp_path_factory.mktemp("whole")
    good(*tiny.flags, "--out", out, "--composed", 0.5, "--accumulate", 2, name="masked")
    return out


def transformer(out: Path) -> dict[str, np.ndarray]:
    return part(out / "model", "transformer")


def test_the_tokenizer_says_what_it_loses(tiny: Tiny) -> None:
    said = json.loads((tiny.tokenizer.parent / "tokenizer.json").read_text())
    assert [group["codes"] for group in said["groups"]] == [8, 16]
    assert all(0 < group["used"] <= 1 and 1 <= group["perplexity"] <= group["codes"] for group in said["groups"])
    assert said["error"] > 0 and said["error_continuous"] > 0 and said["images"] == 8


def test_it_learns(tiny: Tiny, tmp_path: Path) -> None:
    flags = (*tiny.flags, "--out", tmp_path, "--images", 480, "--rate", 0.01, "--batch-size", 8, "--ema-halflife", 40,
             "--validate-every", 80, "--log-every", 80, "--checkpoint-every", 480)  # fmt: skip
    told = good(*flags, name="masked").out
    errors = [float(line.split()[4]) for line in told.splitlines() if " validation error " in line]
    assert len(errors) == 6 and errors[-1] < 0.97 * errors[0]


def test_a_stopped_run_goes_on_to_the_same_weights(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    flags = (*tiny.flags, "--out", tmp_path, "--composed", 0.5, "--accumulate", 2)
    good(*flags, "--until", 8, name="masked")
    shutil.rmtree(tmp_path / "model")
    assert "continuing at 8 images" in good(*flags, name="masked").out
    one, other = transformer(whole), transformer(tmp_path)
    assert set(one) == set(other) and all(np.array_equal(one[key], other[key]) for key in one)
    assert "rate" in refused(*flags, "--rate", 0.5, name="masked")


def test_a_plateau_without_validation_images_is_refused_before_any_work(tiny: Tiny, tmp_path: Path) -> None:
    flags = [*tiny.flags]
    flags[flags.index("--manifest") + 1] = few_rows(tmp_path / "data", train=8, val=0)
    assert "--schedule plateau" in refused(*flags, "--schedule", "plateau", "--out", tmp_path / "out", name="masked")
    assert not (tmp_path / "out").exists()


def test_a_plateau_lowers_the_rate_and_is_continued(tiny: Tiny, tmp_path: Path) -> None:
    def last(out: Path) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(max((out / "checkpoints").iterdir()), weights_only=False)["plateau"]
        return state

    flags = (*tiny.flags, "--schedule", "plateau", "--rate", 1e-9, "--images", 112)  # too low to become any better
    good(*flags, "--out", tmp_path / "whole", name="masked")
    assert last(tmp_path / "whole")["factor"] == pytest.approx(0.1)
    cut = (*flags, "--out", tmp_path / "cut")
    good(*cut, "--until", 52, name="masked")  # between two validations
    assert last(tmp_path / "cut")["factor"] == 1.0
    good(*cut, name="masked")
    assert last(tmp_path / "cut") == last(tmp_path / "whole")
    one, other = transformer(tmp_path / "whole"), transformer(tmp_path / "cut")
    assert all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_two_processes_train_like_one(tiny: Tiny, whole: Path, forks: Forks, tmp_path: Path) -> None:
    flags = (*tiny.flags, "--out", tmp_path, "--composed", 0.5, "--accumulate", 2)
    done = forks(ROOT / "train" / "masked.py", *flags, ranks=2)
    assert done.code == 0, done.err[-3000:]
    one, other = transformer(whole), transformer(tmp_path)
    near = sum(int((np.abs(one[key] - other[key]) < 1e-5).sum()) for key in one)
    assert near / sum(value.size for value in one.values()) > 0.999


def test_cached_text_states_train_like_those_encoded_in_every_step(tiny: Tiny, tmp_path: Path) -> None:
    for kind in ("cache", "online"):
        good(*tiny.flags, "--out", tmp_path / kind, "--text-states", kind, "--until", 4, name="masked")
    one, other = (transformer(tmp_path / kind) for kind in ("cache", "online"))
    assert max(float(np.abs(one[key] - other[key]).max()) for key in one) < 2e-3  # the cache keeps float16


def test_a_model_is_trained_on_and_reads_bert(tiny: Tiny, tmp_path: Path) -> None:
    bert = write_bert(tmp_path / "bert", window=77)
    flags = [flag if flag != tiny.pipeline else bert for flag in tiny.flags]
    good(*flags, "--out", tmp_path / "first", "--until", 4, name="masked")
    more = flags[: flags.index("--codes")] + flags[flags.index("--pixels") :]
    good(*more, "--model", tmp_path / "first" / "model", "--out", tmp_path / "second", "--until", 4, name="masked")
    one, other = transformer(tmp_path / "first"), transformer(tmp_path / "second")
    assert any(not np.array_equal(one[key], other[key]) for key in one)


def test_bad_input_is_one_sentence(tiny: Tiny, tmp_path: Path) -> None:
    out, manifest = ("--out", tmp_path / "out"), ("--manifest", tiny.manifest)
    assert "--codes" in refused(*manifest, *out, "--text-encoder", tiny.pipeline, name="masked")
    assert "--codes" in refused(*tiny.flags, *out, "--codes", tmp_path, name="masked")
    assert "--pixels" in refused(*tiny.flags, *out, "--pixels", 36, name="masked")
    assert "--shape.heads" in refused(*tiny.flags, *out, "--shape.heads", 3, name="masked")
    assert "--batch-size" in refused(*tiny.flags, *out, "--accumulate", 3, name="masked")
    start = (*manifest, *out, "--vae", tiny.pipeline, "--size", 32)
    assert "--groups" in refused(*start, "--groups", "1,2", "--codes", "8,8", name="tokenizer")
    assert "--codes" in refused(*start, "--groups", "1,3", "--codes", "8", name="tokenizer")
    assert "--codes" in refused(*start, "--groups", "1,3", "--codes", "8,2000", name="tokenizer")
    assert "--vae" in refused(*manifest, *out, "--vae", tmp_path / "none", name="tokenizer")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_dry_run_writes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    told = good(*tiny.flags, "--out", tmp_path / "out", "--dry-run", name="masked").out
    assert "8x8 positions" in told and not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------- VQ-GAN

VQ = (
    *("--kind", "vqgan", "--size", 32, "--vq.channels", "8,8,8", "--vq.norm-groups", 4, "--vq.width", 4),
    *("--vq.codes", 16, "--vq.crop", 16, "--vq.images", 64, "--vq.batch-size", 4, "--vq.adversary-from", 16),
    *("--vq.revive-after", 8, "--vq.precision", "no", "--vq.rate", 1e-3, "--vq.warmup", 4, "--vq.log-every", 16),
)


@pytest.fixture(scope="module")
def vqgan(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VQ-GAN of sixteen steps."""
    out = tmp_path_factory.mktemp("vqgan")
    told = good("--manifest", tiny.manifest, *VQ, "--out", out, name="tokenizer").out
    assert "perceptual loss: " in told and "revived" in told
    return out


def test_a_vqgan_goes_on_to_the_same_weights(tiny: Tiny, vqgan: Path, tmp_path: Path) -> None:
    flags = ("--manifest", tiny.manifest, *VQ, "--out", tmp_path)
    good(*flags, "--vq.until", 32, name="tokenizer")
    good(*flags, name="tokenizer")
    one, other = part(vqgan / "tokenizer", "vq"), part(tmp_path / "tokenizer", "vq")
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_transformer_learns_and_draws_on_a_vqgan(tiny: Tiny, vqgan: Path, tmp_path: Path) -> None:
    from roentgen import load_model
    from roentgen.generators.generate import generate

    flags = [flag if flag != tiny.tokenizer else vqgan / "tokenizer" for flag in tiny.flags]
    good(*flags, "--out", tmp_path, "--until", 4, name="masked")
    model = load_model(str(tmp_path / "model"), device="cpu")
    (sample,) = generate(model, "left effusion", steps=3)
    assert sample.image.shape == (32, 32)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 32, 32), dtype=np.uint8)
    assert model.reconstruct(pixels).shape == pixels.shape  # type: ignore[attr-defined]


def test_dead_codes_start_anew_and_a_collapse_is_told() -> None:

    from roentgen.errors import UserError
    from roentgen.generators.masked.vqgan import check_use, revive

    table, last_used = torch.zeros(4, 2), torch.tensor([0, 0, 90, 0])
    latents = torch.full((1, 3, 2), 7.0)
    assert revive(table, last_used, torch.tensor([[1, 1, 1]]), latents, now=100, after=50, seed=0) == 2
    assert table.tolist() == [[7, 7], [0, 0], [0, 0], [7, 7]] and last_used.tolist() == [100, 100, 90, 100]
    check_use(torch.arange(1024), 1024, "here")
    with pytest.raises(UserError, match=r"here: .*perplexity 2\.0 of 1024"):
        check_use(torch.tensor([3, 5] * 512), 1024, "here")


# ------------------------------------------------------------------------------------------- RayGen


@pytest.mark.parametrize("config", ["transformer", "transformer-mended"])
def test_raygens_numbers_run(config: str, tiny: Tiny, tmp_path: Path) -> None:
    bert, file = write_bert(tmp_path / "bert", window=256), CONFIGS / "raygen" / f"{config}.yaml"
    tiny_flags = ("--config", file, "--manifest", tiny.manifest, "--codes", tiny.tokenizer, "--text-encoder", bert,
                  "--pixels", 32, "--precision", "no", "--out", tmp_path / "out")  # fmt: skip
    small = ("--shape.width", 16, "--shape.hidden", 32, "--shape.heads", 2, "--shape.head", 8, "--shape.layers", 1)
    told = good(*tiny_flags, "--dry-run", name="masked").out
    assert "8x8 positions" in told and "1 x 256 tokens" in told
    steps = ("--batch-size", 2, "--accumulate", 1, "--images", 40, "--sample-every", 10**6, "--validate-every", 40)
    good(*tiny_flags, *small, *steps, name="masked")
    said = json.loads((tmp_path / "out" / "model" / "roentgen.json").read_text())
    assert said["defaults"]["sampler"] in ("confidence", "halton")
    flags = ["--config", str(file.with_name("tokenizer.yaml")), "--manifest", "a", "-o", "b"]
    assert cfg.parse_settings(Settings, flags, prog="x", about="").vq.codes == 1024


def test_a_shipped_model_is_half_the_size_and_draws_the_same(tiny: Tiny, whole: Path, tmp_path: Path) -> None:
    from roentgen import load_model
    from roentgen.generators.generate import generate

    good("--pipeline", whole / "model", "--out", tmp_path / "shipped", "--steps", 5, "--guidance", 1.5, name="ship")
    folders = (whole / "model", tmp_path / "shipped")
    sizes = [(folder / "transformer" / "model.safetensors").stat().st_size for folder in folders]
    assert sizes[1] < 0.7 * sizes[0]
    model = load_model(str(tmp_path / "shipped"), device="cpu")
    assert model.info.defaults == {"steps": 5, "guidance": 1.5}
    (sample,) = generate(model, "left effusion")
    assert sample.provenance["steps"] == "5"
    flags = ("--pipeline", whole / "model", "--out", tmp_path / "x")
    assert "--vae" in refused(*flags, "--vae", tiny.pipeline, name="ship")


def test_a_dry_run_makes_no_weights(tmp_path: Path, make_pipeline: Callable[..., Path], monkeypatch: Any) -> None:
    from roentgen.recipes import masked

    tiny = make_tiny(tmp_path, make_pipeline)
    found: list[Any] = []
    monkeypatch.setattr(masked, "describe", lambda model: found.append(model.transformer))
    good(*tiny.flags, "--out", tmp_path / "out", "--dry-run", name="masked")
    assert all(parameter.is_meta for parameter in found[0].parameters())
    assert not (tmp_path / "out").exists()


def test_codes_by_the_largest_seed() -> None:
    settings: Any = SimpleNamespace(seed=2**63 - 1, fit_latents=100, groups=(1, 3), codes=(2, 4))
    centres = k_means(torch.randn(2, 4, 4, 4), settings)
    assert [tuple(each.shape) for each in centres] == [(2, 1), (4, 3)]
