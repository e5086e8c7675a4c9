"""benchmarks/generate.py: its arithmetic, its table, its mistakes, and one run for real."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from recipe import ROOT, load_script

from roentgen import cli
from roentgen.errors import UserError

SCRIPT = "generate"
SHORT = "--repeats 1 --helps 1 --short 1 --long 2"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
PAGE = "before\n<!-- results:speed -->\nstale\n<!-- /results:speed -->\nafter\n"


@pytest.fixture
def result(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Path) -> dict[str, Any]:
    """A result from made-up times: ours 2 s and 1 s an image, theirs 8 s and 3 s an image."""
    commands = []

    def made_up(command: Any, images: int, device: str) -> tuple[float, float]:
        line = command(images, Path("folder"))
        commands.append(line)
        ours = "roentgen" in line
        return (1.0 + images, 0.5 * images) if ours else (5.0 + 3 * images, 2.0)

    def no_sets(*_: object) -> dict[str, Any]:
        arm = {"dtype": "float32", "seconds_per_image": {"median": 0.5}, "memory": {"median": 1.5}, "ratio": 2.0}
        arms = {name: {**arm, "difference": 0.25} for name in bench.ARMS}
        del arms[bench.ROENTGEN]["difference"]
        return {"short": 2, "long": 4, "batch": 16, "published": bench.PUBLISHED, "arms": arms}

    monkeypatch.setattr(bench, "data_sets", no_sets)
    monkeypatch.setattr(bench, "timed_images", made_up)
    monkeypatch.setattr(bench, "timed", lambda command: (0.25, 0.1))
    settings = bench.Settings(model="tiny", guidance=2.5, repeats=2, helps=3, short=2, long=4)
    found = bench.measured(settings, tiny_pipeline)
    assert len(commands) == 2 * 1 + 2 * 2 * 2  # a warm-up each, then short and long for both, twice
    return found


def test_arithmetic(result: dict[str, Any]) -> None:
    assert result["roentgen"]["cold"]["median"] == 2.0
    assert result["roentgen"]["further"]["median"] == 1.0
    assert result["roentgen"]["memory"]["median"] == 2.5  # of the longer run
    assert result["diffusers"]["further"] == {"median": 3, "min": 3, "max": 3, "n": 2, "values": [3, 3]}
    assert result["ratio"] == {"cold": 4.0, "further": 3.0, "memory": 0.8}


def test_both_sides_get_the_same_settings(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Path
) -> None:
    lines: dict[str, list[str]] = {}

    def keep(command: Any, images: int, device: str) -> tuple[float, float]:
        line = command(images, Path("folder"))
        lines["ours" if "roentgen" in line else "theirs"] = line
        return float(images), 1.0

    monkeypatch.setattr(bench, "timed_images", keep)
    monkeypatch.setattr(bench, "timed", lambda command: (0.25, 0.1))
    monkeypatch.setattr(bench, "data_sets", lambda *_: {"arms": {}})
    asked = bench.Settings(model="tiny", steps=7, sampler="ddim", repeats=1, helps=1, short=2, long=4)
    bench.measured(asked, tiny_pipeline)
    ours = dict(zip(lines["ours"][5::2], lines["ours"][6::2], strict=True))
    theirs = json.loads(lines["theirs"][-1])
    assert (ours["--steps"], ours["--guidance"], ours["--sampler"]) == (
        "7",
        "3.0",
        "ddim",
    )  # 3.0: the model's
    assert (theirs["steps"], theirs["guidance"], theirs["scheduler"][0]) == (7, 3.0, "DDIMScheduler")
    assert ours["--model"] == theirs["model"] == str(tiny_pipeline)


def test_data_sets(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Made-up times: 10 s and 1 s an image for ours, 2 s an image for batches, 9 s for the published sampling."""
    from PIL import Image

    jobs: dict[str, list[Any]] = {}

    def made_up(command: list[str], device: str) -> tuple[float, float]:
        ours = "export" in command
        if ours:
            flags = dict(zip(command[4::2], command[5::2], strict=True))
            texts = Path(flags["--prompts"]).read_text().splitlines()
            out, name = Path(flags["--out"]), flags["--dtype"]
            (out / "images").mkdir(parents=True)
            lines = [f'images/{n}.png,"{text}",{n + 40}' for n, text in enumerate(texts)]
            (out / "manifest.csv").write_text("\n".join(["image,text,seed", *lines]) + "\n")
            cost = 1
        else:
            job = json.loads(command[-1])
            texts, out, name = job["prompts"], Path(job["out"]), f"{job['dtype']} {job['batch']} {job['steps']}"
            assert job["seeds"] == [n + 40 for n in range(len(texts))]
            cost = 9 if job["steps"] == 75 else 2
        jobs.setdefault(name, []).append(texts)
        for number in range(len(texts)):
            where = out / "images" if ours else out
            Image.new("L", (4, 4), number + (3 if ours else 0)).save(where / f"{number}.png")
        return 10.0 + cost * len(texts), 1.0

    monkeypatch.setattr(bench, "timed", made_up)
    settings: dict[str, Any] = {"steps": 10, "guidance": 4.0, "sampler": "unipc"}
    asked = bench.Settings(repeats=2, short=2, long=6)
    found = bench.data_sets(asked, tmp_path / "model", settings)["arms"]
    assert {name: arm["ratio"] for name, arm in found.items()} == {
        "roentgen export": 1.0,
        "roentgen export, float32": 1.0,
        "diffusers, a call a prompt": 2.0,
        "diffusers, batches": 2.0,
        "diffusers, batches, bfloat16": 2.0,
        "diffusers, RoentGen's sampling": 9.0,
    }
    assert found["roentgen export"]["difference"] == 3.0 and found["diffusers, batches, bfloat16"]["difference"] == 0.0
    assert "difference" not in found["diffusers, RoentGen's sampling"]
    texts = bench.prompts(6)
    assert jobs["auto"] == jobs["float32 16 10"] == [texts[:2], texts, texts[:2], texts]
    assert jobs["float32 16 75"] == [texts[:2], texts[:4]] * 2


