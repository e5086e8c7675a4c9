"""Written files as Markdown tables, put between markers of a document: no figure is typed by hand."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from roentgen.errors import UserError
from roentgen.files import explained, write_atomic
from roentgen.metrics.result import Context, read_result, shown

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


def table(header: list[str], rows: list[list[str]], *notes: str) -> str:
    """A Markdown table, first column to the left, the others to the right; ``notes`` are paragraphs below it."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n\n".join(["\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]), *notes])


def replace_between_markers(document: Path | None, name: str, text: str, *, write: bool = True) -> bool:
    """Put ``text`` between ``<!-- results:NAME -->`` and ``<!-- /results:NAME -->``; whether that changes it.

    Without a document nothing is done, as where a script is given no ``--update``.

    UserError where the markers are not there exactly once, in this order.
    """
    if document is None:
        return False
    start, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
    with explained(f"{document}: cannot be read", "check the path", OSError):
        content = document.read_text(encoding="utf-8")
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


def fill_all(documents: Iterable[Path], texts: Mapping[str, str], *, check: bool = False) -> None:
    """``fill`` each document; with ``check`` nothing is written, and UserError names one that is out of date."""
    for document in documents:
        if fill(document, texts, write=not check) and check:
            raise UserError(f"{document} is out of date; run the command again without --check")


def report(
    name: str | Sequence[str],
    *,
    out: str | Path | None,
    result: str | Path | None,
    update: str | Path | Iterable[Path] | None,
    measure: Callable[[Path], object],
    table: Callable[[Mapping[str, Any]], str | Mapping[str, str]],
    read: Callable[[Path], Mapping[str, Any]] = read_result,
    keep: bool = True,
    check: bool = False,
) -> int:
    """Have ``measure`` write its result to ``out``, or take that of ``result``; print its ``table``.

    ``update``: documents in which the region results:``name`` is replaced by the table; of several names ``table``
    gives a text each, of which the first is printed. ``keep`` False: without ``out`` the result is only shown.
    ``check``: see ``fill_all``. UserError where neither file is named, or a document has no such region: before
    anything is measured.
    """
    names = [name] if isinstance(name, str) else list(name)
    given = [] if update is None else [update] if isinstance(update, str | Path) else update
    documents = [Path(each) for each in given]
    for document in documents:
        fill(document, dict.fromkeys(names, ""), write=False)
    if keep and result is None and out is None:
        raise UserError("--out is missing; name a JSON file for the result")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(result or out or Path(scratch) / "result.json")
        if result is None:
            measure(path)
        stored = read(path)
    with shown(path):
        made = table(stored)
        texts = {names[0]: made} if isinstance(made, str) else made
    print(texts[names[0]])
    fill_all(documents, texts, check=check)
    return 0


@dataclass(frozen=True, kw_only=True)
class Reported:
    """Where a script keeps its result, and where it shows it."""

    out: Annotated[Path | None, "JSON file for the result"] = None
    result: Annotated[Path | None, "measure nothing, take this JSON file of an earlier run"] = None
    update: Annotated[Path | None, "document whose region is replaced by the table"] = None

    def report(self, name: str | Sequence[str], *, measure: Callable[[Any, Path], object], **how: Any) -> int:
        """``report`` under ``name`` with these files; ``measure`` is given these settings and the file to write."""
        files = {key: getattr(self, key) for key in ("out", "result", "update")}
        return report(name, **files, measure=partial(measure, self), **how)

    def context(self, script: str, *, settings: Mapping[str, Any] | None = None, **about: Any) -> Context:
        """Of a result of ``script`` with these settings and further ``settings``; ``about``: see ``Context``."""
        files = dict.fromkeys(("out", "result", "update"))
        made = Context.of(script, replace(self, **files), **about)
        flags = {key: value for key, value in made.settings.items() if key not in files}
        return replace(made, settings=flags | dict(settings or {}))


def rising(sizes: Sequence[int], flag: str) -> None:
    """UserError unless there are at least two of ``sizes``, each larger than the one before."""
    if len(sizes) < 2 or list(sizes) != sorted(set(sizes)):
        raise UserError(f"{flag} {','.join(map(str, sizes))}: give at least two whole numbers, rising, with commas")
