"""An image folder: PNG files with tables for roentgen, Hugging Face and torchxrayvision."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from roentgen.data.labels import NIH_14, NO_FINDING
from roentgen.files import sha256, write_atomic
from roentgen.images import encode_image
from roentgen.prompts.vocabulary import NARROWER
from roentgen.synthesis.writers.parts import FOLDER_SIZE, Part, Record, Writer, cell_text

NIH_COLUMNS = (
    *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position"),
    *("OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]"),
    *("Prompt", "Seed", "Model Hash", "Synthetic"),  # beyond NIH's own, as every table says what it is of
)


class FolderWriter(Writer):
    """PNG files and three tables."""

    name = "folder"
    folders = ("images/",)

    def write_shard(self, shard: int, records: Sequence[Record]) -> None:
        """See ``Writer``."""
        files, rows = {}, []
        for record in records:
            path = f"images/{record.row.slot // FOLDER_SIZE:05d}/{record.name}.png"
            data = encode_image(record.image, "png", record.provenance)
            write_atomic(self.out / path, data, scratch=self.parts.scratch)
            files[path] = sha256(data)
            labels = _nih_labels(record)
            rows.append([*self.cells(record, path), *reversed(record.image.shape), labels])
        self.parts.write(shard, Part(files, rows))

    def finish(self, shards: int) -> None:
        """See ``Writer``."""
        names = self.columns
        tables = {
            "manifest.csv": names,
            "metadata.csv": ["file_name", *names[1:]],  # "image" is the name that ImageFolder gives to the pixels
            "Data_Entry_synthetic.csv": NIH_COLUMNS,
        }
        with contextlib.ExitStack() as stack:
            manifest, metadata, nih = (
                stack.enter_context(self.open_table(path, header)) for path, header in tables.items()
            )
            for *values, width, height, labels in self.parts.rows(shards):
                row = [cell_text(value) for value in values]
                manifest.writerow(row)
                metadata.writerow(row)
                nih.writerow(_nih_row(dict(zip(names, row, strict=True)), width, height, labels))


def _nih_labels(record: Record) -> str:
    """NIH's "Finding Labels"; findings outside its fourteen keep roentgen's name.

    In that layout what is not named is absent, so the wider finding is named with the narrower.
    """
    asked = list(record.row.labels.findings)
    asked += [wide for wide, narrow in NARROWER.items() if narrow & set(asked) and wide not in asked]
    known = [name for name in (NO_FINDING, *NIH_14) if name in asked]
    return "|".join(known + [name for name in asked if name not in known]) or "Unknown"


def _nih_row(row: dict[str, str], width: int, height: int, labels: str) -> list[Any]:
    return [
        *(row["image"].removeprefix("images/"), labels, 0, row["patient_id"], row["age"], row["sex"]),
        row["view"] or "UNKNOWN",  # torchxrayvision's word; a column of blanks would be read as numbers
        *(width, height, "", ""),
        *(row["text"], row["seed"], row["model_hash"], row["synthetic"]),
    ]
