"""Runs that are killed at random times, run out of disk, meet NaN, or are continued with other settings."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Done, Forks, Kill
from recipe import ROOT, few_rows, finetune, good, refused, same

from roentgen.training.batches import BatchMaker
from roentgen.training.checkpoints import Checkpoints
from roentgen.training.schedule import SCHEDULES

pytestmark = pytest.mark.slow
BATCH, STEPS = 4, 60
# Files that come and go while a run: its folder is claimed, latents are computed, a checkpoint and the result written.
CLAIM, LATENTS, WRITING, RESULT = ".lock", "cache", "checkpoints/.state-*.tmp", ".pipeline.*.tmp"
SAVED = "checkpoints/state-*.pt"
SHORT = ("--images", 8 * BATCH)


@dataclass(frozen=True)
class Run:
    """Flags of a run that checkpoints every step; ``forks`` runs it."""

    flags: tuple[object, ...]
    forks: Forks

    def __call__(self, out: Path, *flags: object, kill: Kill | None = None, limit: int | None = None) -> Done:
        return self.forks(ROOT / "train" / "finetune.py", *self.flags, "--out", out, *flags, kill=kill, limit=limit)


@pytest.fixture(scope="module")
def run(make_pipeline: Callable[..., Path], forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("resume")
    model, manifest = make_pipeline(folder / "tiny", window=77), few_rows(folder / "few")
    flags = [
        *("--manifest", manifest, "--model", model, "--images", BATCH * STEPS, "--batch_size", BATCH),
        *("--precision", "no", "--steps", 2, "--sample_every", 10**6, "--validate_every", 10**6, "--log_every", BATCH),
        *("--checkpoint_every", BATCH, "--rate", 1e-3, "--text_rate", 1e-3, "--warmup", 4, "--composed", 0.5),
    ]
    return Run(tuple(flags), forks)


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nobody interrupts."""
    out = tmp_path_factory.mktemp("whole")
    done = run(out)
    assert done.code == 0, done.err[-2000:]
    return out