def test_result_names_conditions_and_no_host(result: dict[str, Any]) -> None:
    assert set(result["machine"]) == {"cpu", "cores"}
    assert {"torch", "diffusers", "python"} <= set(result["versions"])
    assert result["settings"]["steps"] == 3 and result["settings"]["guidance"] == 2.5
    assert result["model"] == "tiny" and len(result["model_hash"]) == 16


def test_table_and_region(bench: ModuleType, result: dict[str, Any], tmp_path: Path) -> None:
    page, stored = tmp_path / "page.md", tmp_path / "result.json"
    page.write_text(PAGE)
    stored.write_text(json.dumps(result))
    assert bench.main(["--result", str(stored), "--update", str(page)]) == 0
    text = page.read_text()
    assert "| one image, cold start (s) | 2.0 | 8.0 | 4.00 |" in text and "stale" not in text
    assert text.startswith("before\n<!-- results:speed -->\n\n|  |")
    assert text.endswith("\n<!-- /results:speed -->\nafter\n")
    assert bench.main(["--result", str(stored), "--update", str(page)]) == 0
    assert page.read_text() == text  # a second time changes nothing


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--repeats", "0"], "--repeats"),
        (["--short", "8", "--long", "8"], "--short 8 --long 8"),
        (["--long", "100000"], "--long 100000"),
        (["--device", "tpu"], "--device tpu"),
        pytest.param(["--device", "cuda"], "no CUDA GPU is available here", marks=without_gpu),
        (["--model", "minni"], "did you mean mini"),
        (["--model", "sd-1.5"], "on this disk"),
        (["--result", "nowhere.json"], "nowhere.json"),
        (["--update", "nowhere.md"], "nowhere.md"),
        (["--model", "TINY", "--sampler", "euler"], "--sampler euler"),
    ],
)
def test_mistakes(bench: ModuleType, flags: list[str], words: str, tiny_pipeline: Path) -> None:
    with pytest.raises(UserError, match=words):
        bench.main([str(tiny_pipeline) if flag == "TINY" else flag for flag in flags])


