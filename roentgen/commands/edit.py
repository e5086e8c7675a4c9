"""``roentgen edit``: an X-ray and a text to the same X-ray, changed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from roentgen.commands.generate import bar_of, check_paths, destination, dumps, slug
from roentgen.config import Count, Guidance, PathOrName, Positional, Range, Seed, Share, Short, Steps
from roentgen.errors import UserError
from roentgen.files import require_writable, user_path

Strength = Annotated[float, Range(0, 1, above=True)]


@dataclass(frozen=True)
class Edit:
    """Change what an X-ray shows by a text, and nothing else; prints one path a line.

        roentgen edit chest.png "left pleural effusion" --lung left --strip --out out
        roentgen edit chest.png --remove "cardiomegaly" --box 0.3 0.4 0.8 0.9 --out out/smaller.png

    What is edited:
        words: The image (PNG, JPEG or DICOM), then what it should show, such as "left pleural effusion".
        remove: What should go, such as "cardiomegaly"; without a text, the image should show no acute finding.
        lung: Change this half only, as seen from the patient (the patient's left is on the image's right).
        box: Change inside this box only: x1 y1 x2 y2 in fractions of the image, from its upper left corner.
        mask: Change where this image of the same size is white only. Pixels outside stay as they are, all of them.

    How much:
        strength: Share of the denoising that is done again; more changes more.
        invert: Start from the noise that the model would make this very image from, which keeps the patient;
            --no-invert starts from random noise and draws the region anew.
        detail: Keep what the autoencoder cannot draw, such as fine edges; --no-detail draws the region anew.
        num_images: Edits with the seeds seed, seed+1, ...; only with --no-invert.
        seed: First seed.

    Model and sampling:
        model: mini, another name of `roentgen models`, a diffusers folder, or a Hugging Face id; inpainting models too.
        lora: LoRA to merge into the model.
        steps: Denoising steps of the whole way (default: the model's); --strength says how many of them are done.
        guidance: Guidance scale; 1 is none.
        sampler: dpm++, unipc (both also as NAME-karras), ddim or pndm
            (default: ddim, and the model's with --no-invert).
        negative_prompt: What to steer away from.

    Output:
        out: Folder, or a file name ending in .png, .jpg or .dcm for a single image.
        format: png, jpeg or dicom (default: by the ending of --out, else png).
        strip: Also write a picture of before, after and difference beside each image.
        overwrite: Replace files that exist.
        json: Print JSON lines instead of paths.

    Machine:
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto (float16 on a CUDA GPU, else float32), float32, float16 or bfloat16.
    """

    words: Annotated[tuple[str, ...], Positional()] = ()
    remove: str = ""
    lung: Literal["left", "right"] | None = None
    box: tuple[Share, ...] = ()
    mask: Path | None = None
    strength: Strength = 0.7
    invert: bool = True
    detail: bool = True
    num_images: Annotated[Count, Short("-n")] = 1
    seed: Seed = 0
    model: PathOrName = "mini"
    lora: Path | None = None
    steps: Steps | None = None
    guidance: Guidance = 5.0
    sampler: str | None = None
    negative_prompt: str = ""
    out: Annotated[Path, Short("-o")] = Path("out")
    format: str | None = None
    strip: bool = False
    overwrite: bool = False
    json: bool = False
    device: str = "auto"
    dtype: str = "auto"


def edit(s: Edit) -> int:
    """Change an image; see ``Edit``."""
    from roentgen import images
    from roentgen.generators import edit as editing
    from roentgen.generators import generate as generation
    from roentgen.generators.base import Editing

    source, text = _image_and_text(s.words)
    pixels = images.read_image(source)
    region = _region(pixels.shape, s.lung, s.box, s.mask)
    for warning in editing.warnings_of(pixels):
        print(f"roentgen: warning: {source}: {warning}", file=sys.stderr)
    generation.check_settings(
        num_images=s.num_images, seed=s.seed, steps=s.steps, guidance=s.guidance, sampler=s.sampler
    )
    generation.check_count(s.num_images, "--num-images")
    kind, folder, file = destination(s.out, s.format, s.num_images)
    name = f"{slug(source.stem)}_{slug(text or f'no {s.remove}')}"
    paths = [file or folder / f"{name}_{s.seed + index}{images.FORMATS[kind]}" for index in range(s.num_images)]
    strips = [path.with_name(f"{path.stem}_strip.png") for path in paths] if s.strip else []
    check_paths(paths + strips, s.overwrite)
    require_writable(folder, "--out")

    loaded = generation.load_model(s.model, device=s.device, dtype=s.dtype, lora=s.lora)
    edits = editing.edit(
        loaded,
        source,
        text,
        remove=s.remove,
        region=region,
        editing=Editing(s.strength, s.invert, s.detail),
        seed=s.seed,
        num_images=s.num_images,
        on_step=lambda share: bar.update(min(share, bar.total - bar.n)),
        steps=s.steps,
        guidance=s.guidance,
        sampler=s.sampler,
        negative_prompt=s.negative_prompt,
    )
    unknown = generation.warn_unknown_words(loaded, [each for each in (text, s.remove) if each])
    with bar_of(s.num_images) as bar:
        for index, (path, made) in enumerate(zip(paths, edits, strict=True)):
            images.save_image(made.image, path, format=kind, provenance=made.provenance, overwrite=s.overwrite)
            print(_line(path, made, unknown) if s.json else path, flush=True)
            if s.strip:
                images.save_image(
                    made.strip(), strips[index], format="png", provenance=made.provenance, overwrite=s.overwrite
                )
                print(dumps({"path": str(strips[index]), "strip": True}) if s.json else strips[index], flush=True)
    return 0


def _image_and_text(words: tuple[str, ...]) -> tuple[Path, str]:
    if not words:
        raise UserError('no image: name one, as in roentgen edit chest.png "left pleural effusion" --lung left')
    if len(words) > 2:
        raise UserError(f"{words[2]!r}: one image and one text at a time; put the text into quotes")
    return user_path(words[0]), words[1] if len(words) == 2 else ""


def _region(shape: tuple[int, ...], lung: str | None, box: tuple[float, ...], mask: Path | None) -> Any:
    """Mask (H, W) of where pixels may change, by the one flag that is given."""
    from roentgen.generators.edit import region_of
    from roentgen.images import read_image

    given = {"--lung": lung, "--box": box or None, "--mask": mask}
    flags = [flag for flag, value in given.items() if value is not None]
    if len(flags) > 1:
        raise UserError(f"{' and '.join(flags)}: name the region in one way")
    if mask is not None:
        try:
            white = read_image(mask)
        except UserError as error:
            raise UserError(f"--mask {error}") from None
        return region_of(shape, white, what=f"--mask {mask}")
    return region_of(shape, lung or box or None, what=flags[0] if flags else "region")


def _line(path: Path, made: Any, unknown: dict[str, list[str]]) -> str:
    height, width = made.image.shape
    words = dict.fromkeys(word for found in unknown.values() for word in found)
    marks = {key: value for key, value in made.provenance.items() if key not in ("software", "synthetic", "version")}
    warnings = [f"word never seen in training: {word}" for word in words]
    return dumps({"path": str(path), **marks, "width": width, "height": height, "warnings": warnings})
