"""The arms of benchmarks/train.py: the command line of each, its process, and the memory that it takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timing import Watch, device_memory, last_line, python_path
from tqdm import tqdm

from roentgen.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "train" / "finetune.py"
PEER = "peer"
ARMS = {
    PEER: "diffusers, data in the loop's process (its default)",
    "peer-workers": "diffusers, data loader workers",
    "ours-online": "roentgen, latents and text online",
    "ours-cached": "roentgen, latents and text cached",
    "ours-online-compiled": "roentgen, online, compiled",
    "ours-cached-compiled": "roentgen, cached, compiled",
}


@dataclass(frozen=True)
class Comparison:
    """What all arms share. ``folder`` is the benchmark's own; ``model`` a pipeline folder in it."""

    folder: Path
    model: Path
    peer: Path
    resolution: int
    batch: int
    precision: str
    workers: int
    device: str

    @property
    def images(self) -> Path:
        """The training images, with diffusers' metadata.jsonl."""
        return self.folder / "images"

    @property
    def manifest(self) -> Path:
        """The same images for roentgen, and a few more to validate on."""
        return self.folder / "manifest.csv"


# ---------------------------------------------------------------------------------------------- commands


def command(job: Comparison, arm: str, steps: int, out: Path) -> list[str]:
    """The command line of ``arm`` for ``steps`` steps."""
    flags = peer_flags(job, arm, steps, out) if arm.startswith(PEER) else our_flags(job, arm, steps, out)
    words = [str(word) for pair in flags.items() for word in pair if word is not None]
    return [sys.executable, str(job.peer if arm.startswith(PEER) else RECIPE), *words]


def peer_flags(job: Comparison, arm: str, steps: int, out: Path) -> dict[str, object]:
    """diffusers' flags for the same training; a flag without a value has None."""
    return {
        "--pretrained_model_name_or_path": job.model,
        "--train_data_dir": job.images,
        "--output_dir": out,
        "--cache_dir": job.folder / "datasets",
        "--resolution": job.resolution,
        "--center_crop": None,
        "--train_batch_size": job.batch,
        "--max_train_steps": steps,
        "--mixed_precision": job.precision,
        "--learning_rate": "5e-5",
        "--lr_scheduler": "constant",
        "--lr_warmup_steps": 0,
        "--use_ema": None,
        "--foreach_ema": None,
        "--allow_tf32": None,
        "--dataloader_num_workers": 0 if arm == PEER else job.workers,
        "--checkpointing_steps": 10**9,
        "--seed": 0,
    }


def our_flags(job: Comparison, arm: str, steps: int, out: Path) -> dict[str, object]:
    """The recipe's flags: the U-Net alone, as the peer trains; one log line each ten steps, nothing else in between."""
    where = "cache" if "cached" in arm else "online"
    return {
        "--model": job.model,
        "--manifest": job.manifest,
        "--out": out,
        "--cache": job.folder / "cache",
        "--train.text_encoder": "false",
        "--images": steps * job.batch,
        "--batch_size": job.batch,
        "--precision": job.precision,
        "--rate": "5e-5",
        "--schedule": "constant",
        "--warmup": 0,
        "--loss.min_snr_gamma": "null",
        "--latents": where,
        "--text_states": where,
        "--compile": "true" if arm.endswith("-compiled") else "false",
        "--workers": job.workers,
        "--log_every": 10 * job.batch,
        "--validate_every": 10**9,
        "--sample_every": 10**9,
        "--checkpoint_every": 10**9,
        "--prompts": '["effusion"]',
        "--steps": 1,
        "--seed": 0,
    }


# ------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Run:
    """One process: seconds by the clock and of the CPU, largest memory in bytes, what training.json says of speed."""

    seconds: float
    cpu: float
    memory: int
    speed: Mapping[str, Any] | None


def run_arms(
    job: Comparison, arms: Sequence[str], *, short: int, long: int, repeats: int
) -> dict[str, list[list[Run]]]:
    """For each arm the warm-up ``[[run]]``, then ``[short, long]`` for each repeat; arms take turns."""
    runs: dict[str, list[list[Run]]] = {arm: [] for arm in arms}
    bar = tqdm(total=len(arms) * (2 * repeats + 1), desc="runs", file=sys.stderr)
    for repeat in range(-1, repeats):
        for arm in arms:
            lengths = (short,) if repeat < 0 else (short, long)
            runs[arm].append([run(job, arm, steps) for steps in lengths])
            words = " and ".join(f"{each.seconds:.1f} s" for each in runs[arm][-1])
            bar.update(len(lengths))
            bar.set_postfix_str(f"{arm}: {words}")
    bar.close()
    return runs


def run(job: Comparison, arm: str, steps: int) -> Run:
    """One process of ``arm``; UserError with its last words if it fails."""
    out = job.folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1", "HF_HOME": str(job.folder / "hf")}
    if job.device == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    log = job.folder / f"{arm}.log"
    with log.open("w") as words:
        before = device_memory() if job.device == "cuda" else 0
        start = time.perf_counter()
        process = subprocess.Popen(command(job, arm, steps, out), stdout=words, stderr=words, env=environment)
        with Watch(process.pid, job.device) as watch:
            _, status, usage = os.wait4(process.pid, 0)  # its times are those of its own children too
        seconds = time.perf_counter() - start
        code = process.returncode = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise UserError(f"{arm} failed with code {code}: {last_line(log.read_text(errors='replace'))}")
    training = out / "training.json"
    speed = json.loads(training.read_text())["speed"] if training.is_file() else None
    return Run(seconds, usage.ru_utime + usage.ru_stime, watch.peak - before, speed)