def test_memory_is_that_of_the_child() -> None:
    path = ROOT / "benchmarks" / "generate.py"
    code = f"""
import runpy, sys
sys.path.insert(0, {str(path.parent)!r})
timed = runpy.run_path({str(path)!r})["timed"]
large = timed([sys.executable, "-c", "b = bytearray(300_000_000); b[::4096] = b[::4096]"])[1]
small = timed([sys.executable, "-c", "pass"])[1]
print(large, small, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    large, small, heavy = done.stdout.split()
    assert 0.3 < float(large) < 0.4
    assert float(small) < 0.1  # neither the largest child so far nor this process
    assert heavy == "False"


def test_a_failed_command_is_no_measurement(bench: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="the reason"):
        bench.timed([sys.executable, "-c", "raise SystemExit('the reason')"])
    with pytest.raises(RuntimeError, match="0 written"):
        bench.timed_images(lambda images, folder: [sys.executable, "-c", "pass"], 1)


def in_this_process(command: list[str], device: str = "cpu") -> tuple[float, float]:
    """A command of a benchmark for real, but without the seconds of a new process: they are one, and one an image."""
    words = [word.replace('"device": "cuda"', '"device": "cpu"') if word != "cuda" else "cpu" for word in command[1:]]
    if words[:2] == ["-m", "roentgen"]:
        assert cli.main(words[2:]) == 0
        flags = dict(pairwise(words))
        count = len(Path(flags["--prompts"]).read_text().splitlines()) if "--prompts" in flags else 1
        return 1.0 + int(flags.get("--num-images", count)), 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        runpy.run_path(words[0], run_name="__main__")
    return 1.0 + len(json.loads(words[1])["prompts"]), 0.5


@pytest.mark.slow
def test_for_real(
    bench: ModuleType, tmp_path: Path, make_pipeline: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command: single images in processes of their own, data sets of every arm in this one."""
    real = bench.timed
    monkeypatch.setattr(
        bench, "timed", lambda command, *device: (real if "--help" in command else in_this_process)(command, *device)
    )
    model = make_pipeline(tmp_path / "tiny", window=77)  # as the prompts of data sets are long
    page, out = tmp_path / "page.md", tmp_path / "results" / "speed.json"
    page.write_text(PAGE)
    assert bench.main(f"--model {model} {SHORT} --out {out} --update {page}".split()) == 0
    found = json.loads(out.read_text())
    for side in ("roentgen", "diffusers"):
        assert found[side]["cold"]["median"] > 0.5 and 0.1 < found[side]["memory"]["median"] < 8
    assert page.read_text().count("| each further image (s) |") == 1
    arms = found["sets"]["arms"]
    assert arms["roentgen export, float32"]["difference"] < 0.05 and len(arms) == 6


@pytest.mark.slow
def test_the_command_for_a_gpu_at_tiny_size(
    bench: ModuleType, make_pipeline: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--device cuda: every command for real and in float16, but on this processor, where each would name the GPU."""
    timing, commands = sys.modules[bench.timed.__module__], []

    def here(command: list[str], device: str = "cpu") -> tuple[float, float]:
        commands.append((" ".join(command), device))
        return (0.1, 0.1) if "--help" in command else in_this_process(command)

    monkeypatch.setattr(timing, "timed", here)
    monkeypatch.setattr(bench, "timed", here)
    monkeypatch.setattr(bench, "cuda_or_cpu", lambda device: device)
    monkeypatch.setattr(bench, "ask_torch", lambda expression: "NVIDIA H200")
    model, out = make_pipeline(tmp_path / "tiny", window=77), tmp_path / "generate-gpu.json"
    assert bench.main(f"--device cuda --model {model} {SHORT} --out {out}".split()) == 0
    asked = [(command, device) for command, device in commands if "--help" not in command]
    assert len(asked) == 18 and all(device == "cuda" and "cuda" in command for command, device in asked)
    found = json.loads(out.read_text())
    assert found["settings"]["dtype"] == "float16" and found["machine"]["device"] == "NVIDIA H200"
    assert "diffusers, batches, float16" in found["sets"]["arms"] and 0 < found["mfu"] < 1
    assert "on NVIDIA H200;" in bench.table(found) and "float32 or float16" in bench.summary_table(found)


def test_memory_of_a_gpu_is_what_it_has_more_in_use(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An nvidia-smi that says 1,000 MiB more each time it is asked: before, at the start, and a second later."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho >> {tmp_path}/asked\necho $(($(wc -l < {tmp_path}/asked) * 1000))\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    _, memory = bench.timed([sys.executable, "-c", "import time; time.sleep(1.5)"], "cuda")
    assert memory * 1e9 >= 1000 * 2**20
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="nvidia-smi"):
        bench.timed([sys.executable, "-c", "pass"], "cuda")


def test_operations_count_guidance_and_steps(bench: ModuleType, tiny_pipeline: Path) -> None:
    operations = sys.modules[bench.share_of_peak.__module__].operations
    once, guided, twice = (
        operations(tiny_pipeline, {"steps": steps, "guidance": guidance})
        for steps, guidance in ((1, 1.0), (1, 2.0), (2, 2.0))
    )
    assert 0 < once < guided and twice - guided == 2 * (guided - once)


def test_the_profile_of_evaluation_counts_the_operations_of_inception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # its neighbours are imported when they are needed
    out = tmp_path / "profile.json"
    flags = ["--part", "evaluation", "--batch", "1", "--repeats", "1", "--out", str(out)]
    assert load_script("benchmarks/profile_networks.py").main(flags) == 0
    part = json.loads(out.read_text())["details"]["parts"]["Inception-v3"]
    assert part["flops_per_image"] == pytest.approx(11.4e9, rel=0.02)  # 5.7 billion multiplications and additions
    assert sum(part["shares"].values()) == pytest.approx(1)
