"""The public collections and users' own folders that become manifests: one module and one line here each.

A reader takes the folder of the collection and returns a manifest table, ``text`` "" where there is none, and counts
of what it left out. Its keyword parameters are the flags that the source takes.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

    Reader = Callable[..., tuple[pd.DataFrame, Counter[str]]]

Blank = Literal["error", "compose", "few"]
Given = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A reader as "module:function" of this package, and what a blank text means with the given flags.

    ``blank`` returns that (see ``assemble.fill_texts``) and the flag that chose the texts.
    """

    path: str
    blank: Callable[[Given], tuple[Blank, str]]

    @property
    def reader(self) -> Reader:
        """The function; its module is imported here, as pandas and pydicom are slow to."""
        module, _, function = self.path.partition(":")
        return getattr(importlib.import_module(f"{__name__}.{module}"), function)  # type: ignore[no-any-return]


def _composed(source: str) -> Callable[[Given], tuple[Blank, str]]:
    return lambda given: ("compose", source)


def _sections(given: Given) -> tuple[Blank, str]:
    if given.get("reports") == "none":
        return "compose", "--reports none"
    return "few", f"--section {','.join(given.get('section', ('impression',)))}"


def _of_column(given: Given) -> tuple[Blank, str]:
    named = "text_column" in given or "text" in given.get("column", {})
    return "error" if named else "compose", "--text-column"


def _of_padchest(given: Given) -> tuple[Blank, str]:
    return ("error", "--text report") if given.get("text") == "report" else ("compose", "padchest")


SOURCES: dict[str, Source] = {
    "openchest": Source("openchest:read_openchest", _composed("openchest")),
    "csv": Source("csv_folder:read_csv", _of_column),
    "mimic-cxr-jpg": Source("mimic:read_mimic", _sections),
    "chexpert": Source("chexpert:read_chexpert", _composed("chexpert")),
    "chexpert-plus": Source("chexpert:read_chexpert_plus", _sections),
    "nih": Source("nih:read_nih", _composed("nih")),
    "openi": Source("openi:read_openi", _sections),
    "padchest": Source("padchest:read_padchest", _of_padchest),
    "dicom": Source("dicom_folder:read_dicom_folder", _sections),
    "xreport": Source("xreport:read_xreport", lambda given: ("error", f"--csv {given['csv']}")),
}
