"""benchmarks/train.py: its commands, arithmetic, table and mistakes; and that both sides get one model and data."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from recipe import ROOT, good

from roentgen.errors import UserError

SCRIPT = "train"

PAGE = "a\n<!-- results:train-speed -->\nstale\n<!-- /results:train-speed -->\nb\n"


@pytest.fixture(scope="module")
def arms(bench: ModuleType) -> ModuleType:
    return sys.modules[bench.run_arms.__module__]


@pytest.fixture(scope="module")
def tables(bench: ModuleType) -> ModuleType:
    return sys.modules[bench.summarise.__module__]


@pytest.fixture
def job(bench: ModuleType, make_pipeline: Any, tmp_path: Path) -> Any:
    model = make_pipeline(tmp_path / "model", channels=3)
    (tmp_path / "peer.py").write_text("")
    return bench.Comparison(tmp_path / "work", model, tmp_path / "peer.py", 32, 4, "bf16", 2, "cpu")


def made_up(arms: ModuleType, device: str = "NVIDIA H200") -> dict[str, list[list[Any]]]:
    """Runs of 2 and 12 steps of 4 images, twice: the peer at 4 images/s (5 with workers), ours at 8 and 16."""
    rates = {"peer": 4.0, "peer-workers": 5.0, "ours-online": 8.0, "ours-cached": 16.0}
    found = {}
    for arm, rate in rates.items():
        mine = arm.startswith("ours")
        speed = {"device": device, "data_wait_share": 0.01} if mine else None

        def one(steps: int, rate: float = rate, speed: Any = speed, extra: float = 0.0) -> Any:
            return arms.Run(10 + 4 * steps / rate + extra, 2.0 * steps, int(3e9), speed)

        found[arm] = [[one(2, extra=30.0 if mine else 0.0)], [one(2), one(12)], [one(2), one(12)]]
    return found


@pytest.fixture
def result(
    bench: ModuleType, arms: ModuleType, tables: ModuleType, job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    monkeypatch.setattr(tables, "flops_per_image", lambda job: 10**12)
    settings = bench.Settings(model="tiny", short=2, long=12)
    found: dict[str, Any] = tables.summarise(job, made_up(arms), settings, tmp_path / "train-made.json")
    return found


def test_arithmetic(result: dict[str, Any]) -> None:
    details = result["details"]
    rates = {arm: found["images_per_second"]["median"] for arm, found in details["arms"].items()}
    assert rates == pytest.approx({"peer": 4, "peer-workers": 5, "ours-online": 8, "ours-cached": 16})
    assert details["compared_with"] == "peer-workers"  # the faster one
    assert details["ratio"] == pytest.approx({"ours-online": 1.6, "ours-cached": 3.2})
    assert result["value"] == pytest.approx(3.2) and result["n"] == 2 and result["warnings"] == []
    cached = details["arms"]["ours-cached"]
    assert cached["seconds_to_make_caches"] == pytest.approx(30)
    assert cached["seconds_to_start_and_end"]["median"] == pytest.approx(10)
    assert cached["cpu_seconds_per_image"]["median"] == pytest.approx(0.5)
    assert cached["mfu"] == pytest.approx(16 * 1e12 / 989e12)


def test_goals_that_are_missed_are_said(
    bench: ModuleType, arms: ModuleType, tables: ModuleType, job: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tables, "flops_per_image", lambda job: 10**12)
    runs = made_up(arms, device="some CPU")
    runs["ours-online"] = [[dataclasses.replace(r, speed=runs["ours-online"][0][0].speed) for r in part]
                           for part in runs["peer"]]  # fmt: skip
    found = tables.summarise(job, runs, bench.Settings(model="tiny", short=2, long=12), tmp_path / "r.json")
    assert found["warnings"] == ["ours-online: 0.80 times, goal 1.5"]
    assert found["details"]["arms"]["ours-cached"]["mfu"] is None  # no peak is known for that device


def test_no_folder_of_this_machine_in_the_result(result: dict[str, Any], tmp_path: Path) -> None:
    assert str(tmp_path) not in json.dumps(result) and str(ROOT) not in json.dumps(result)


def test_table_and_document(bench: ModuleType, result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    made = tmp_path / "train-made.json"
    assert bench.main(["--result", str(made), "--update", str(tmp_path / "page.md")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert "stale" not in page and page.startswith("a\n") and page.endswith("b\n")
    assert "| roentgen, latents and text cached | 16.00 (16.00 to 16.00) | 3.20 | 3.00 | 1.0% | 1.6% |" in page
    assert "| diffusers, data loader workers | 5.00 (5.00 to 5.00) | 1.00 | 3.00 |  |" in page
    assert "48 images took 30 s" in page


def test_estimate_reads_it(result: dict[str, Any], tmp_path: Path) -> None:
    from roentgen.training.estimate import measured_rate

    rate = measured_rate(tmp_path, device="NVIDIA H200", flops=10**12)
    assert rate.images_per_second == pytest.approx(16) and "tiny at 32 px (train-made.json, ours-cached)" in rate.origin


def pairs(words: list[str]) -> dict[str, str]:
    """Flags with their values."""
    return {a: b for a, b in zip(words, [*words[1:], ""], strict=True) if a.startswith("--")}


def test_both_sides_do_the_same(arms: ModuleType, job: Any, tmp_path: Path) -> None:
    commands = {arm: arms.command(job, arm, 10, tmp_path / "out") for arm in arms.ARMS}
    theirs, ours = pairs(commands["peer-workers"]), pairs(commands["ours-online"])
    assert commands["peer"][1] == str(job.peer) and commands["ours-online"][1].endswith("train/finetune.py")
    assert theirs["--pretrained_model_name_or_path"] == ours["--model"] == str(job.model)
    assert theirs["--train_batch_size"] == ours["--batch_size"] == "4"
    assert int(theirs["--max_train_steps"]) * 4 == int(ours["--images"]) == 40
    assert theirs["--mixed_precision"] == ours["--precision"] == "bf16"
    assert theirs["--learning_rate"] == ours["--rate"] and theirs["--lr_scheduler"] == ours["--schedule"]
    assert theirs["--dataloader_num_workers"] == ours["--workers"] == "2"
    assert pairs(commands["peer"])["--dataloader_num_workers"] == "0"
    assert "--use_ema" in theirs and ours["--train.text_encoder"] == "false"
    assert "--random_flip" not in theirs and "--gradient_checkpointing" not in theirs
    for arm, where in {"ours-online": "online", "ours-cached-compiled": "cache"}.items():
        flags = pairs(commands[arm])
        assert flags["--latents"] == flags["--text_states"] == where
        assert flags["--compile"] == ("true" if "compiled" in arm else "false")


def test_same_images_for_both(bench: ModuleType, job: Any) -> None:
    job.folder.mkdir()
    bench.write_images(job, 6, 32)
    lines = [json.loads(line) for line in (job.images / "metadata.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader(job.manifest.open()))
    train = [(Path(row["image"]).name, row["text"]) for row in rows if row["split"] == "train"]
    assert train == [(line["file_name"], line["text"]) for line in lines] and len(train) == 6
    assert sum(row["split"] == "val" for row in rows) == bench.HELD_OUT
    assert {path.name for path in job.images.glob("*.jpg")} == {name for name, _ in train}
    from PIL import Image

    with Image.open(job.images / train[0][0]) as image:
        assert min(image.size) == 32


@pytest.mark.slow
def test_mini_is_what_both_sides_train(bench: ModuleType, tmp_path: Path) -> None:
    import torch
    from diffusers import AutoencoderKL

    from roentgen.models import hub

    sys.modules[bench.make_model.__module__].write_model("mini", str(tmp_path / "model"))
    assert bench.pipeline_resolution(tmp_path / "model") == 256
    theirs, ours = (
        AutoencoderKL.from_pretrained(folder, subfolder="vae", dtype=torch.float32)
        for folder in (tmp_path / "model", hub.MINI)
    )
    assert theirs.config.in_channels == theirs.config.out_channels == 3  # what the peer trains
    x = (torch.rand(1, 1, 64, 64) * 2 - 1).expand(-1, 3, -1, -1)
    with torch.no_grad():
        means = theirs.encode(x).latent_dist.mean, ours.encode(x).latent_dist.mean
        torch.testing.assert_close(means[0], means[1])
        torch.testing.assert_close(theirs.decode(means[1]).sample, ours.decode(means[1]).sample)


def test_flops_of_a_folder(tables: ModuleType, job: Any) -> None:
    one = tables.flops_per_image(job)
    assert one > 10**6 and isinstance(one, int)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--peer is missing"),
        (["--peer", "nowhere.py"], "nowhere.py: no such file"),
        (["--peer", str(ROOT / "pyproject.toml"), "--short", "9", "--long", "9"], "--short must be below --long"),
        (["--peer", str(ROOT / "pyproject.toml"), "--model", "nowhere", "--device", "cpu"], "--model nowhere"),
        (["--peer", str(ROOT / "pyproject.toml"), "--device", "tpu"], "--device tpu"),
        pytest.param(
            ["--peer", str(ROOT / "pyproject.toml"), "--device", "cuda"],
            "no CUDA GPU is available here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_mistakes(bench: ModuleType, flags: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        bench.main(flags)


def test_one_channel_is_refused(bench: ModuleType, tiny_pipeline: Path) -> None:
    with pytest.raises(UserError, match=r"1 channel\(s\), and the peer trains three"):
        bench.pipeline_resolution(tiny_pipeline)


def test_a_failing_side_is_named(arms: ModuleType, job: Any) -> None:
    job.folder.mkdir()
    job.peer.write_text("import sys; sys.exit('no such flag')")
    with pytest.raises(UserError, match="peer failed with code 1: no such flag"):
        arms.run(job, "peer", 2)


def test_watch_sees_children(arms: ModuleType) -> None:
    """100 MB in a grandchild counts."""
    inner = "import time; x = bytearray(100_000_000); time.sleep(1.2)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    process = subprocess.Popen([sys.executable, "-c", outer])
    with arms.Watch(process.pid, "cpu") as watch:
        process.wait()
    assert 100_000_000 < watch.peak < 400_000_000


@pytest.mark.slow
def test_ours_runs_for_real(bench: ModuleType, arms: ModuleType, job: Any) -> None:
    """Both of our arms with tiny weights: training.json says the speed, and the second cached run makes no cache."""
    job.folder.mkdir()
    bench.write_images(job, 24, 32)
    for arm in ("ours-online", "ours-cached"):
        found = arms.run(job, arm, 6)
        assert found.seconds > 0 and found.cpu > 0 and found.memory > 10**8
        assert found.speed is not None and found.speed["device"]


@pytest.mark.slow
def test_the_command_for_a_gpu_at_tiny_size(
    bench: ModuleType, arms: ModuleType, make_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command with --device cuda, every run for real but on this processor, ours without a process of its
    own; memory is what nvidia-smi says. Seconds are made up, so that a busy machine changes nothing."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 2000\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "peer.py").write_text("import sys\nassert '--train_data_dir' in sys.argv\n")
    real = arms.run

    def here(job: Any, arm: str, steps: int) -> Any:
        if arm.startswith(arms.PEER):
            return dataclasses.replace(real(job, arm, steps), seconds=1.0 + steps)
        shutil.rmtree(job.folder / "run", ignore_errors=True)
        _, recipe, *flags = arms.command(job, arm, steps, job.folder / "run")
        assert recipe == str(ROOT / "train" / "finetune.py")
        good(*flags)
        speed = json.loads((job.folder / "run" / "training.json").read_text())["speed"]
        return arms.Run(1.0 + steps, 1.0 + steps, 10**9, speed)

    monkeypatch.setattr(bench, "cuda_or_cpu", lambda device: device)
    monkeypatch.setattr(arms, "run", here)
    model, out = make_pipeline(tmp_path / "model", channels=3), tmp_path / "train-gpu.json"
    words = ["--peer", str(tmp_path / "peer.py"), "--model", str(model), "--device", "cuda", "--batch", "2"]
    words += ["--short", "1", "--long", "3", "--repeats", "1", "--workers", "1", "--scratch", str(tmp_path / "work")]
    assert bench.main([*words, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["details"]["arms"]) == {"peer", "peer-workers", "ours-online", "ours-cached"}
    assert found["details"]["arms"]["ours-online"]["images_per_second"]["median"] == 2
    assert found["details"]["arms"]["peer"]["peak_memory_bytes"]["median"] == 0  # nothing more than before
    assert "| roentgen, latents and text cached |" in bench.table(found)
