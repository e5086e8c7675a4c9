"""Radiology reports as hospitals write them: find the sections, take the impression, clean the text.

A report is plain text. Its section headers may be in upper or title case, on a line of their own, at the start of a
line or in the middle of a paragraph, with or without a colon; this module knows headers by name (``HEADERS``), so that
"Lines and tubes: ..." inside the findings stays there. A known name may be joined to others ("FINDINGS/ IMPRESSION:",
"IMPRESSION AND FOLLOW-UP(S):") and say of what it is ("IMPRESSION OF CHEST:"): up to its colon it is one heading. How
often it is right is measured by ``eval/sections.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

FINAL, ADDENDUM = "final report", "addendum"

HEADERS: dict[str, tuple[str, ...]] = {
    "impression": (
        *("impression", "impressions", "conclusion", "conclusions", "opinion", "final impression"),
        *("provisional findings impression", "overall impression", "preliminary impression"),
        *("impression and plan", "impression/plan", "radiological diagnosis", "radiologic diagnosis"),
        *("interpretation", "interpretations"),
    ),
    "findings": (
        *("findings", "finding", "radiographic findings", "radiological findings", "imaging findings"),
        *("chest findings", "observations", "report findings"),
    ),
    "indication": (
        *("indication", "indications", "clinical indication", "clinical indications", "indication for study"),
        *("indication for exam", "indication for examination", "reason for exam", "reason for examination"),
        *("reason for this exam", "reason for this examination", "reason for study", "reason for the study"),
        *("reason", "reason for visit", "clinical question", "indications for exam"),
    ),
    "history": (
        *("history", "clinical history", "patient history", "medical history", "clinical information", "clinical data"),
        *("clinical info", "clinical statement", "clinical details", "clinical background", "brief history"),
        *("underlying medical condition", "history of present illness", "clinical diagnosis", "admitting diagnosis"),
    ),
    "technique": (
        *("technique", "techniques", "views", "view", "procedure", "procedure comments", "number of views"),
        *("projection", "image quality", "radiation dose", "dose"),
    ),
    "comparison": (
        *("comparison", "comparisons", "comparison study", "comparison studies", "comparison exam", "comparison exams"),
        *("comparison examination", "comparison film", "comparison films", "comparison date", "compared to"),
        *("comparison to", "comparison with", "comparison is made to", "reference exam", "prior study"),
        *("prior studies", "prior exam", "prior exams", "prior examination", "previous study", "previous studies"),
    ),
    "examination": (
        *("examination", "exam", "study", "type of examination", "type of exam", "exam type", "study type"),
        *("exam date", "date of exam", "date of examination", "study date", "examination date"),
    ),
    "recommendation": ("recommendation", "recommendations", "recommend"),
    "notification": ("notification", "notifications", "communication", "critical results"),
    "wet read": ("wet read", "wet read version", "preliminary report", "preliminary read", "prelim read"),
    ADDENDUM: ("addendum", "addenda", "final addendum", "addendum report"),
    FINAL: ("final report", "final reports"),
    "narrative": ("narrative", "report text", "body"),
    "summary": ("summary", "end of impression", "accession number"),  # CheXpert Plus: a code of urgency, and the end
    "signature": (
        *("dictated by", "signed by", "electronically signed by", "reviewed by", "approved by", "transcribed by"),
        *("interpreted by", "verified by", "attending radiologist", "radiologist", "resident"),
    ),
}
"""Normalised section name -> the headers that start it, lower case; plural notes ("(s)") may follow each word."""
BOTH = "findings and impression"

# Headers that are told from prose by their capitals and the colon alone, in the middle of a sentence too.
_CORE = frozenset(
    {"impression", "impressions", "conclusion", "findings", "indication", "history", "technique", "comparison"}
    | {"wet read", "notification", "recommendation", "recommendations", ADDENDUM}
)
# "Other findings:" is a heading within the findings.
_WITHIN = r"(?:other|additional|incidental|associated|ancillary|significant|bon[ey]|osseous|cardiac|lung|pleural|these)"
_NO_COLON = frozenset({"impression", "findings", BOTH, ADDENDUM, FINAL, "wet read"})
_NAME = {header: name for name, headers in HEADERS.items() for header in headers}


def _alternatives(endings: Iterable[str] = tuple(_NAME)) -> str:
    """A pattern of all headers that tries a letter only once, however many of them begin alike; the longest first."""
    below: dict[str, list[str]] = {}
    for ending in sorted(endings):
        below.setdefault(ending[:1], []).append(ending[1:])
    may_end = below.pop("", None) is not None
    ways = [(r"[ \t]+" if first == " " else re.escape(first)) + _alternatives(rest) for first, rest in below.items()]
    return f"(?:{'|'.join(ways)}){'?' if may_end else ''}" if ways else ""


# "PORTABLE AP CHEST:" and the like stand for the word FINDINGS.
_VIEW_WORD = (
    r"(?:portable|upright|supine|erect|semi-?(?:upright|erect|supine)|single|frontal|lateral|ap|pa|and|one|two|three|[1-3]"
    r"|views?|of|the|chest|thorax|radiographs?|radiographic|radiography|x-?rays?|cxr|films?|bedside|in)"
)
_JOIN = r"[ \t]*(?:[/&+]|\band\b)[ \t]*"
_WORDS = r"(?-i:[A-Z][A-Za-z]*(?:[ -][A-Z][A-Za-z]*){0,2})"  # of a heading that is not known by name
_NAMED = rf"(?:{_alternatives()})(?:[ \t]?\(s\))?"
_TAIL = r"(?:[ \t]+(?:as[ \t]+follows|in[ \t]+brief|(?:as[ \t]+)?compared[ \t]+(?:with|to)[ \t]+prior(?:[ \t]+\w+)?))"
_COLON = r"(?=[ \t*_]{0,3}:)"
_HEADER = re.compile(
    rf"(?<![A-Za-z0-9/&-])(?P<name>{_NAMED}(?:{_JOIN}{_WORDS}(?:\(s\))?)+{_COLON}"
    rf"|{_NAMED}(?:(?:{_JOIN}|[ \t]*,[ \t]*|[ \t]-[ \t]){_NAMED})*)(?![A-Za-z])"
    rf"(?:(?:[ \t,]+(?:of|for|on|in))?(?:[ \t,/&()-]+{_VIEW_WORD}){{1,9}}\)?{_COLON}|{_TAIL}{_COLON})?"
    r"(?P<note>[ \t]*\((?!s\))[^()\n]{1,40}\))?(?P<mark>[ \t*_]{0,3}:|[ \t]*[-–—](?=[ \t\n])|(?=\s|$))",
    re.IGNORECASE,
)
_ANY = rf"(?:{_VIEW_WORD}|study|examination)"  # which are headings of their own behind another
_VIEW_HEADER = re.compile(
    rf"^[ \t]*(?=[^:\n]*(?:chest|cxr|radiograph))(?P<name>{_ANY}(?:[ \t,/&()-]+{_ANY}){{0,11}}\)?)[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)

_SENTENCE_END = re.compile(r"(?:[.!?;:)\]]|_{2,}|X{3,})[*\"']{0,2}\s*$")


def split_sections(report: str) -> dict[str, str]:
    """The sections of a report: normalised lower-case name (see ``HEADERS``) -> text, in the report's order.

    Text before the first header is under "". A section "FINDINGS AND IMPRESSION" counts as ``findings`` and as
    ``impression``, each where the report has none of its own. Of several sections of one name the last that is not
    blank stands, those of an addendum before all others. Line breaks within a section are kept; blank sections are
    left out.
    """
    text = report.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ")
    starts = _starts(text)
    found: dict[str, tuple[bool, str]] = {}
    addendum = False
    bounds = [*starts, (len(text), len(text), "")]
    pieces = [("", 0, starts[0][0] if starts else len(text))]
    pieces += [(name, end, bounds[number + 1][0]) for number, (_, end, name) in enumerate(starts)]
    for name, begin, end in pieces:
        addendum = name == ADDENDUM or (addendum and name != FINAL)
        key = "" if name == FINAL else name
        content = text[begin:end].strip(" \t\n*#")
        if content and (addendum or not found.get(key, (False, ""))[0]):
            found.pop(key, None)  # so that the order is that of the sections that stand
            found[key] = (addendum, content)
    sections = {name: content for name, (_, content) in found.items()}
    both = sections.pop(BOTH, None)
    if both is not None:
        for name in ("findings", "impression"):
            sections.setdefault(name, both)
    return sections


def _starts(text: str) -> list[tuple[int, int, str]]:
    """(where the header begins, where its text begins, section name) of every header, in order."""
    shouted = not any(character.islower() for character in text)  # all capitals: capitals mark nothing
    starts: list[tuple[int, int, str]] = []
    match = _HEADER.search(text)
    while match is not None:
        name = _section(match["name"])
        after = starts[-1][1] if starts else 0  # a header right after a header: "FINAL REPORT EXAMINATION: ..."
        if _is_header(text, match, name, after=after, shouted=shouted):
            starts.append((match.start(), match.end(), name))
            match = _HEADER.search(text, match.end())
        else:  # the next may begin within this one: "right lateral chest FINDINGS: ..."
            match = _HEADER.search(text, match.start() + 1)
    views = [match for match in _VIEW_HEADER.finditer(text) if _words_follow(text, match.end(), starts)]
    for match in views:
        before = [name for start, _, name in starts if start < match.start()]
        inside = any(start <= match.start("name") < end for start, end, _ in starts)
        if not inside and not {"findings", "impression", BOTH} & set(before):
            starts.append((match.start(), match.end(), "findings"))
            starts.sort()
    return starts


def _parts(written: str) -> list[str]:
    """The names that a heading joins, lower case and without plural notes; one where it is a name as a whole."""
    key = re.sub(r"[ \t]+", " ", re.sub(r"[ \t]?\(s\)", "", written.lower()))
    return [key] if key in _NAME else [part.strip() for part in re.split(rf"{_JOIN}|,|[ \t]-[ \t]", key)]


def _section(written: str) -> str:
    """The section that a heading starts: the impression or findings if among its names, else its first."""
    named = [_NAME[part] for part in _parts(written) if part in _NAME]
    if {"findings", "impression"} <= set(named):
        return BOTH
    return next((name for name in ("impression", "findings") if name in named), named[0])


def _is_header(text: str, match: re.Match[str], name: str, *, after: int, shouted: bool) -> bool:
    written = match["name"]
    before = text[: match.start()]
    line = before.rpartition("\n")[2]
    at_line = not line.strip(" \t*#>")
    capitals = written.isupper()
    if match["mark"].strip(" \t*_") != ":":
        return _is_bare_header(text, match, name, at_line=at_line, capitals=capitals and not shouted)
    if at_line:
        if written[0].isupper():
            return True
        previous = before.rstrip(" \t*#>")
        return not previous or previous.endswith("\n\n") or bool(_SENTENCE_END.search(previous))
    if not written[0].isupper() or line.rstrip(" \t").endswith(("(", "/", '"')):
        return False
    if _SENTENCE_END.search(line) or not before[after:].strip(" \t\n*#"):
        return True
    if capitals and not shouted and " " in written.strip():
        return True  # "... CLINICAL HISTORY: ..."
    return bool(_CORE & set(_parts(written))) and not re.search(rf"\b{_WITHIN}\s*$", line, re.IGNORECASE)


def _is_bare_header(text: str, match: re.Match[str], name: str, *, at_line: bool, capitals: bool) -> bool:
    """A header without a colon: a line of its own, or in capitals at the start of a line."""
    if name not in _NO_COLON or not match["name"][0].isupper():
        return False
    alone = not text[match.end() :].partition("\n")[0].strip(" \t*_#")
    if name == FINAL:
        return match["name"].isupper() or (at_line and alone)
    return at_line and (alone or capitals)


def _words_follow(text: str, begin: int, starts: Sequence[tuple[int, int, str]]) -> bool:
    """Whether three words follow before the next header: "CHEST: 3/16/2012" is a date, not findings."""
    end = min((start for start, _, _ in starts if start >= begin), default=len(text))
    return len(re.findall(r"[A-Za-z]{2,}", text[begin:end])) >= 3


def pick_text(report: str, wanted: Sequence[str] = ("impression",)) -> str:
    """The first of the ``wanted`` sections of which ``clean_text`` leaves something, as written; "" if none.

    ``last paragraph`` may be one of the wanted: see ``last_paragraph``.
    """
    sections = split_sections(report)
    for name in wanted:
        text = last_paragraph(report) if name == "last paragraph" else sections.get(name, "")
        if clean_text(text):
            return text
    return ""


def last_paragraph(report: str) -> str:
    """The last paragraph of the last section with clinical content: the reading of a report without headers.

    MIMIC-CXR has some thousand reports of a single header or none, whose last paragraph is what others call the
    impression. Wet reads, notifications, recommendations and signatures are not content.
    """
    skipped = {"wet read", "notification", "recommendation", "summary", "signature", ADDENDUM}
    texts = [text for name, text in split_sections(report).items() if name not in skipped]
    paragraphs = [part.strip() for part in re.split(r"\n[ \t]*\n", texts[-1])] if texts else []
    paragraphs = [part for part in paragraphs if clean_text(part)]
    return paragraphs[-1] if paragraphs else ""


_BLANK = (
    r"(?:_{2,}|(?<![A-Za-z])X{3,}(?![A-Za-z])|\[\*\*(?s:.*?)\*\*\]|\*\*[A-Z][A-Z-]{2,}(?:\[[^\]\n]*\])?"
    r"|(?i:[\[<](?:date|time|name|person|patient|doctor|hospital|location|phone|id|age|redacted|removed)[\]>]))"
)
BLANKS = re.compile(_BLANK)
"""De-identification's marks: ``___`` (MIMIC-CXR), ``XXXX`` (Open-i), ``[**...**]`` (MIMIC-III), ``[DATE]`` ..."""
_RUN = rf"{_BLANK}(?:[ \t]*(?:[-,/]|(?i:and|or|to)\b)?[ \t]*{_BLANK})*(?:'s\b)?"
_STOP = r"(?=\s*(?:$|[.,;:)]|(?i:and|or|but|with|there|which|by|is|are|was|were|has|at|in|no|the|as|for)\b))"
# What a blank leaves dangling goes with it: an age without its number, a time, a doctor's title, "compared to" or
# "since" without the date. A preposition before a noun that stays ("on XXXX view") stays too.
_DANGLING = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_RUN}(?i:[ \t-]*(?:years?|yrs?|y)[ \t./-]*(?:olds?|o)\b\.?)",
        rf"(?i:\b(?:at|on)[ \t]+)?{_RUN}[ \t]*(?i:[ap]\.?m\b\.?|hours\b|hrs\b)",
        rf"(?i:\b(?:with|to|by|from)[ \t]+(?:dr|drs|doctor|mr|mrs|ms)\b\.?)[ \t]*{_RUN}",
        # Half a word: "x-XXXX", "XXXX-sided", "Port-A-Cath" as "XXXX-A-XXXX"; a side and a whole word stay.
        rf"(?i:(?<=\bleft)|(?<=\bright))-{_RUN}(?:-sided\b)?",
        rf"{_RUN}(?i:(?:-(?:a|of|the|and|sided))+)-?(?:{_RUN})?",
        rf"(?<![\w-])(?:[A-Za-z]+-)+{_RUN}",
        rf"(?<=\w)-{_RUN}|{_RUN}-(?=\w)",
        rf",?(?i:[ \t]*\b(?:(?:as|when)[ \t]+)?(?:compared|in comparison)[ \t]+(?:to|with)[ \t]+){_RUN}{_STOP}",
        rf"(?i:\b(?:dated|since|from|until|as of|on|at)[ \t]+){_RUN}{_STOP}",
        rf"(?i:,?[ \t]*\b(?:and|or)[ \t]+){_RUN}(?=\s*(?:$|[.,;:)]))",
        _RUN,
    )
)
_ITEM = re.compile(
    r"(?P<before>^[ \t]*|[.;:!?)]?[ \t]+)[#(]?(?P<number>\d{1,2})[.)],?(?P<space>[ \t]*)"
    r"(?=[A-Za-z_\[<*\"']|(?<=\s)\d)(?!(?:cm|mm)\b)",
    re.MULTILINE,
)
_BULLET = re.compile(r"^[ \t]*(?:[-*•·‣▪◦–—]+)[ \t]+", re.MULTILINE)


