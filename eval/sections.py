"""How often report sections are found: the 3,955 Open-i reports, written in twelve styles and parsed again.

    python eval/sections.py --out eval/results/sections.json

The XML files of Open-i (Indiana University; Demner-Fushman et al., JAMIA 2016) label each section. This script writes
each report as one flat text, in the styles of header and layout in which hospitals write theirs, parses it with
``roentgen.data.sections`` and compares every section with the XML's. It measures headers and layout; the words are
real, the arrangement is not, and a hospital with other headers should look at its own reports.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from roentgen import errors
from roentgen.config import CountFromZero, Seed, parse_settings
from roentgen.data.sections import BLANKS, clean_text, count_blanks, last_paragraph, split_sections
from roentgen.data.sources.openi import REPORTS_ARCHIVE, carried_file, openi_reports
from roentgen.files import file_hash, require_writable
from roentgen.metrics.report.tables import table
from roentgen.metrics.result import Context, write_result
from roentgen.metrics.statistics import Bootstrap

Sections = Mapping[str, str]
NUMBERED = "numbered impression, cleaned"
HALF = re.compile(r"[A-Za-z]-(?=[\s.,;:)]|$)|(?:^|\s)-(?=[A-Za-z])")  # "chest x-", what a blank after a hyphen leaves
ORDER = ("comparison", "indication", "findings", "impression")


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    out: Annotated[Path, "result JSON"]
    reports: Annotated[
        Path | None,
        "NLMCXR_reports.tgz, or the folder it unpacks to (default: the copy in the torchxrayvision package)",
    ] = None
    seed: Annotated[Seed, "seed of the bootstrap"] = 0
    show: Annotated[CountFromZero, "wrong sections to print"] = 0
    own: Annotated[
        Path | None,
        "folder of reports (.txt) of your own, to count what is found in them beside; nothing of their text is written "
        "but headings of 20 reports and more",
    ] = None


def lines(header: Callable[[str], str], joint: str = " ", between: str = "\n\n") -> Callable[[Sections], str]:
    """A style: each section as header, ``joint`` and text, with ``between`` from one to the next."""
    return lambda sections: between.join(f"{header(name)}{joint}{text}" for name, text in sections.items())


def hospital(sections: Sections) -> str:
    """As MIMIC-CXR prints its reports: indented, wrapped at 79 columns, with a wet read and a signature."""
    body = []
    for name, text in sections.items():
        header = "REASON FOR EXAM" if name == "indication" else name.upper()
        body.append(
            textwrap.fill(f"{header}:  {text}", 78, initial_indent=" ", subsequent_indent=" ", break_on_hyphens=False)
        )
    head = "WET READ: ___ ___ ___ 5:12 PM\n   No acute process.\n" + "_" * 78 + "\n" + " " * 33 + "FINAL REPORT"
    tail = " NOTIFICATION:  Discussed with Dr. ___ at 3:00 p.m.\n\n Electronically signed by: ___"
    return "\n".join([head, " EXAMINATION:  CHEST (PA AND LAT)\n", "\n\n".join(body) + "\n", tail])


def listed(sections: Sections) -> str:
    """The impression as a numbered list on lines of its own, as many dictation systems write it."""
    parts = []
    for name, text in sections.items():
        items = re.split(r"(?<=[a-z]\.) (?=[A-Z])", clean_text(text)) if name == "impression" else [text]
        numbered = "\n".join(f" {number}.  {item}" for number, item in enumerate(items, 1))
        parts.append(f"{name.upper()}:\n\n{numbered}" if len(items) > 1 else f"{name.upper()}: {text}")
    return "\n\n".join(parts)


STYLES: dict[str, Callable[[Sections], str]] = {
    "IMPRESSION: text": lines(lambda name: f"{name.upper()}:"),
    "Impression: text": lines(lambda name: f"{name.title()}:", between="\n"),
    "IMPRESSION:, text on the next line": lines(lambda name: f"{name.upper()}:", "\n"),
    "IMPRESSION, no colon, on a line of its own": lines(
        lambda name: name.upper() if name in ("findings", "impression") else f"{name.upper()}:", "\n"
    ),
    "CONCLUSION: and HISTORY:": lines(
        lambda name: {"impression": "CONCLUSION:", "indication": "HISTORY:"}.get(name, f"{name.upper()}:")
    ),
    "IMPRESSION(S): and FINDINGS OF CHEST:": lines(
        lambda name: {"impression": "IMPRESSION(S):", "findings": "FINDINGS OF CHEST:"}.get(name, f"{name.upper()}:")
    ),
    "IMPRESSION AND RECOMMENDATION(S):, HISTORY/INDICATION(S):": lines(
        lambda name: {"impression": "IMPRESSION AND RECOMMENDATION(S):", "indication": "HISTORY/INDICATION(S):"}.get(
            name, f"{name.upper()}:"
        ),
        "\n",
    ),
    "one paragraph, IMPRESSION:": lines(lambda name: f"{name.upper()}:", between=" "),
    "one paragraph, Impression:": lines(lambda name: f"{name.title()}:", between=" "),
    "one paragraph, all in capitals": lambda sections: lines(lambda name: f"{name}:", between=" ")(sections).upper(),
    "wrapped, wet read, signature": hospital,
    NUMBERED: listed,
}
RENAMED = {style: {"history": "indication"} for style in STYLES if "HISTORY" in style}


def of_own(folder: Path) -> dict[str, object]:
    """Share of real reports with each section, and the frequent headings (a line up to its colon) of no section."""
    reports = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.rglob("*.txt"))]
    if not reports:
        raise errors.UserError(f"--own {folder} has no report (.txt) below it; name their folder")
    found, unknown = Counter[str](), Counter[str]()
    for report in reports:
        sections = split_sections(report)
        found.update(sections.keys())  # a mapping would be counts
        inside = "\n".join(sections.values())
        unknown.update({match[1] for match in re.finditer(r"^[ \t]*([A-Z][A-Z /&()-]{2,40}):", inside, re.MULTILINE)})
    return {
        "reports": len(reports),
        "with": {name or "no heading": count / len(reports) for name, count in found.most_common()},
        "headings_of_no_section": {name: count for name, count in unknown.most_common(30) if count >= 20},
    }


def plain(text: str) -> str:
    """White space as single spaces: layout is not what is compared."""
    return " ".join(text.split())


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="eval/sections.py", about=__doc__)
    require_writable(s.out.parent, "--out")
    path = s.reports or carried_file(REPORTS_ARCHIVE)
    if path is None:
        raise errors.UserError(
            f"--reports is missing: name {REPORTS_ARCHIVE}, or install torchxrayvision, which has it"
        )
    reports = openi_reports(path)[list(ORDER)].to_dict("records")
    truth = [{name: plain(report[name]) for name in ORDER if plain(report[name])} for report in reports]
    rows, hits = found_by_style(truth, s)
    last = [last_paragraph("\n\n".join(report.values())) == list(report.values())[-1] for report in truth if report]
    details = {
        "styles": rows,
        "reports": len(truth),
        "with": {name: sum(name in report for report in truth) for name in ORDER},
        "last_paragraph_without_headers": float(np.mean(last)),
        "impressions": cleaning([report["impression"] for report in truth if "impression" in report]),
    }
    if s.own is not None:
        details["own"] = of_own(s.own)
        print(details["own"])
    context = Context.of("eval/sections.py", s, inputs={"reports": {"name": path.name, "sha256": file_hash(path)}})
    write_result(
        s.out, metric="share of impressions found word for word, mean over styles of report", value=float(hits.mean()),
        ci=Bootstrap(seed=s.seed).mean(hits)["ci"], ci_method="95 % percentile, bootstrap by report", n=len(hits),
        context=context, details=details,
    )  # fmt: skip
    columns = ("all", "impression", "findings", "indication", "comparison")
    header = ["Style", "all four sections", *columns[1:], "invented"]
    cells = [[f"{100 * row[name]:.2f} %" for name in columns] for row in rows]
    lines_of = [[row["style"], *shares, str(row["sections_invented"])] for row, shares in zip(rows, cells, strict=True)]
    print(table(header, lines_of))
    print(details["impressions"], details["with"], details["last_paragraph_without_headers"])
    return 0


def found_by_style(truth: Sequence[Sections], s: Settings) -> tuple[list[dict[str, Any]], NDArray[np.float64]]:
    """How often each section is found by style, and for each impression the share of styles in which it is."""
    rows, hits, shown = [], [], 0
    for style, write in STYLES.items():
        right: dict[str, list[bool]] = {name: [] for name in (*ORDER, "all")}
        invented = 0
        for sections in truth:
            expected = {name: text.upper() if "capitals" in style else text for name, text in sections.items()}
            found = split_sections(write(sections))
            found = {RENAMED.get(style, {}).get(name, name): text for name, text in found.items()}
            if style == NUMBERED:  # the numbers are the style's: without them it must be the report's again
                for texts in (found, expected):
                    texts["impression"] = clean_text(texts.get("impression", ""))
            found = {name: plain(text) for name, text in found.items()}
            wrong = [name for name in ORDER if found.get(name, "") != expected.get(name, "")]
            for name in sections:
                right[name].append(name not in wrong)
            right["all"].append(not wrong)
            invented += sum(bool(found.get(name)) and name not in sections for name in ORDER)
            if wrong and shown < s.show:
                shown += 1
                for name in wrong:
                    print(f"{style}: {name}: {expected.get(name)!r}, found {found.get(name)!r}", file=sys.stderr)
        hits.append(right["impression"])
        rows.append(
            {
                "style": style,
                **{name: float(np.mean(values)) for name, values in right.items()},
                "impression_ci": Bootstrap(seed=s.seed).mean(right["impression"])["ci"],
                "sections_invented": invented,
            }
        )
    return rows, np.array(hits, dtype=float).mean(axis=0)


def cleaning(impressions: Sequence[str]) -> dict[str, Any]:
    """What ``clean_text`` leaves of impressions."""
    cleaned = [clean_text(text) for text in impressions]
    words = [len(text.split()) for text in cleaned]
    # A word that was not in the report would be two joined ones.
    joined = sum(
        bool(set(re.findall(r"\w+", after)) - set(re.findall(r"\w+", BLANKS.sub(" ", before))))
        for before, after in zip(impressions, cleaned, strict=True)
    )
    return {
        "with_blanks": sum(count_blanks(text) > 0 for text in impressions),
        "blanks": sum(count_blanks(text) for text in impressions),
        "blanks_left": sum(count_blanks(text) for text in cleaned),
        "half_words_left": sum(bool(HALF.search(text)) for text in cleaned),
        "nothing_left": sum(not text for text in cleaned),
        "with_joined_words": joined,
        "words_percentiles": {str(q): float(np.percentile(words, q)) for q in (5, 25, 50, 75, 95, 99, 100)},
    }


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/sections.py"))
