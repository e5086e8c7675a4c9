"""The `roentgen` command: parse, call, print. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roentgen.config import parse_call
from roentgen.errors import UserError
from roentgen.files import sha256
from roentgen.provenance import __version__

SUMMARY = "Radiology text in, synthetic chest X-rays out. Research only, not for diagnosis."


# ----------------------------------------------------------------------------------------- generate


@dataclass(frozen=True)
class Planned:
    """One image to be made: its prompt, its seed and its file."""

    prompt: str
    seed: int
    path: Path


def generate(
    prompt: list[str],
    prompts: str | None = None,
    model: str = "mini",
    num_images: int = 1,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    negative_prompt: str = "",
    sampler: str | None = None,
    out: str = "out",
    format: str | None = None,
    grid: bool = False,
    overwrite: bool = False,
    batch_size: int = 4,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool = False,
    lora: str | None = None,
    json: bool = False,
) -> int:
    """Generate synthetic chest X-rays from text; prints one path a line.

    Args:
        prompt: What to show, such as "left pleural effusion"; several are allowed.
        prompts: File of prompts: .txt (one a line), .csv (columns id,prompt and optional seed) or .jsonl.
        model: mini, another name of `roentgen models`, a diffusers folder, or a Hugging Face id.
        num_images: Images for each prompt, with the seeds seed, seed+1, ...
        seed: First seed; a seed in the prompts file wins.
        steps: Denoising steps (default: the model's).
        guidance: Guidance scale; 1 is none (default: the model's).
        negative_prompt: What to steer away from.
        sampler: dpm++, unipc, ddim or pndm (default: the model's).
        out: Folder, or a file name ending in .png, .jpg or .dcm for a single image.
        format: png, jpeg or dicom (default: by the ending of --out, else png).
        grid: Also write grid.png, one row a prompt.
        overwrite: Replace files that exist.
        batch_size: Images computed at once; changes speed and memory, not the images.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto (float16 on a CUDA GPU, else float32), float32, float16 or bfloat16.
        compile: Compile the network first; pays off for many images.
        lora: LoRA in diffusers' format to merge into the model: a folder with pytorch_lora_weights.safetensors, or a
            .safetensors file.
        json: Print JSON lines instead of paths.
    """
    from roentgen import images
    from roentgen.generators import generate as generation
    from roentgen.generators.base import check_text

    records: list[tuple[str | None, str, int | None]] = [(None, text, None) for text in prompt]
    if prompts is not None:
        from roentgen.data.prompt_table import read_prompts

        records += [(record.id, record.prompt, record.seed) for record in read_prompts(prompts)]
    if not records:
        raise UserError('no prompt: write one, as in roentgen generate "left pleural effusion", or pass --prompts FILE')
    for _, text, _ in records:
        check_text(text)
    generation.check_settings(
        num_images=num_images,
        seed=seed,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        batch_size=batch_size,
    )
    kind, folder, file = _destination(out, format, len(records) * num_images)
    plan = [
        Planned(text, first + index, file or folder / f"{stem}_{first + index}{images.FORMATS[kind]}")
        for stem, text, first in ((slug(id or text), text, seed if own is None else own) for id, text, own in records)
        for index in range(num_images)
    ]
    grid_path = folder / "grid.png" if grid else None
    _check_paths([one.path for one in plan] + ([grid_path] if grid_path else []), overwrite)
    _check_writable(folder)

    loaded = generation.load_model(model, device=device, dtype=dtype, compile=compile, lora=lora)
    texts = [text for _, text, _ in records]
    samples = generation.generate(
        loaded,
        texts,
        seeds=[own for _, _, own in records],
        num_images=num_images,
        seed=seed,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        negative_prompt=negative_prompt,
        batch_size=batch_size,
        on_step=lambda share: bar.update(min(share, bar.total - bar.n)),  # sums of shares round
    )
    unknown = generation.warn_unknown_words(loaded, texts)
    kept = []
    with _bar(len(plan)) as bar:
        for one, sample in zip(plan, samples, strict=True):
            images.save_image(sample.image, one.path, format=kind, provenance=sample.provenance, overwrite=overwrite)
            with bar.external_write_mode() if sys.stderr.isatty() else nullcontext():
                print(_line(one.path, sample, unknown[sample.prompt]) if json else one.path, flush=True)
            if grid_path:
                kept.append(sample.image)
    if grid_path:
        picture = images.make_grid(kept, texts, columns=num_images)
        marks = {**sample.provenance, "prompt": "; ".join(dict.fromkeys(texts)), "seed": str(seed)}
        images.save_image(picture, grid_path, format="png", provenance=marks, overwrite=overwrite)
        print(_dumps({"path": str(grid_path), "grid": True}) if json else grid_path, flush=True)
    return 0


def slug(text: str, longest: int = 60) -> str:
    """``text`` as a file name: lower-case ASCII letters and digits, joined by single hyphens or underscores.

    Text that is cut, or of which little is left, gets a short hash, so that two prompts keep two names.
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_]+", "-", ascii_text).strip("-").lower()
    lost = sum(character.isalpha() for character in text) > sum(character.isalpha() for character in name)
    if len(name) > longest or lost or not name:
        digest = sha256(text)[:6]
        name = f"{name[:longest].strip('-')}-{digest}".strip("-")
    return name


def _destination(out: str, format: str | None, count: int) -> tuple[str, Path, Path | None]:
    """Format, folder, and the file if ``--out`` names one."""
    from roentgen.images import FORMATS, SUFFIXES

    if format is not None and format not in FORMATS:
        raise UserError(f"--format {format}: unknown image format; choose one of {', '.join(FORMATS)}")
    path = Path(out).expanduser()
    named = SUFFIXES.get(path.suffix.lower())
    if named is None or path.is_dir():
        if path.is_file():
            raise UserError(f"--out {out} is a file; name a folder, or a file ending in {', '.join(SUFFIXES)}")
        return format or "png", path, None
    if count != 1:
        raise UserError(f"--out {out} is one file, but {count} images are asked for; name a folder")
    if format is not None and format != named:
        raise UserError(f"--format {format} does not fit --out {out}; leave one of them out")
    return named, path.parent, path


def _check_paths(paths: Sequence[Path], overwrite: bool) -> None:
    """Refuse files that exist, and two images of one name, before anything is computed."""
    seen: set[Path] = set()
    for path in paths:
        if path in seen:
            raise UserError(
                f"two images would be written to {path}: a prompt and seed is asked for twice; "
                "leave one out, or give them ids with --prompts FILE.csv"
            )
        seen.add(path)
    existing = [path for path in paths if path.exists()] if not overwrite else []
    if existing:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise UserError(f"{existing[0]}{more} exists already; pass --overwrite to replace it, or another --out")


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made ({error.strerror}); choose another folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--out {folder}: cannot be written to; choose another folder")


def _bar(images: int) -> Any:
    from tqdm import tqdm

    # Steps add fractions of an image, so that the bar moves during the first batch as well.
    form = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
    interval = 0.1 if sys.stderr.isatty() else 10  # a log file needs no animation
    return tqdm(total=images, desc="images", bar_format=form, file=sys.stderr, mininterval=interval)


def _line(path: Path, sample: Any, unknown: list[str]) -> str:
    marks = sample.provenance
    height, width = sample.image.shape
    return _dumps(
        {
            "path": str(path),
            "prompt": sample.prompt,
            "negative_prompt": marks["negative_prompt"],
            "seed": sample.seed,
            "model": marks["model"],
            "model_hash": marks["model_hash"],
            "steps": int(marks["steps"]),
            "guidance": float(marks["guidance"]),
            "sampler": marks["sampler"],
            "width": width,
            "height": height,
            "warnings": [f"word never seen in training: {word}" for word in unknown],
        }
    )


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# ----------------------------------------------------------------------------------- models and info


def models(json: bool = False) -> int:
    """List the named models: size, licence, and what is on this disk.

    Args:
        json: Print JSON lines instead of a table.
    """
    from roentgen.models.registry import NAMED, on_disk

    rows: list[dict[str, Any]] = []
    for model in NAMED.values():
        found = on_disk(model)
        rows.append(
            {
                "name": model.name,
                "pixels": model.pixels,
                "size_mb": round(found[1] / 1e6) if found else model.size_mb,
                "licence": model.licence,
                "on_disk": str(found[0]) if found else None,
                "hub_ids": list(model.hub_ids),
                "about": model.about,
            }
        )
    if json:
        print("\n".join(_dumps(row) for row in rows))
        return 0
    print(f"{'NAME':<12} {'PIXELS':>6} {'SIZE':>7}  {'LICENCE':<26} {'ON DISK':<8} ABOUT")
    for row in rows:
        size = f"{row['size_mb']} MB" if row["size_mb"] < 1000 else f"{row['size_mb'] / 1000:.1f} GB"
        here = "yes" if row["on_disk"] else "no"
        print(f"{row['name']:<12} {row['pixels']:>6} {size:>7}  {row['licence']:<26} {here:<8} {row['about']}")
    print("Any other Stable Diffusion pipeline: --model FOLDER or --model OWNER/NAME (Hugging Face).")
    return 0


def info(image: list[str], json: bool = False) -> int:
    """Print what made an image: prompt, seed, model, settings; exit code 2 if roentgen did not make it.

    Args:
        image: PNG, JPEG or DICOM files.
        json: Print JSON lines.
    """
    from roentgen.images import read_provenance

    if not image:
        raise UserError("no image: name at least one file, as in roentgen info out/image.png")
    for number, path in enumerate(image):
        marks = read_provenance(path)
        if json:
            print(_dumps({"path": path, **marks}))
        else:
            heading = [*([""] if number else []), *([path] if len(image) > 1 else [])]
            print("\n".join(heading + [f"{key}: {value}" for key, value in marks.items()]))
    return 0


# ----------------------------------------------------------------------------------------- dispatch


def _data_prepare() -> Callable[..., int]:
    from roentgen.data.commands import prepare

    return prepare


def _data_check() -> Callable[..., int]:
    from roentgen.data.commands import check

    return check


def _data_shard() -> Callable[..., int]:
    from roentgen.data.shard_command import shard

    return shard


def _eval() -> Callable[..., int]:
    from roentgen.eval_command import evaluate

    return evaluate


def _export() -> Callable[..., int]:
    from roentgen.export_command import export

    return export


@dataclass(frozen=True)
class Command:
    """How a command is found (a thunk, so that only the one asked for is imported) and parsed."""

    find: Callable[[], Callable[..., int]]
    positional: tuple[str, ...]
    about: str


COMMANDS = {
    "generate": Command(lambda: generate, ("prompt",), "make synthetic chest X-rays from text"),
    "models": Command(lambda: models, (), "list the named models and what is on this disk"),
    "info": Command(lambda: info, ("image",), "print the provenance of an image"),
    "export": Command(_export, (), "make a synthetic data set, filtered and marked, in the format of your training"),
    "eval": Command(_eval, ("folders",), "measure generated images against real ones, with an HTML report"),
    "data prepare": Command(_data_prepare, ("source",), "write a manifest from a collection of images"),
    "data check": Command(_data_check, ("manifest",), "check a manifest and its images"),
    "data shard": Command(_data_shard, ("manifest",), "write a manifest and its images as WebDataset tar files"),
}


def help_text() -> str:
    """The top-level help, written by hand so that it needs no parser."""
    lines = [f"  {name:<14} {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: roentgen COMMAND ...",
            "",
            SUMMARY,
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  -h, --help     show this help; `roentgen COMMAND --help` shows a command's",
            "  --version      show the version",
            "",
            'example: roentgen generate "left pleural effusion" --num-images 4 --grid --out out',
        ]
    )


def main(argv: Sequence[str]) -> int:
    """Run one command line without the program name; return its exit code. Raises UserError."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if argv[0] == "--version":
        print(f"roentgen {__version__}")
        return 0
    for words in (2, 1):
        name = " ".join(argv[:words])
        if name in COMMANDS and len(argv) >= words:
            command = COMMANDS[name]
            function = command.find()
            prog = f"roentgen {name}"
            return function(**parse_call(function, argv[words:], prog=prog, positional=command.positional)) or 0
    group = [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]
    if group:
        if argv[1:2] in (["-h"], ["--help"]):
            print("\n".join(f"roentgen {name:<14} {COMMANDS[name].about}" for name in group))
            return 0
        raise UserError(f"`roentgen {' '.join(argv[:2])}` is no command; choose {' or '.join(group)}")
    raise UserError(f"unknown command {argv[0]!r}; choose one of {', '.join(COMMANDS)}")
