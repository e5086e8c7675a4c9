"""What the scripts beside this file share: a result that is measured or taken, printed, and put into a document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from roentgen.errors import UserError
from roentgen.metrics.report.tables import replace_between_markers
from roentgen.metrics.result import read_result


def report(
    name: str,
    *,
    out: str | None,
    result: str | None,
    update: str | None,
    measure: Callable[[Path], object],
    table: Callable[[Mapping[str, Any]], str],
) -> int:
    """Have ``measure`` write its result to ``out``, or take that of ``result``; print its ``table``.

    ``update``: document in which the region results:``name`` is replaced by the table. UserError where neither file is
    named, or the document has no such region: before anything is measured.
    """
    if update is not None:
        replace_between_markers(Path(update), name, "", write=False)
    if result is None and out is None:
        raise UserError("--out is missing; name a JSON file for the result")
    if result is None:
        measure(Path(str(out)))
    lines = table(read_result(Path(str(result or out))))
    print(lines)
    if update is not None:
        replace_between_markers(Path(update), name, lines)
    return 0
