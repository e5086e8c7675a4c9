"""From a prompt or a short report back to the labels that it asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

from roentgen.prompts import vocabulary as v
from roentgen.prompts.labels import NO_FINDING, Labels
from roentgen.prompts.vocabulary import FINDINGS

_NOT_OF_THE_LUNG = (
    r"(?![- ](?:heart|ventric|atri|arm\b|shoulder|breast|subclavian|internal jugular|ij\b|picc|chest tube"
    r"|pectoral|hand))"
)
_BOTH = (
    r"bilateral(?:ly)?|bibasilar|bibasal|biapical"
    r"|both (?:lungs?|sides|bases|lower lobes|upper lobes|hemithoraces|lung \w+)"
    r"|left and right|right and left|(?:left|right) (?:\w+ )?(?:than|>) (?:the )?(?:left|right)"
)
_SIDE = re.compile(rf"\b(?:(?P<both>{_BOTH})|(?P<one>left|right){_NOT_OF_THE_LUNG})\b")
# "No change in the effusion" and "no longer" deny nothing; "no fibrotic change" does.
_NEGATION = re.compile(
    r"\b(?:no(?! longer\b| (?:(?!\w+(?:tic|ous)\b)\w+ ){0,2}(?:change|increase|decrease)\b)"
    r"|not(?! (?:\w+ ){0,2}changed\b)|without|neither|negative for|free of|clear of|absence of|rule out"
    r"|resolution of)\b"
)
_ABSENT = re.compile(
    r"\b(?:(?:not|no longer) (?:clearly |definitely )?(?:seen|identified|present|visible|visuali[sz]ed"
    r"|evident|detected|demonstrated|appreciated|noted)|absent|excluded|ruled out"
    r"|(?:has|have) (?:completely )?resolved)\b"
)
_SCOPE_END = re.compile(
    r"\b(?:but|however|although|except|with(?!out)|there (?:is|are))\b"
    r"|(?:,| and)(?: and)? (?=(?:a|an|the|left|right|bilateral|small|tiny|moderate|large|mild|severe|patchy"
    r"|new|stable|persistent|unchanged|possible|probable)\b)"
)
_PIECE_END = re.compile(r",|\b(?:and|with|but|or|plus)\b")
_AGE = re.compile(
    r"\b(?P<years>\d{1,3})(?:\.\d+)?[- ]?(?:years?|yrs?|yo|y/o|y)\b"
    r"|\b(?P<months>\d{1,2})[- ]months?\b|\b(?P<with_sex>\d{1,3}) ?(?:m|f)\b|\baged? (?P<aged>\d{1,3})\b"
)


@cache
def _finding_pattern() -> re.Pattern[str]:
    groups = [f"(?P<f{i}>{finding.pattern})" for i, finding in enumerate(FINDINGS.values())]
    return re.compile(rf"\b(?:(?P<normal>{v.NORMAL_PATTERN})|{'|'.join(groups)})\b")


def parse(text: str) -> Labels:
    """The labels that a prompt or a short report asks for, as far as this vocabulary goes.

    Negated findings are left out; "No Finding" is given only when the text calls the chest normal or clear
    and names no other finding. A finding mentioned on both sides is bilateral. Words such as "elderly" or
    "child" give no age. Rules, not a language model: "A and B on the left" gives the side to B alone, and a
    list after "no" counts as denied up to its end, to "but" or "with", or to an item that starts with an
    article, a side or a size.
    """
    lowered = re.sub(r"[\u2010-\u2015]", "-", text.lower())
    lowered = re.sub(r"[ \t]+", " ", lowered)
    found: dict[str, set[str]] = {}
    normal = bool(re.fullmatch(r"\W*normal\W*", lowered))
    for sentence in re.split(r"[.;:!?]+(?=\s|$)|\n+", lowered):
        for name, side in _parse_sentence(sentence):
            if name == NO_FINDING:
                normal = True
            else:
                found.setdefault(name, set()).update({side} if side else ())
    sides = {
        name: next(iter(which)) if len(which) == 1 else "bilateral"
        for name, which in found.items()
        if which and FINDINGS[name].can_have_side
    }
    findings = tuple(found) or ((NO_FINDING,) if normal else ())
    return Labels(findings, sides, _parse_view(lowered), *_parse_patient(lowered))


def _parse_sentence(sentence: str) -> Iterator[tuple[str, str | None]]:
    """Findings of one lower-case sentence that are not denied, each with its side."""
    names = list(FINDINGS)
    matches = list(_finding_pattern().finditer(sentence))
    denied = _denied_spans(sentence, [match.span() for match in matches if match["normal"]])
    for i, match in enumerate(matches):
        if match["normal"]:
            yield NO_FINDING, None
            continue
        if any(start <= match.start() < end for start, end in denied):
            continue
        start = matches[i - 1].end() if i else 0
        stop = matches[i + 1].start() if i + 1 < len(matches) else len(sentence)
        if i and (cut := _PIECE_END.search(sentence, start, match.start())):
            start = cut.end()  # what stands before the comma belongs to the finding before
        side = _side(sentence[start : match.end()])
        if side is None:
            cut = _PIECE_END.search(sentence, match.end(), stop)
            # With one finding in the sentence, a side anywhere in it can be nobody else's.
            end = cut.start() if cut and len(matches) > 1 else stop
            side = _side(sentence[match.end() : end])
        group = match.lastgroup or ""
        yield names[int(group[1:])], side


def _side(piece: str) -> str | None:
    sides = {"bilateral" if match["both"] else match["one"] for match in _SIDE.finditer(piece)}
    return None if not sides else sides.pop() if len(sides) == 1 else "bilateral"


def _denied_spans(sentence: str, normal: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches of the sentence in which findings are said to be absent."""
    spans = []
    for cue in _NEGATION.finditer(sentence):
        if any(start <= cue.start() < end for start, end in normal) or _ABSENT.match(sentence, cue.start()):
            continue
        end = len(sentence)
        for cut in _SCOPE_END.finditer(sentence, cue.end()):
            if cut.group()[0] in ", " and re.search(r"\b(?:or|nor)\b", sentence[cut.end() :]):
                continue  # "no effusion, left consolidation or nodule": the list goes on
            end = cut.start()
            break
        spans.append((cue.end(), end))
    for cue in _ABSENT.finditer(sentence):
        before = [cut.end() for cut in re.finditer(r",|\b(?:but|with)\b", sentence[: cue.start()])]
        spans.append((before[-1] if before else 0, cue.start()))
    return spans


def _parse_view(text: str) -> str | None:
    if re.search(r"\b(?:ap\b|antero-?posterior|portable|supine|bedside)", text):
        return "AP"
    return "PA" if re.search(r"\b(?:pa\b(?! catheter)|postero-?anterior)", text) else None


def _parse_patient(text: str) -> tuple[str | None, float | None]:
    sex = None
    if re.search(r"\b(?:woman|female|girl|lady)\b|\b\d{1,3} ?(?:yo |y/o |year old )?f\b", text):
        sex = "F"
    elif re.search(r"\b(?:man|male|boy|gentleman)\b|\b\d{1,3} ?(?:yo |y/o |year old )?m\b", text):
        sex = "M"
    match = _AGE.search(text)
    if match is None:
        return sex, None
    if match["months"]:
        return sex, float(match["months"]) / 12
    age = float(match["years"] or match["with_sex"] or match["aged"])
    return sex, age if age <= v.OLDEST else None
