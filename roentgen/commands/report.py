"""``roentgen report``: images to findings with places, as JSON, text, pictures and DICOM reports."""

from __future__ import annotations

import json as jsons
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from roentgen.commands.generate import check_paths, dumps
from roentgen.config import BatchSize, PathOrName, Positional, Short
from roentgen.errors import UserError
from roentgen.files import require_writable, write_atomic

if TYPE_CHECKING:
    from roentgen.reports import Report, Reporter
    from roentgen.reports.base import Image

FORMATS = ("json", "text", "picture", "cxrreportgen", "dicom")
NOTE = "made by an algorithm; research only, not for diagnosis"
LINES = "reports.jsonl"


@dataclass(frozen=True)
class Study:
    """An image to be read, and the name of what is written about it."""

    path: Path
    name: str


@dataclass(frozen=True)
class Reading:
    """Read chest X-rays: prints each report, and writes findings with their boxes, text and pictures to --out.

        roentgen report image.png
        roentgen report study.dcm --out reports --format json picture dicom
        roentgen report images --json

    What is read:
        image: Frontal chest radiographs (PNG, JPEG or DICOM), or folders of them.
        model: mini-report, a folder that `roentgen train report` or `save_pretrained` wrote, or a Hugging Face id.
        places: For a model that says no places: mini-report, or a folder of --arch labels, looks for what it says.

    Output:
        out: Folder for what --format names; nothing is written without it.
        format: json (reports.jsonl, one line an image), text, picture (boxes drawn), cxrreportgen (its reply) and dicom
            (a structured report with regions, for DICOM images); several are allowed.
        overwrite: Replace files that exist.
        json: Print JSON lines instead of text.
        words: Of images that roentgen generated, also write NAME.words.png to --out: the boxes on the image as its
            generator's attention to the words of its prompt lights it, a second hint at the places.

    Context, for reporters that read it:
        indication: Why the image was taken.
        technique: How it was taken.
        comparison: What it is compared with.
        prior_report: Report of an earlier study.
        prior_image: Image of an earlier study.
        lateral_image: Lateral image of the same study.

    Machine:
        batch_size: Images computed at once.
        device: auto, cpu, cuda, cuda:N or mps.
        int8: Compute in 8-bit integers, on the CPU: less memory, and a little is lost (docs/reports.md).
    """

    image: Annotated[tuple[Path, ...], Positional()] = ()
    model: PathOrName = "mini-report"
    places: PathOrName | None = None
    out: Annotated[Path | None, Short("-o")] = None
    format: tuple[str, ...] = ("json", "text", "picture")
    overwrite: bool = False
    json: bool = False
    words: bool = False
    indication: str = ""
    technique: str = ""
    comparison: str = ""
    prior_report: str = ""
    prior_image: Path | None = None
    lateral_image: Path | None = None
    batch_size: BatchSize = 8
    device: str = "auto"
    int8: bool = False


def report(s: Reading) -> int:
    """Read the images; see ``Reading``."""
    for one in s.format:
        if one not in FORMATS:
            raise UserError(f"--format {one}: unknown format; choose of {', '.join(FORMATS)}")
    studies = find_images(s.image)
    if s.out is not None:
        _check_out(s.out, studies, (*s.format, *(["words"] if s.words else [])), s.overwrite)
    elif s.words:
        raise UserError("--words writes pictures; name their folder with --out")
    if s.words:
        from roentgen.commands.report_words import marks_of

        for study in studies:
            marks_of(study.path)
    from roentgen.images import read_image
    from roentgen.reports import Context

    context = Context(
        indication=s.indication,
        technique=s.technique,
        comparison=s.comparison,
        prior_report=s.prior_report,
        prior_image=None if s.prior_image is None else read_image(s.prior_image),
        lateral_image=None if s.lateral_image is None else read_image(s.lateral_image),
    )
    reporter = _reporter(s.model, s.places, s.device, s.int8)
    lines: list[str] = []
    for start in range(0, len(studies), s.batch_size):
        part, pixels, failed = _read(studies[start : start + s.batch_size])
        reports = reporter.report_many(pixels, [context] * len(pixels))
        for study, shown, found in zip(part, pixels, reports, strict=True):
            more = {} if not s.words or s.out is None else _write_words(s.out, study, shown, found, reporter=reporter)
            line = dumps(record(study.path, shown, found, reporter) | more)
            lines.append(line)
            print(line if s.json else _shown(study.path, found, many=len(studies) > 1), flush=True)
            if s.out is not None:
                _write(s.out, study, shown, found, reporter=reporter, format=s.format)
                if "json" in s.format:
                    write_atomic(s.out / LINES, ("\n".join(lines) + "\n").encode())
        if failed is not None:
            raise failed
    return 0


def _reporter(model: str, places: str | None, device: str, int8: bool) -> Reporter:
    from roentgen.devices import pick_device
    from roentgen.reports import load_reporter

    if not int8:
        return load_reporter(model, device=pick_device(device), places=places)
    from roentgen.reports.quantised import quantise

    if device not in ("auto", "cpu"):
        raise UserError(f"--int8 is for processors; leave --device {device} out, or --int8")
    return quantise(load_reporter(model, device="cpu", places=places))


