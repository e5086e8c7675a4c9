"""WebDataset: tar files of images, prompts and all columns as JSON."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence

from roentgen.files import HashedFile, open_atomic
from roentgen.images import encode_image
from roentgen.synthesis.writers.parts import Part, Record, Writer


class WebDatasetWriter(Writer):
    """One tar a shard; in the JSON numbers are numbers, and null is unknown.

    Hugging Face takes the types of the JSON from the first five rows of the first tar, where a label may be unknown in
    all of them: so the set's card names the types.
    """

    name = "webdataset"
    folders = ("webdataset/",)

    def write_shard(self, shard: int, records: Sequence[Record]) -> None:
        """See ``Writer``."""
        if not records:
            self.parts.write(shard, Part({}, []))
            return
        path = f"webdataset/shard-{shard:06d}.tar"
        with open_atomic(self.out / path, scratch=self.parts.scratch) as file:
            hashed = HashedFile(file)
            with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
                for record in records:
                    values = self.cells(record, f"{record.name}.png")
                    row = dict(zip(self.columns, values, strict=True))
                    _add(tar, f"{record.name}.png", encode_image(record.image, "png", record.provenance))
                    _add(tar, f"{record.name}.txt", record.row.prompt.encode())
                    _add(tar, f"{record.name}.json", json.dumps(row, ensure_ascii=False).encode())
        self.parts.write(shard, Part({path: hashed.sha256()}, []))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # its own time, owner and mode are constants, so bytes repeat
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
