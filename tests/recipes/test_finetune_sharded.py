"""Several processes train to the weights of one: DDP, and FSDP and DeepSpeed from the files in train/accelerate/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from forks import Done, Forks
from recipe import ROOT, few_rows, good, part

from roentgen.errors import UserError
from roentgen.training.checkpoints import restore_shards
from roentgen.training.schedule import EMA

FOLDER = ROOT / "train" / "accelerate"
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}


@dataclass(frozen=True)
class Alone:
    """A run in one process: its start, its flags, its folder."""

    model: Path
    flags: tuple[object, ...]
    out: Path


@pytest.fixture(scope="module")
def alone(make_pipeline: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("sharded")
    model = make_pipeline(folder / "tiny", window=77)
    # Decoder and accumulation too: several networks and several backward passes a step.
    flags = [
        *("--manifest", few_rows(folder / "few"), "--model", model, "--images", 32, "--batch_size", 8),
        *("--precision", "no", "--steps", 2, "--log_every", 8, "--checkpoint_every", 24, "--cache", folder / "cache"),
        *("--rate", 1e-3, "--text_rate", 1e-3, "--decoder_rate", 1e-3, "--warmup", 8, "--composed", 0.5),
        *("--validate_every", 16, "--train.vae_decoder", "true", "--accumulate", 2),
    ]
    good(*flags, "--out", folder / "alone", "--sample_every", 10**6)
    return Alone(model, tuple(flags), folder / "alone")


def launcher(config: str) -> list[str]:
    """Words of `accelerate launch` as the file's head says them, on CPU processes that pass for GPU processes."""
    words = ["--config_file", str(FOLDER / f"{config}.yaml"), "--num_processes", "2"]
    words += ["--mixed_precision", "no"]  # as the flags of the run say
    return [*words, "--main_process_port", "0", str(ROOT / "tests" / "cpu_ranks.py"), str(ROOT / "train/finetune.py")]


def launch(config: str, *flags: object) -> Done:
    """`accelerate launch`, which starts both processes anew."""
    words = [sys.executable, "-m", "accelerate.commands.launch", *launcher(config), *map(str, flags)]
    done = subprocess.run(words, env=ENV, cwd=ROOT, capture_output=True, text=True, timeout=600)
    return Done(done.returncode, done.stdout, done.stderr)


def fork(forks: Forks, config: str, *flags: object) -> Done:
    """Two processes with the environment that `accelerate launch` gives its own."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    args = _validate_launch_command(launch_command_parser().parse_args(launcher(config)))[0]
    assert args.multi_gpu or args.use_fsdp
    return forks(args.training_script, *args.training_script_args, *flags, ranks=2, environ=prepare_multi_gpu_env(args))


def close_to(alone: Alone, out: Path, *, share: float = 0.99) -> None:
    """Same weights, but for the few whose gradients are so small that rounding gives their first steps a sign."""
    near, all_, moved = 0, 0, 0.0
    for name in ("unet", "text_encoder", "vae"):
        start, one, other = (part(folder, name) for folder in (alone.model, alone.out / "pipeline", out / "pipeline"))
        assert set(one) == set(other)
        largest = max(float(np.abs(one[key] - start[key]).max()) for key in one)
        assert largest > 1e-4, name
        for key, value in one.items():
            near += int((np.abs(value - other[key]) <= largest / 100).sum())
            all_ += value.size
            moved += float(np.abs(value - start[key]).sum())
    assert near / all_ >= share, near / all_
    assert moved / all_ > 1e-5


@pytest.mark.slow
def test_two_processes_train_like_one(alone: Alone, forks: Forks, tmp_path: Path) -> None:
    done = forks(ROOT / "train" / "finetune.py", *alone.flags, "--out", tmp_path, ranks=2)
    assert done.code == 0, done.err[-3000:]
    assert "on 2 process(es)" in done.out
    close_to(alone, tmp_path, share=0.999)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["fsdp", "zero2", "zero3"])
def test_sharded_runs_stop_go_on_and_train_like_one(config: str, alone: Alone, forks: Forks, tmp_path: Path) -> None:
    if config != "fsdp":
        pytest.importorskip("deepspeed")
    flags = [*alone.flags, "--out", tmp_path]
    first = launch(config, *flags, "--until", 24)  # late, so that a lost average would show
    assert first.code == 0, first.err[-3000:]
    assert first.out.count("sample grids") == 1 and not (tmp_path / "samples").exists()
    shutil.rmtree(tmp_path / "pipeline")
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert folder.name == "state-0000000024.sharded"
    second = fork(forks, config, *flags) if config == "fsdp" else launch(config, *flags)
    assert second.code == 0, second.err[-3000:]
    assert "continuing at 24 images" in second.out
    close_to(alone, tmp_path)


def test_a_sharded_checkpoint_wants_as_many_processes(tmp_path: Path) -> None:
    """Told from the checkpoint's facts before anything is loaded."""
    saved = {"processes": 1, "folder": tmp_path / "state-0000000008.sharded"}
    two: Any = SimpleNamespace(num_processes=2)
    with pytest.raises(UserError, match=r"state-0000000008\.sharded: made by 1 processes, and these are 2"):
        restore_shards(two, saved, EMA([], halflife=1))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_file(path: Path) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    words = ["--config-file", str(path), "train/finetune.py"]
    args = _validate_launch_command(launch_command_parser().parse_args(words))[0]
    kind = {"ddp": args.multi_gpu, "fsdp": args.use_fsdp, "zero2": args.use_deepspeed, "zero3": args.use_deepspeed}
    assert kind[path.stem] and args.mixed_precision == "bf16" and args.num_processes == 8
    assert f"--config-file train/accelerate/{path.name}" in path.read_text()
    if args.use_deepspeed:
        assert args.zero_stage == int(path.stem[-1])


def test_the_slurm_script_is_a_script() -> None:
    script = FOLDER / "nodes.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr == ""
    from accelerate.commands.launch import launch_command_parser

    known = {flag for action in launch_command_parser()._actions for flag in action.option_strings}
    body = script.read_text().partition("accelerate launch")[2]
    used = {word.split("=")[0].strip("'\"") for word in body.split() if word.startswith("--")}
    assert used and used <= known
