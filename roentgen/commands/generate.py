"""``roentgen generate``: prompts to marked images."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from roentgen.config import BatchSize, Count, Guidance, PathOrName, Positional, Seed, Short, Steps
from roentgen.errors import UserError
from roentgen.files import require_writable, sha256

if TYPE_CHECKING:
    from roentgen.generators.base import Sample

OTHER_IMAGES = (".gif", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".nii", ".npy", ".pdf")
"""Endings of --out that mean a file, not a folder, in a format that is not written."""


@dataclass(frozen=True)
class Planned:
    """One image to be made: its prompt, its seed and its file."""

    prompt: str
    seed: int
    path: Path


@dataclass(frozen=True)
class Generate:
    """Generate synthetic chest X-rays from text; prints one path a line.

        roentgen generate "left pleural effusion" --num-images 4 --grid --out out
        roentgen generate --prompts prompts/one_per_finding.csv --seed 7 --json

    What is made:
        prompt: What to show, such as "left pleural effusion"; several are allowed.
        prompts: File of prompts: .txt (one a line), .csv (columns id,prompt and optional seed) or .jsonl.
        num_images: Images for each prompt, with the seeds seed, seed+1, ...
        seed: First seed, the same for every prompt of the command line. The rows of a file go on counting from it:
            row r (from 0) begins at seed + r x --num-images, so that no two images share their noise. A seed in the
            file wins.
        same_seed: Begin at --seed in every row of the file too, to compare prompts on the same noise.

    Model and sampling:
        model: mini, another name of `roentgen models`, a model folder, or a Hugging Face id.
        lora: LoRA in diffusers' format to merge into the model: a folder with pytorch_lora_weights.safetensors, or a
            .safetensors file.
        steps: Denoising steps (default: the model's).
        guidance: Guidance scale; 1 is none (default: the model's).
        negative_prompt: What to steer away from.
        sampler: dpm++, unipc (both also as NAME-karras), ddim or pndm; of masked transformers halton or confidence
            (default: the model's).
        setting: Further settings of the model's family, such as temperature=1.2 top_k=0.5 of masked transformers
            (docs/families.md).

    Output:
        out: Folder, or a file name ending in .png, .jpg or .dcm for a single image.
        format: png, jpeg or dicom (default: by the ending of --out, else png).
        grid: Also write grid.png, one row a prompt.
        show_steps: Also write how each image comes about, as NAME_steps.png (a strip) and NAME_steps.gif: the network's
            estimate after each step, or the picture filling up.
        show_words: Also write NAME_words.png, the image lit by each word of its prompt: where the network looked the
            word up (cross-attention of diffusion models).
        overwrite: Replace files that exist.
        json: Print JSON lines instead of paths.

    Machine:
        batch_size: Images computed at once: speed and memory; images stay the same within one grey level.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto (float16 on a CUDA GPU, else float32), float32, float16 or bfloat16.
        compile: Compile the network first; for GPUs, on a CPU it makes images slower.
    """

    prompt: Annotated[tuple[str, ...], Positional()] = ()
    prompts: Path | None = None
    num_images: Annotated[Count, Short("-n")] = 1
    seed: Seed = 0
    same_seed: bool = False
    model: PathOrName = "mini"
    lora: Path | None = None
    steps: Steps | None = None
    guidance: Guidance | None = None
    negative_prompt: str = ""
    sampler: str | None = None
    setting: tuple[str, ...] = ()
    out: Annotated[Path, Short("-o")] = Path("out")
    format: str | None = None
    grid: bool = False
    show_steps: bool = False
    show_words: bool = False
    overwrite: bool = False
    json: bool = False
    batch_size: BatchSize = 4
    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False


def generate(s: Generate) -> int:
    """Make the images; see ``Generate``."""
    from roentgen import images
    from roentgen.generators import generate as generation
    from roentgen.generators.base import check_text

    records = _records(s)
    for _, text, _ in records:
        check_text(text)
    settings: dict[str, Any] = {"steps": s.steps, "guidance": s.guidance, "sampler": s.sampler}
    settings["negative_prompt"] = s.negative_prompt or None
    settings |= generation.read_settings(s.setting)
    generation.check_settings(num_images=s.num_images, seed=s.seed, batch_size=s.batch_size, **settings)
    generation.check_count(len(records) * s.num_images, "--num-images")
    kind, folder, file = destination(s.out, s.format, len(records) * s.num_images)
    stems = slugs([id or text for id, text, _ in records])
    plan = [
        Planned(text, first + index, file or folder / f"{stem}_{first + index}{images.FORMATS[kind]}")
        for stem, (_, text, first) in zip(stems, records, strict=True)
        for index in range(s.num_images)
    ]
    grid_path = folder / "grid.png" if s.grid else None
    steps_of = {one.path: step_files(one.path) for one in plan} if s.show_steps else {}
    words_of = {one.path: one.path.with_name(f"{one.path.stem}_words.png") for one in plan} if s.show_words else {}
    extra = [*([grid_path] if grid_path else []), *words_of.values()]
    check_paths([one.path for one in plan] + [*extra, *chain.from_iterable(steps_of.values())], s.overwrite)
    require_writable(folder, "--out")

    loaded = generation.load_model(s.model, device=s.device, dtype=s.dtype, compile=s.compile, lora=s.lora)
    texts = [text for _, text, _ in records]
    if s.show_words:
        generation.attentive(loaded)
    samples = generation.generate(
        loaded,
        texts,
        seeds=[first for _, _, first in records],
        num_images=s.num_images,
        seed=s.seed,
        batch_size=s.batch_size,
        on_step=lambda share: bar.update(min(share, bar.total - bar.n)),  # sums of shares round
        **settings,
    )
    unknown = generation.warn_unknown_words(loaded, texts)
    kept = []
    with bar_of(len(plan)) as bar:
        for one, sample in zip(plan, samples, strict=True):
            images.save_image(sample.image, one.path, format=kind, provenance=sample.provenance, overwrite=s.overwrite)
            with bar.external_write_mode() if sys.stderr.isatty() else nullcontext():
                print(_line(one.path, sample, unknown[sample.prompt]) if s.json else one.path, flush=True)
            frames = generation.watch(loaded, sample, **settings) if s.show_steps else []
            for path in steps_of.get(one.path, ()):
                save_steps(path, frames, sample.provenance, overwrite=s.overwrite)
                print(dumps({"path": str(path), "steps": True}) if s.json else path, flush=True)
            if one.path in words_of:
                path = words_of[one.path]
                maps = generation.word_maps(loaded, sample.prompt, sample.seed, **settings)
                save_words(path, sample, maps, overwrite=s.overwrite)
                print(dumps({"path": str(path), "words": list(maps)}) if s.json else path, flush=True)
            if grid_path:
                kept.append(sample.image)
    if grid_path:
        picture = images.make_grid(kept, texts, columns=s.num_images)
        marks = {**sample.provenance, "prompt": "; ".join(dict.fromkeys(texts)), "seed": str(s.seed)}
        marks["grid"] = f"{len(records)} x {s.num_images}"
        images.save_image(picture, grid_path, format="png", provenance=marks, overwrite=s.overwrite)
        print(dumps({"path": str(grid_path), "grid": True}) if s.json else grid_path, flush=True)
    return 0


def _records(s: Generate) -> list[tuple[str | None, str, int]]:
    """Id, text and first seed of each prompt."""
    records: list[tuple[str | None, str, int]] = [(None, text, s.seed) for text in s.prompt]
    if s.prompts is not None:
        from roentgen.data.prompt_table import read_prompts

        apart = 0 if s.same_seed else s.num_images
        for row, record in enumerate(read_prompts(s.prompts)):
            first = s.seed + row * apart if record.seed is None else record.seed
            records.append((record.id, record.prompt, first))
    if not records:
        raise UserError('no prompt: write one, as in roentgen generate "left pleural effusion", or pass --prompts FILE')
    return records


def step_files(image: Path) -> tuple[Path, Path]:
    """The strip and the animation of the steps of an image."""
    return image.with_name(f"{image.stem}_steps.png"), image.with_name(f"{image.stem}_steps.gif")


def save_steps(path: Path, frames: Sequence[Any], provenance: Mapping[str, str], *, overwrite: bool) -> None:
    """Write ``frames``, one a step, as an animated GIF or as a strip of at most 16 of them, marked as synthetic."""
    from roentgen import images

    marks = {**provenance, "shows": "steps"}
    if path.suffix == ".gif":
        images.save_gif(frames, path, provenance=marks, overwrite=overwrite)
        return
    last = len(frames) - 1
    shown = sorted({round(number * last / min(15, max(last, 1))) for number in range(min(16, len(frames)))})
    captions = [f"step {number + 1} of {len(frames)}" for number in shown]
    strip = images.make_grid([frames[number] for number in shown], captions, columns=min(8, len(shown)))
    images.save_image(strip, path, format="png", provenance=marks, overwrite=overwrite)


def save_words(path: Path, sample: Sample, maps: Mapping[str, Any], *, overwrite: bool) -> None:
    """Write the image of ``sample``, and beside it the image lit by each word's map, marked as synthetic."""
    from roentgen import images

    shown = [sample.image, *(images.lit(sample.image, one) for one in maps.values())]
    strip = images.make_grid(shown, ["", *maps], columns=min(6, len(shown)))
    images.save_image(
        strip, path, format="png", provenance={**sample.provenance, "shows": "words"}, overwrite=overwrite
    )


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


def slugs(texts: Sequence[str]) -> list[str]:
    """``slug`` of each text; different texts that have one name in common, as Case 1 and case-1, get a short hash."""
    named: dict[str, set[str]] = {}
    for text in texts:
        named.setdefault(slug(text), set()).add(text)
    return [slug(text) if len(named[slug(text)]) == 1 else f"{slug(text)}-{sha256(text)[:6]}" for text in texts]


def destination(out: Path, format: str | None, count: int) -> tuple[str, Path, Path | None]:
    """Format, folder, and the file if ``--out`` names one."""
    from roentgen.images import FORMATS, SUFFIXES

    if format is not None and format not in FORMATS:
        raise UserError(f"--format {format}: unknown image format; choose one of {', '.join(FORMATS)}")
    path = out
    named = SUFFIXES.get(path.suffix.lower())
    if named is None or path.is_dir():
        if path.is_file():
            raise UserError(f"--out {out} is a file; name a folder, or a file ending in {', '.join(SUFFIXES)}")
        if path.suffix.lower() in OTHER_IMAGES and not path.is_dir():
            raise UserError(
                f"--out {out}: {path.suffix} cannot be written; name a file ending in {', '.join(SUFFIXES)}"
            )
        return format or "png", path, None
    if count != 1:
        raise UserError(f"--out {out} is one file, but {count} images are asked for; name a folder")
    if format is not None and format != named:
        raise UserError(f"--format {format} does not fit --out {out}; leave one of them out")
    return named, path.parent, path


def check_paths(paths: Sequence[Path], overwrite: bool) -> None:
    """Refuse files that exist, and two images of one name, before anything is computed."""
    seen: set[Path] = set()
    for path in paths:
        if path in seen:
            raise UserError(
                f"two images would be written to {path}: a prompt and seed is asked for twice; "
                "leave one out, or give them two ids with --prompts FILE.csv"
            )
        seen.add(path)
    existing = [path for path in paths if path.exists()] if not overwrite else []
    if existing:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise UserError(f"{existing[0]}{more} exists already; pass --overwrite to replace it, or another --out")


def bar_of(images: int) -> Any:
    from tqdm import tqdm

    # Steps add fractions of an image, so that the bar moves during the first batch as well.
    form = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
    interval = 0.1 if sys.stderr.isatty() else 10  # a log file needs no animation
    return tqdm(total=images, desc="images", bar_format=form, file=sys.stderr, mininterval=interval)


def _line(path: Path, sample: Any, unknown: list[str]) -> str:
    from roentgen.generators.base import weights_in

    marks = sample.provenance
    height, width = sample.image.shape
    return dumps(
        {
            "path": str(path),
            "prompt": sample.prompt,
            "negative_prompt": marks.get("negative_prompt", ""),
            "seed": sample.seed,
            "model": marks["model"],
            "model_hash": marks["model_hash"],
            "steps": int(marks["steps"]),
            "guidance": float(marks["guidance"]),
            "sampler": marks["sampler"],
            "width": width,
            "height": height,
            "warnings": [
                *(f"word never seen in training: {word}" for word in unknown),
                *(f"weight read as text: {weight}" for weight in weights_in(sample.prompt)),
            ],
        }
    )


def dumps(value: Any) -> str:
    """``value`` as a line of JSON that the terminal's encoding can show."""
    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    return json.dumps(value, ensure_ascii=not unicode)