def _read(studies: Sequence[Study]) -> tuple[Sequence[Study], list[Image], UserError | None]:
    """Studies whose image can be read, up to the first that cannot: what came before it is reported first."""
    from roentgen.images import read_image

    pixels: list[Image] = []
    for study in studies:
        try:
            pixels.append(read_image(study.path))
        except UserError as error:
            return studies[: len(pixels)], pixels, error
    return studies, pixels, None


def find_images(paths: Sequence[Path]) -> list[Study]:
    """The images that are named, those of folders in the order of their names; UserError where there are none."""
    from roentgen.images import SUFFIXES

    if not paths:
        raise UserError("no image: name at least one file or folder, as in roentgen report image.png")
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(f"{path}: no image in this folder; images end in {', '.join(SUFFIXES)}")
            files += inside
        elif not path.exists():
            raise UserError(f"{path}: no such image file")
        else:
            files.append(path)
    names: dict[str, int] = {}
    studies = []
    for path in dict.fromkeys(files):
        count = names.get(path.stem, 0)
        names[path.stem] = count + 1
        studies.append(Study(path, path.stem if not count else f"{path.stem}-{count + 1}"))
    return studies


def record(path: Path, image: Image, found: Report, reporter: Reporter) -> dict[str, Any]:
    """What ``reports.jsonl`` says of an image."""
    from roentgen.images import marks_of
    from roentgen.reports import to_cxrreportgen

    height, width = image.shape
    return {
        "path": str(path),
        "width": width,
        "height": height,
        "synthetic": marks_of(path).get("synthetic") == "true",
        **found.as_dict(),
        "cxrreportgen": to_cxrreportgen(found, width, height),
        "model": reporter.info.name,
        "model_hash": reporter.info.hash,
        "note": NOTE,
    }


def _shown(path: Path, found: Report, *, many: bool) -> str:
    lines = [f"{path}:"] if many else []
    lines += [f"warning: {warning}" for warning in found.warnings]
    lines += [f"warning: this reporter does not read {', '.join(found.unread)}"] if found.unread else []
    return "\n".join([*lines, *([found.text] if found.text else []), *([""] if many else [])])


def _files(out: Path, study: Study, format: Sequence[str]) -> dict[str, Path]:
    """Where each format of an image's report goes, but for the common JSON lines."""
    endings = {
        "text": ".txt",
        "picture": ".png",
        "words": ".words.png",
        "cxrreportgen": ".cxrreportgen.json",
        "dicom": ".report.dcm",
    }
    return {name: out / f"{study.name}{ending}" for name, ending in endings.items() if name in format}


def _check_out(out: Path, studies: Sequence[Study], format: Sequence[str], overwrite: bool) -> None:
    """Refuse what cannot be written before anything is computed."""
    from roentgen.images import is_dicom

    if out.is_file():
        raise UserError(f"--out {out} is a file; name a folder")
    for study in studies:
        files = list(_files(out, study, format).values())
        if study.path.absolute() in [file.absolute() for file in files]:
            raise UserError(f"--out {out}: would replace the image {study.path}; name another folder")
        if "dicom" in format:
            with study.path.open("rb") as file:
                head = file.read(132)
            if not is_dicom(study.path, head):
                raise UserError(
                    f"--format dicom: {study.path} is no DICOM file, and a structured report belongs to a study; give "
                    "DICOM images or leave dicom out"
                )
        check_paths(files, overwrite)
    check_paths([out / LINES] if "json" in format else [], overwrite)
    require_writable(out, "--out")


def _write(out: Path, study: Study, image: Image, found: Report, *, reporter: Reporter, format: Sequence[str]) -> None:
    files = _files(out, study, format)
    if "text" in files:
        write_atomic(files["text"], ("\n".join([*found.warnings, found.text]).strip() + "\n").encode())
    if "picture" in files:
        from roentgen.images import marks_of
        from roentgen.reports.overlay import draw_report, picture_bytes

        title = f"{study.path.name}, read by {reporter.info.name} {reporter.info.hash}"
        marks = {"software": "roentgen report", "model": reporter.info.name, "model_hash": reporter.info.hash}
        marks |= {"image_is_synthetic": marks_of(study.path).get("synthetic", "false")}
        marks |= {"note": NOTE, "report": found.text}
        write_atomic(files["picture"], picture_bytes(draw_report(image, found, title=title), marks))
    if "cxrreportgen" in files:
        from roentgen.reports import write_reply

        write_atomic(files["cxrreportgen"], (jsons.dumps(write_reply([found], [image]), indent=1) + "\n").encode())
    if "dicom" in files:
        from roentgen.dicom import dicom_bytes
        from roentgen.reports.structured import structured_report

        write_atomic(files["dicom"], dicom_bytes(structured_report(study.path, found, reporter.info)))


def _write_words(out: Path, study: Study, image: Image, found: Report, *, reporter: Reporter) -> dict[str, Any]:
    from roentgen.commands.report_words import words_picture
    from roentgen.reports.overlay import picture_bytes

    picture, ratios = words_picture(study.path, image, found, title=f"{study.path.name}, by {reporter.info.name}")
    marks = {"software": "roentgen report", "note": NOTE, "image_is_synthetic": "true", "shows": "words"}
    write_atomic(_files(out, study, ("words",))["words"], picture_bytes(picture, marks))
    return {"attention_in_boxes": ratios}
