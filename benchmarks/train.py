"""Training speed and memory of train/finetune.py, beside diffusers' train_text_to_image.py in the same run.

    git clone --depth 1 https://github.com/huggingface/diffusers PEER
    python benchmarks/train.py --peer PEER/examples/text_to_image/train_text_to_image.py \\
        --out benchmarks/results/train-cpu.json --update docs/benchmarks.md
    python benchmarks/train.py --peer ... --model sd15-random --batch 16 --compiled true --out train-gpu.json
    python benchmarks/train.py --result benchmarks/results/train-cpu.json --update docs/benchmarks.md

Every measurement is the real script as a process of its own, at two lengths: what the longer takes more, over the
images it sees more, is the cost of an image in the loop, and imports, loading and saving cancel. Arms take turns,
after one short run each that fills file caches (and, for ours with caches, makes the caches: timed apart). Both sides
load the same pipeline folder and read the same JPEG files, train the U-Net alone with an EMA, and hold every image
once. Memory is the largest resident set of all processes of a run on a CPU, and what the device has more in use than
before on a GPU.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from roentgen import errors
from roentgen.config import parse_call
from roentgen.errors import UserError
from roentgen.files import file_hash
from roentgen.metrics.report.tables import replace_between_markers
from roentgen.metrics.result import Context, read_result, write_result
from roentgen.provenance import Surroundings, git_state, in_words

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "train" / "finetune.py"
SAMPLE = ROOT / "data" / "sample" / "manifest.csv"
HELD_OUT = 8  # images that ours wants for validation
GOALS = {"ours-online": 1.5, "ours-cached": 2.0}
PEER = "peer"
# Dense bfloat16 operations a second, from NVIDIA's data sheets; the first name found in the device's counts.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "A10": 125e12,
    "L4": 121e12,
}
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


def measure(
    *,
    peer: str | None = None,
    model: str = "mini",
    out: str | None = None,
    result: str | None = None,
    update: str | None = None,
    batch: int = 8,
    precision: str = "bf16",
    short: int = 8,
    long: int = 80,
    repeats: int = 2,
    workers: int = 2,
    pixels: int | None = None,
    compiled: bool = False,
    device: str = "auto",
    scratch: str | None = None,
) -> int:
    """Measure train/finetune.py and diffusers' text-to-image script on this machine, and print a table.

    Args:
        peer: train_text_to_image.py of a diffusers checkout that fits the installed diffusers.
        model: mini (its U-Net and text encoder; the autoencoder widened to the three channels that the peer wants),
            sd15-random (Stable Diffusion 1.x with random weights, for a GPU), or a three-channel pipeline folder.
        out: JSON file for the result.
        result: Measure nothing, take this JSON file of an earlier run.
        update: Document in which the region results:train-speed is replaced by the table.
        batch: Images a step.
        precision: bf16, fp16 or no.
        short: Steps of the short run.
        long: Steps of the long run.
        repeats: Runs of each length and arm; the table shows medians.
        workers: Threads that make batches for ours, processes that do for the peer.
        pixels: Short side of the stored images (default: the training resolution, so that nobody decodes more
            than needed; hospitals' files are larger).
        compiled: Measure ours with --compile too.
        device: cpu, cuda, or auto.
        scratch: Folder for model, data and runs (default: a temporary one, removed at the end).
    """
    if update is not None:  # before minutes of measuring
        replace_between_markers(Path(update), "train-speed", "", write=False)
    if result is not None:
        found = read_result(Path(result))
    else:
        if not 0 < short < long or min(batch, repeats, workers) < 1:
            raise UserError("--short must be below --long, and --batch, --repeats and --workers at least 1")
        script = checked_peer(peer)
        arms = [name for name in ARMS if compiled or not name.endswith("-compiled")]
        with tempfile.TemporaryDirectory() as temporary:
            job = prepare(
                Path(scratch or temporary),
                model,
                peer=script,
                batch=batch,
                count=batch * long,
                pixels=pixels,
                precision=precision,
                workers=workers,
                device=cuda_or_cpu(device),
            )
            around = Surroundings()
            runs = run_arms(job, arms, short=short, long=long, repeats=repeats)
            stored = Path(out) if out else job.folder / "r"
            found = summarise(job, runs, name=model, short=short, long=long, out=stored, conditions=around.facts())
    lines = table(found)
    print(lines)
    if update is not None:
        replace_between_markers(Path(update), "train-speed", lines)
    return 0


def checked_peer(peer: str | None) -> Path:
    """The peer's script; UserError that says where to get it."""
    where = (
        "a checkout of https://github.com/huggingface/diffusers has it as "
        "examples/text_to_image/train_text_to_image.py; take the version that fits the installed diffusers"
    )
    if peer is None:
        raise UserError(f"--peer is missing: {where}")
    if not Path(peer).is_file():
        raise UserError(f"--peer {peer}: no such file; {where}")
    return Path(peer).resolve()


def cuda_or_cpu(device: str) -> str:
    """``cpu`` or ``cuda``; asked of a process of its own, so that this one stays small and off the device."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: use cpu, cuda or auto")
    if device != "auto":
        return device
    asked = [sys.executable, "-c", "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


# ---------------------------------------------------------------------------------------- model and data


def prepare(
    folder: Path,
    model: str,
    *,
    peer: Path,
    batch: int,
    count: int,
    pixels: int | None,
    precision: str,
    workers: int,
    device: str,
) -> Comparison:
    """Model folder and ``count`` training images, for both sides."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "model" if model in ("mini", "sd15-random") else Path(model).resolve()
    if not place.is_dir():
        if place.parent != folder:
            raise UserError(f"--model {model}: no such folder; use mini, sd15-random or a diffusers folder")
        # In a process of its own: this one stays without torch, out of the way of what it measures.
        code = f"import runpy; runpy.run_path({str(Path(__file__))!r})['write_model']({model!r}, {str(place)!r})"
        environment = os.environ | {"PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1"}
        made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        if made.returncode != 0:
            raise UserError(f"--model {model}: cannot be made ({last_line(made.stderr)})")
    resolution = pipeline_resolution(place)
    job = Comparison(folder, place, peer, resolution, batch, precision, workers, device)
    write_images(job, count, pixels or resolution)
    return job


def pipeline_resolution(folder: Path) -> int:
    """Side of the images of a pipeline folder; UserError if the peer cannot train it."""
    try:
        unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae"))
    except OSError as error:
        raise UserError(f"--model {folder}: not a diffusers folder ({error.strerror}: {error.filename})") from None
    if vae["in_channels"] != 3:
        raise UserError(f"--model {folder}: its images have {vae['in_channels']} channel(s), and the peer trains three")
    side = int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
    return side


def write_model(name: str, folder: str) -> None:
    """Save the benchmark's model ``name`` as a pipeline folder that both sides load."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from roentgen.models import hub

    torch.manual_seed(0)
    if name == "mini":
        pipe: Any = StableDiffusionPipeline.from_pretrained(hub.MINI, dtype=torch.float32)
    else:
        tokenizer = CLIPTokenizer.from_pretrained(hub.MINI / "tokenizer", model_max_length=77)
        pipe = StableDiffusionPipeline(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                sample_size=512,
            ),
            unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=49408,
                    hidden_size=768,
                    intermediate_size=3072,
                    num_hidden_layers=12,
                    num_attention_heads=12,
                    max_position_embeddings=77,
                    hidden_act="quick_gelu",
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            ),
            tokenizer=tokenizer,
            scheduler=PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(folder)


def write_images(job: Comparison, count: int, pixels: int) -> None:
    """``count`` training images of short side ``pixels`` with their texts, as diffusers and as roentgen read them.

    The sample's images, again and again, in files of their own: both sides read as many files as in a large archive.
    """
    from PIL import Image

    from roentgen.data.manifest import read_manifest

    table = read_manifest(SAMPLE, splits=["train"])
    shutil.rmtree(job.images, ignore_errors=True)
    job.images.mkdir(parents=True)
    others = job.folder / "validation"
    others.mkdir(exist_ok=True)
    rows, lines = [], []
    for number in range(count + HELD_OUT):
        row = table.iloc[number % len(table)]
        held_out = number >= count
        path = (others if held_out else job.images) / f"{number:06d}.jpg"
        with Image.open(row["image"]) as image:
            scale = pixels / min(image.size)
            image.resize((round(image.width * scale), round(image.height * scale))).save(path, quality=90)
        rows.append((str(path), row["text"], str(number), "val" if held_out else "train"))
        if not held_out:
            lines.append(json.dumps({"file_name": path.name, "text": row["text"]}) + "\n")
    (job.images / "metadata.jsonl").write_text("".join(lines))
    with job.manifest.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image", "text", "patient_id", "split"))
        writer.writerows(rows)


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


class Watch:
    """Largest memory (bytes) of a process and its children, looked at ten times a second (a GPU once)."""

    def __init__(self, pid: int, device: str) -> None:
        self.peak = 0
        self._process = psutil.Process(pid)
        self._cuda = device == "cuda"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(1.0 if self._cuda else 0.1):
            self.peak = max(self.peak, device_memory() if self._cuda else resident(self._process))


def resident(process: psutil.Process) -> int:
    """Bytes in memory of a process and its children; pages that they share count once (PSS), where Linux says so."""
    total = 0
    try:
        family = [process, *process.children(recursive=True)]
        if len(family) == 1:
            return int(process.memory_info().rss)
        for each in family:
            found = each.memory_full_info()
            total += int(found.pss if psutil.LINUX else found.rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        pass  # it has just ended
    return total


def device_memory() -> int:
    """Bytes in use on the first GPU, whoever uses them."""
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]) * 2**20


def python_path() -> str:
    """PYTHONPATH with this checkout first."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def last_line(text: str) -> str:
    """The last line of ``text`` that is not blank."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


# ---------------------------------------------------------------------------------------------- results


def summarise(
    job: Comparison,
    runs: Mapping[str, list[list[Run]]],
    *,
    name: str,
    short: int,
    long: int,
    out: Path,
    conditions: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The result of all runs, written to ``out``."""
    images = (long - short) * job.batch
    operations = flops_per_image(job)
    speeds = [each.speed for arm in runs if not arm.startswith(PEER) for part in runs[arm] for each in part]
    device = next(speed["device"] for speed in speeds if speed is not None)
    arms: dict[str, Any] = {}
    for arm, (warm_up, *repeats) in runs.items():
        rates = [images / (longer.seconds - shorter.seconds) for shorter, longer in repeats]
        if min(rates) <= 0:
            raise UserError(f"{arm}: the long run was not longer than the short one; raise --long")
        arms[arm] = {
            "images_per_second": spread(rates),
            "seconds_to_start_and_end": spread(
                [s.seconds - short * job.batch / r for (s, _), r in zip(repeats, rates, strict=True)]
            ),
            "cpu_seconds_per_image": spread([(longer.cpu - shorter.cpu) / images for shorter, longer in repeats]),
            "peak_memory_bytes": spread([longer.memory for _, longer in repeats]),
            "mfu": utilisation(statistics.median(rates), operations, device),
        }
        waits = [longer.speed["data_wait_share"] for _, longer in repeats if longer.speed is not None]
        known = [share for share in waits if share is not None]
        arms[arm]["data_wait_share"] = spread(known) if known else None
        if arm == "ours-cached":
            made = warm_up[0].seconds - statistics.median(shorter.seconds for shorter, _ in repeats)
            arms[arm]["seconds_to_make_caches"] = made
    best = max((arm for arm in arms if arm.startswith(PEER)), key=lambda arm: median(arms, arm))
    ratios = {arm: median(arms, arm) / median(arms, best) for arm in arms if not arm.startswith(PEER)}
    headline = "ours-cached"
    mine, theirs = (arms[arm]["images_per_second"]["values"] for arm in (headline, best))
    each = [a / b for a, b in zip(mine, theirs, strict=True)]
    missed = [f"{arm}: {ratios[arm]:.2f} times, goal {goal}" for arm, goal in GOALS.items() if ratios[arm] < goal]
    settings = {
        "model": name,
        "resolution": job.resolution,
        "batch": job.batch,
        "precision": job.precision,
        "workers": job.workers,
        "steps": [short, long],
        "trained": "U-Net, EMA",
        "flags": {arm: shown_flags(job, arm) for arm in arms},
    }
    context = Context(
        extractor="wall clock",
        resize=f"stored JPEG to {job.resolution} px, short side and centre crop",
        seed=0,
        settings=settings,
        model={"name": name, "hash": file_hash(job.model / "unet" / "config.json")},
        inputs={"peer": {"name": job.peer.name, "sha256": file_hash(job.peer)}},
        command=" ".join(
            ["python", "benchmarks/train.py", f"--model={name}", f"--batch={job.batch}", f"--precision={job.precision}"]
            + [f"--short={short}", f"--long={long}", f"--repeats={len(each)}", f"--workers={job.workers}"]
            + (["--compiled=true"] if any(arm.endswith("-compiled") for arm in arms) else [])
        ),
        git=git_state(ROOT),
    )
    return write_result(
        out,
        metric="train-speed",
        value=ratios[headline],
        ci=(min(each), max(each)),
        ci_method="smallest and largest ratio of the repeats",
        n=len(each),
        context=context,
        goal="images a second: 1.5 times the peer's faster arm with latents and text online, 2 times with caches",
        warnings=missed,
        details={
            "arms": arms,
            "ratio": ratios,
            "compared_with": best,
            "flops_per_image": operations,
            "machine": {
                "device": device,
                "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
                "threads": os.environ.get("OMP_NUM_THREADS", "one a core"),
            },
            "conditions": dict(conditions or {}) or None,
        },
    )


def shown_flags(job: Comparison, arm: str) -> list[str]:
    """Flags as they were, without the benchmark's folders and lengths."""
    words = command(job, arm, 0, job.folder / "run")[2:]
    return [Path(word).name if word.startswith("/") else word for word in words]


def flops_per_image(job: Comparison) -> int:
    """Operations of forward and backward of the U-Net for one image."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from roentgen.training.estimate import estimate

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(job.model / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(job.model / "vae")).requires_grad_(False)
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(job.model / "text_encoder"))
    side, window = unet.config.sample_size, text.config.max_position_embeddings
    found = estimate(
        unet,
        text,
        vae,
        batch_per_device=1,
        latent_shape=(unet.config.in_channels, side, side),
        text_shape=(1, window),
        train_unet=True,
        train_text_encoder=False,
        text_online=False,
    )
    return found.flops


def utilisation(rate: float, operations: int, device: str) -> float | None:
    """Share of the device's peak that the model's own operations take (MFU); None where the peak is not known."""
    peak = next((value for name, value in PEAK_FLOPS.items() if name in device), None)
    return None if peak is None else rate * operations / peak


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes, and the values themselves."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


def median(arms: Mapping[str, Any], arm: str) -> float:
    """Median images a second of an arm."""
    return float(arms[arm]["images_per_second"]["median"])


def table(result: Mapping[str, Any]) -> str:
    """The Markdown table of a result, with its conditions below."""
    details, settings = result["details"], result["settings"]
    arms, best = details["arms"], details["compared_with"]
    lines = [
        "| | images/s | times the peer | memory (GB) | waiting for data | MFU |",
        "|---|---|---|---|---|---|",
    ]
    for arm, found in arms.items():
        rate = found["images_per_second"]
        cells = [
            ARMS[arm],
            f"{rate['median']:.2f} ({rate['min']:.2f} to {rate['max']:.2f})",
            f"{rate['median'] / arms[best]['images_per_second']['median']:.2f}",
            f"{found['peak_memory_bytes']['median'] / 1e9:.2f}",
            "" if found["data_wait_share"] is None else f"{found['data_wait_share']['median']:.1%}",
            "" if found["mfu"] is None else f"{found['mfu']:.1%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in ("torch", "diffusers"))
    machine = details["machine"]
    made = arms["ours-cached"].get("seconds_to_make_caches")
    steps = settings["steps"]
    lines += [
        "",
        f"`{settings['model']}` at {settings['resolution']} px, batch {settings['batch']}, {settings['precision']}, "
        f"U-Net trained with EMA, {settings['workers']} workers, on {machine['device']} ({machine['cores']} cores, "
        f"threads: {machine['threads']}); {versions}. Medians (extremes) of {result['n']} pairs of runs of {steps[0]} "
        f'and {steps[1]} steps, taking turns; "times the peer" is against its faster arm. Making the caches of '
        f"{steps[1] * settings['batch']} images took {made:.0f} s, once and outside these rates."
        f"{in_words(details.get('conditions'))}",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    return measure(**parse_call(measure, arguments, prog="benchmarks/train.py"))


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/train.py"))