def clean_text(text: str) -> str:
    """Text of a report as one line that reads naturally, for a text encoder.

    De-identification blanks (``BLANKS``) go, and what they leave dangling: "compared to ___", "___-year-old",
    "Dr. ___", what a hyphen joins to one ("x-XXXX"), empty brackets, doubled punctuation. Words are never joined, and
    no other word is touched: a word that de-identification took ("no XXXX or effusion") cannot be guessed. List numbers
    and bullets go; an item that had no full stop gets one. "" where nothing but marks is left.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ")
    text = _without_list_marks(text)
    text = re.sub(r"\s+", " ", text).strip()  # before the blanks: "compared to\n___"
    for pattern in _DANGLING:
        text = pattern.sub(" ", text)
    before = None
    while text != before:
        before = text
        text = re.sub(r"[(\[][\s,;:.-]*[)\]]", " ", text)  # brackets without content
        text = re.sub(r"\s+", " ", text)
        text = re.sub(r" (?=[.,;:!?)](?:\s|$|[.,;:)]))", "", text)  # not before ".5 cm"
        text = re.sub(r"(?<=\() | (?=\))", "", text)
        text = re.sub(r"[,;:]+(?=[.!?](?:\s|$))", "", text)  # ",." is "."
        text = re.sub(r"([.,;:!?])(?:\s*\1)+(?=\s|$)", r"\1", text)
        text = re.sub(r"(?<=[.!?])\s*[,;:](?=\s|$)", "", text)
        text = re.sub(r"([,;:])\s*[,;:](?=\s|$)", r"\1", text)
        text = re.sub(r"^(?:[\s.,;:!?)\]*#_/-]+)(?=[^\d]|$)", "", text)
        text = re.sub(r"[\s,;:*#_/-]+$", "", text)
    return text.strip() if re.search(r"[^\W_]", text) else ""


def _without_list_marks(text: str) -> str:
    """Without list numbers and bullets; the item before each ends with a full stop."""
    parts: list[str] = []
    position, last = 0, 0
    for match in _ITEM.finditer(text):
        number, sign = int(match["number"]), match["before"].strip()
        at_line = text[: match.start("number")].rpartition("\n")[2].strip(" \t#(") == ""
        capital = text[match.end()].isupper()
        # In the middle of a line a number starts an item after the end of a sentence, or where it counts on from the
        # item before; "on image 2. Left lung ..." does neither.
        counts_on = last > 0 and number == last + 1
        if text[match.end()].isdigit():
            # "1.  3 cm mass", but "1. 8 mm" alone may be 1.8 mm with a stray blank.
            follows = re.search(rf"^[ \t]*[#(]?{number + 1}[.)][ \t]", text[match.end() :], re.MULTILINE)
            if not (at_line and (len(match["space"]) > 1 or counts_on or follows)):
                continue
        if not (at_line or (sign and (capital or counts_on)) or (counts_on and capital)):
            continue
        parts += [_ended(text[position : match.start()] + sign), " "]
        position, last = match.end(), number
    parts.append(text[position:])
    text = "".join(parts)
    pieces = _BULLET.split(text)
    return "\n".join([*(_ended(piece) for piece in pieces[:-1]), pieces[-1]])


def _ended(text: str) -> str:
    """``text`` with a full stop unless it is blank or ends with punctuation."""
    bare = text.rstrip()
    return text if not bare or bare[-1] in ".,;:!?" else f"{bare}. "


def count_blanks(text: str) -> int:
    """Number of de-identification blanks in ``text``; neighbours count one by one."""
    return len(BLANKS.findall(text))
