"""Written files as Markdown tables, put between markers of a document: no figure is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from roentgen.errors import UserError
from roentgen.files import write_atomic
from roentgen.metrics.result import read_result, shown

Written = Mapping[str, Any]


def figure(entry: Mapping[str, Any] | None, *, digits: int = 2, key: str = "value", count: bool = False) -> str:
    """``0.74 [0.71, 0.77]``, with ", n = 12" if ``count``; an en dash where nothing was measured."""
    if entry is None or entry[key] is None:
        return "–"
    text = f"{entry[key]:.{digits}f}"
    low, high = entry.get("ci") or (None, None)
    if low is not None and high is not None:
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{text}, n = {entry['n']}" if count else text


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def replace_between_markers(document: Path | None, name: str, text: str, *, write: bool = True) -> bool:
    """Put ``text`` between ``<!-- results:NAME -->`` and ``<!-- /results:NAME -->``; whether that changes it.

    Without a document nothing is done, as where a script is given no ``--update``.

    UserError where the markers are not there exactly once, in this order.
    """
    if document is None:
        return False
    start, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
    try:
        content = document.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{document}: cannot be read ({error.strerror}); check the path") from None
    if content.count(start) != 1 or content.count(end) != 1 or content.index(start) > content.index(end):
        raise UserError(f"{document}: needs one line {start} and below it one line {end}; add them")
    pattern = re.escape(start) + ".*?" + re.escape(end)
    new = re.sub(pattern, lambda _: f"{start}\n\n{text}\n\n{end}", content, flags=re.DOTALL)
    if new == content:
        return False
    if write:
        write_atomic(document, new.encode())
    return True


def fill(document: Path, texts: Mapping[str, str], *, write: bool = True) -> bool:
    """Put each of ``texts`` (name to Markdown) whose markers ``document`` has between them; whether that changes it.

    UserError where it has the markers of none, or some twice or alone.
    """
    content = document.read_text(encoding="utf-8") if document.is_file() else ""
    present = [name for name in texts if f"results:{name} -->" in content]
    if not present:
        known = ", ".join(f"<!-- results:{name} -->" for name in texts)
        raise UserError(f"{document} has none of the lines {known}; add one, and below it <!-- /results:... -->")
    return any([replace_between_markers(document, name, texts[name], write=write) for name in present])


def report(
    name: str,
    *,
    out: str | Path | None,
    result: str | Path | None,
    update: str | Path | None,
    measure: Callable[[Path], object],
    table: Callable[[Mapping[str, Any]], str],
) -> int:
    """Have ``measure`` write its result to ``out``, or take that of ``result``; print its ``table``.

    ``update``: document in which the region results:``name`` is replaced by the table. UserError where neither file is
    named, or the document has no such region: before anything is measured.
    """
    update = None if update is None else Path(update)
    replace_between_markers(update, name, "", write=False)
    if result is None and out is None:
        raise UserError("--out is missing; name a JSON file for the result")
    if result is None:
        measure(Path(str(out)))
    path = Path(str(result or out))
    stored = read_result(path)
    with shown(path):
        lines = table(stored)
    print(lines)
    replace_between_markers(update, name, lines)
    return 0


@dataclass(frozen=True, kw_only=True)
class Reported:
    """Where a script keeps its result, and where it shows it."""

    out: Annotated[Path | None, "JSON file for the result"] = None
    result: Annotated[Path | None, "measure nothing, take this JSON file of an earlier run"] = None
    update: Annotated[Path | None, "document whose region is replaced by the table"] = None

    def report(self, name: str, *, measure: Callable[[Path], object], table: Callable[[Mapping[str, Any]], str]) -> int:
        """``report`` under ``name`` with these files."""
        return report(
            name, **{key: getattr(self, key) for key in ("out", "result", "update")}, measure=measure, table=table
        )


def rising(sizes: Sequence[int], flag: str) -> None:
    """UserError unless there are at least two of ``sizes``, each larger than the one before."""
    if len(sizes) < 2 or list(sizes) != sorted(set(sizes)):
        raise UserError(f"{flag} {','.join(map(str, sizes))}: give at least two whole numbers, rising, with commas")