@pytest.fixture(scope="module")
def short(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of eight steps that nobody interrupts."""
    out = tmp_path_factory.mktemp("short")
    good(*run.flags, *SHORT, "--out", out)
    return out


def saved(out: Path) -> int:
    """Images of the newest checkpoint, which must load; 0 where there is none."""
    state = Checkpoints(out / "checkpoints").latest()
    return 0 if state is None else int(state["images"])


def numbers(pattern: str, said: str) -> list[int]:
    return [int(found) for found in re.findall(pattern, said, re.MULTILINE)]


def test_killed_again_and_again_a_run_ends_with_the_same_weights(run: Run, whole: Path, tmp_path: Path) -> None:
    rng, out = random.Random(0), tmp_path / "out"
    # As soon as it starts; while there are no latents and no checkpoint yet; after some checkpoints of each run; in the
    # writing of one; and in the writing of the result. By what the run has done, never by the clock.
    early = [("", 1), (CLAIM, 1), (LATENTS, 1), (CLAIM, 1)]
    plan = [(SAVED, rng.randint(1, 3)) for _ in range(12)] + [(WRITING, 1)] * 4 + early[2:]
    rng.shuffle(plan)
    plan = early[:2] + plan
    kills, torn, before = 0, 0, 0
    for pattern, more in [*plan, (RESULT, 1)]:
        since = f"state-{before + more * BATCH:010d}.pt" if pattern == SAVED else ""
        said = run(out, kill=Kill(str(out), pattern, since=since, wait=rng.uniform(0, 0.002)))
        assert said.code == -9, (pattern, saved(out), said.out[-500:], said.err[-1500:])
        kills += 1
        torn += bool(list((out / "checkpoints").glob(".state-*.tmp")))
        continued = numbers(r"^continuing at (\d+) images", said.out)
        assert continued in ([], [before]) if before else not continued
        reached = numbers(r"^(\d+) images, error", said.out)
        now = saved(out)
        assert now >= max([before, *(seen - BATCH for seen in reached)])  # the last step at most is lost
        assert not (out / "pipeline").exists()
        before = now
    assert kills >= 20 and torn >= 1
    assert before == BATCH * STEPS  # the last kill came when all was trained
    done = run(out)
    assert done.code == 0, done.err[-2000:]
    assert same(out / "pipeline", whole / "pipeline")
    assert not list((out / "checkpoints").glob("*.tmp")) and not list(out.glob("*pipeline.*"))
    assert len(list((out / "checkpoints").iterdir())) == 2


def test_a_full_disk_keeps_the_older_checkpoint(run: Run, short: Path, tmp_path: Path) -> None:
    assert run(tmp_path, *SHORT, "--until", 4 * BATCH).code == 0
    kept = Checkpoints(tmp_path / "checkpoints").newest()
    assert kept is not None
    full = run(tmp_path, *SHORT, limit=kept.stat().st_size // 2)
    assert full.code == 2, full.err[-2000:]
    assert "could not write a checkpoint" in full.err and "older ones are kept" in full.err
    assert "Traceback" not in full.err and saved(tmp_path) == 4 * BATCH
    assert Checkpoints(tmp_path / "checkpoints").newest() == kept
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))
    assert run(tmp_path, *SHORT).code == 0
    assert same(tmp_path / "pipeline", short / "pipeline")


def test_a_full_disk_at_the_end_keeps_checkpoints(run: Run, short: Path, tmp_path: Path) -> None:
    """The result's weights are larger than the log, smaller than a checkpoint."""
    part = short / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    assert run(tmp_path, *SHORT, kill=Kill(str(tmp_path), RESULT)).code == -9
    full = run(tmp_path, *SHORT, limit=part.stat().st_size // 2)
    assert full.code == 2, full.err[-2000:]
    assert "cannot write the pipeline" in full.err and "Traceback" not in full.err
    assert run(tmp_path, *SHORT).code == 0
    assert same(tmp_path / "pipeline", short / "pipeline")


# ------------------------------------------------------------------------------------------------ NaN


def test_a_loss_that_is_not_a_number_names_step_sample_and_checkpoint(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, bad = BatchMaker.make, {}

    def spoilt(self: Any, number: int) -> Any:
        batch = make(self, number)
        if number == 5:
            batch.draws["noise"][2, 0, 0, 0] = float("nan")
            bad["image"] = Path(self.source.table["image"].iat[int(batch.rows[2])]).name
        return batch

    monkeypatch.setattr(BatchMaker, "make", spoilt)
    said = refused(*run.flags, "--out", tmp_path, "--checkpoint_every", 4 * BATCH, "--log_every", 4 * BATCH)
    assert f"not finite in step 6, samples {bad['image']};" in said  # this sample and no other of its batch
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / f'state-{4 * BATCH:010d}.pt'}" in said
    assert_finite(tmp_path)
    monkeypatch.undo()
    assert f"continuing at {4 * BATCH}" in good(*run.flags, "--out", tmp_path, "--until", 8 * BATCH).out


def test_weights_that_explode_are_not_saved(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of a finite loss can leave weights that are none."""
    monkeypatch.setitem(SCHEDULES, "cosine", lambda *_, **__: 1e30)
    said = refused(*run.flags, "--out", tmp_path)
    assert "not finite" in said and "step 1" in said and "there is no checkpoint yet" in said and "--rate" in said
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_a_gradient_that_is_not_a_number_reaches_no_checkpoint(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    clip, calls = Accelerator.clip_grad_norm_, []

    def spoilt(self: Any, parameters: Any, *rest: Any) -> Any:
        parameters = list(parameters)
        calls.append(1)
        if len(calls) == 6:
            parameters[3].grad.fill_(float("inf"))
        return clip(self, parameters, *rest)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", spoilt)
    said = refused(*run.flags, "--out", tmp_path)
    assert "step 6" in said and f"state-{5 * BATCH:010d}.pt" in said
    assert_finite(tmp_path)


def assert_finite(out: Path) -> None:
    """Every checkpoint holds numbers only."""
    files = list((out / "checkpoints").glob("*.pt"))
    assert files
    for file in files:
        state = torch.load(file, weights_only=True)
        assert all(torch.isfinite(x).all() for x in (*state["model"].values(), *state["ema"]["shadow"])), file


# ------------------------------------------------------------------------------------- other settings


@pytest.fixture(scope="module")
def begun(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped after two steps."""
    out = tmp_path_factory.mktemp("begun")
    good(*run.flags, "--out", out, "--until", 2 * BATCH)
    return out


@pytest.mark.parametrize(
    ("key", "value"),
    [("rate", 0.5), ("seed", 7), ("loss.noise_offset", 0.1), ("batch_size", 8), ("images", 400), ("precision", "bf16"),
     ("lora.rank", 2), ("train.unet", "false"), ("latents", "online"), ("text_window", 40), ("ema_halflife", 5.0)],
)  # fmt: skip
def test_a_setting_that_must_not_change_is_named(key: str, value: object, run: Run, begun: Path) -> None:
    said = refused(*run.flags, "--out", begun, f"--{key}", value)
    assert f" {key} (" in said and f"{value if value != 'false' else False} now" in said and "new --out" in said


def test_several_settings_are_all_named(run: Run, begun: Path) -> None:
    said = refused(*run.flags, "--out", begun, "--rate", 0.5, "--seed", 7)
    assert "rate (0.001 there, 0.5 now), seed (0 there, 7 now)" in said


def test_another_manifest_or_model_is_said_in_words(
    run: Run, begun: Path, tmp_path: Path, make_pipeline: Callable[..., Path]
) -> None:
    texts = few_rows(tmp_path / "texts", text="left pleural effusion")
    said = refused(*run.flags, "--out", begun, "--manifest", texts)
    assert "--manifest" in said and "texts" in said and not re.search(r"[0-9a-f]{16}", said)
    other = make_pipeline(tmp_path / "other", window=77)
    weights = next((other / "unet").glob("*.safetensors"))
    from safetensors.torch import load_file, save_file

    changed = {name: value + 0.01 for name, value in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    said = refused(*run.flags, "--out", begun, "--model", other)
    assert "--model" in said and "weights" in said and not re.search(r"[0-9a-f]{16}", said)
    moved = few_rows(tmp_path / "elsewhere")  # the same data in another place is the same
    assert "continuing at" in good(*run.flags, "--out", begun, "--manifest", moved, "--until", 2 * BATCH).out


def test_what_may_change_between_runs(run: Run, tmp_path: Path) -> None:
    flags = [*run.flags, "--images", 8 * BATCH]
    good(*flags, "--out", tmp_path / "whole")
    good(*flags, "--out", tmp_path / "parts", "--until", 4 * BATCH)
    other = ["--workers", 1, "--log_every", 8, "--checkpoint_every", 10**6, "--name", "x", "--sampler", "ddim"]
    assert "continuing at" in good(*flags, "--out", tmp_path / "parts", *other).out
    assert same(tmp_path / "whole" / "pipeline", tmp_path / "parts" / "pipeline")


def test_a_corrupt_checkpoint_is_named_and_the_one_before_goes_on(run: Run, tmp_path: Path) -> None:
    flags = [*run.flags, "--images", 4 * BATCH, "--out", tmp_path / "parts"]
    good(*run.flags, "--images", 4 * BATCH, "--out", tmp_path / "whole")
    good(*flags, "--until", 2 * BATCH)
    newest = Checkpoints(tmp_path / "parts" / "checkpoints").newest()
    assert newest is not None
    newest.write_bytes(newest.read_bytes()[:-5000])
    said = refused(*flags)
    assert newest.name in said and "delete it to use the one before" in said
    newest.unlink()
    assert f"continuing at {BATCH} images" in good(*flags).out
    assert same(tmp_path / "whole" / "pipeline", tmp_path / "parts" / "pipeline")


def test_a_finished_run_run_again_is_as_it_was(run: Run, begun: Path) -> None:
    flags = [*run.flags, "--out", begun, "--until", 2 * BATCH]
    before = torch.load(Checkpoints(begun / "checkpoints").newest(), weights_only=True)["model"]
    assert finetune(*flags).code == 0
    after = torch.load(Checkpoints(begun / "checkpoints").newest(), weights_only=True)["model"]
    assert all(torch.equal(before[name], after[name]) for name in before)
