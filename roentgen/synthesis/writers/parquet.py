"""Parquet with Hugging Face's Image feature."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from roentgen.files import HashedFile, open_atomic
from roentgen.images import encode_image
from roentgen.synthesis.writers.parts import Part, Record, Writer, columns

ROW_GROUP = 100  # images; what a reader of Parquet must hold at once


class ParquetWriter(Writer):
    """One Parquet file a shard; ``image`` holds the PNG."""

    name = "parquet"
    folders = ("parquet/",)

    def write_shard(self, shard: int, records: Sequence[Record]) -> None:
        """See ``Writer``."""
        import pyarrow
        import pyarrow.parquet

        if not records:
            self.parts.write(shard, Part({}, []))
            return
        schema = self._schema()
        path = f"parquet/part-{shard:05d}.parquet"
        with open_atomic(self.out / path, scratch=self.parts.scratch) as file:
            hashed = HashedFile(file)
            with pyarrow.parquet.ParquetWriter(hashed, schema) as table:
                for start in range(0, len(records), ROW_GROUP):
                    rows = [self._row(record) for record in records[start : start + ROW_GROUP]]
                    table.write_table(pyarrow.Table.from_pylist(rows, schema))
        self.parts.write(shard, Part({path: hashed.sha256()}, []))

    def _row(self, record: Record) -> dict[str, Any]:
        names = self.columns
        row = dict(zip(names, self.cells(record, f"{record.name}.png"), strict=True))
        data = encode_image(record.image, "png", record.provenance)
        return row | {"image": {"bytes": data, "path": row["image"]}}

    def _schema(self) -> Any:
        import pyarrow

        types = {kind: pyarrow.type_for_alias(kind) for kind in ("string", "int8", "int64", "float64", "bool")}
        fields = {column.name: types[column.kind] for column in columns(self.info)}
        fields["image"] = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        features: dict[str, Any] = {c.name: {"dtype": c.kind, "_type": "Value"} for c in columns(self.info)}
        features["image"] = {"_type": "Image"}
        return pyarrow.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
