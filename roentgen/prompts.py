"""Prompts: from labels to report-like text (``compose``), back again (``parse``), and files of prompts.

The training text of every recipe is made by ``compose``; ``parse`` reads the findings that a prompt asks for,
so that a generated image can be judged against them. Sides are the patient's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from roentgen import vocabulary as v
from roentgen.errors import UserError
from roentgen.prompt_files import PromptRecord, read_prompts
from roentgen.vocabulary import FINDINGS, Finding, vocabulary, words

__all__ = [
    "FINDINGS",
    "Finding",
    "Labels",
    "PromptRecord",
    "compose",
    "labels_from_row",
    "parse",
    "read_prompts",
    "vocabulary",
    "words",
]

NO_FINDING = "No Finding"
MAX_WORDS = 60
"""``compose`` stays below this many words, which leaves a 77-token text encoder room for every one."""


@dataclass(frozen=True)
class Labels:
    """What is known of an image, or asked of one.

    ``findings`` are names in ``FINDINGS``; ``sides`` gives left, right or bilateral for some of them
    (patient's side); ``view`` is PA or AP, ``sex`` M or F, ``age`` in years; None is unknown.
    """

    findings: tuple[str, ...] = ()
    sides: dict[str, str] = field(default_factory=dict)
    view: str | None = None
    sex: str | None = None
    age: float | None = None


def labels_from_row(row: Mapping[Any, Any]) -> Labels:
    """The labels of one manifest row; absent and blank columns are unknown.

    Raises UserError on a value that the column cannot hold.
    """

    def value(column: str) -> str:
        # Through text, because blanks come as "", None, NaN and pandas.NA, and ones as 1, 1.0, "1" and True.
        text = str(row.get(column, "")).strip()
        return "" if text.lower() in {"", "nan", "none", "<na>", "nat"} else text

    def choice(column: str, allowed: tuple[str, ...]) -> str | None:
        text = value(column)
        if text and text not in allowed:
            raise UserError(f"manifest column {column!r} holds {text!r}; write {', '.join(allowed)} or leave it blank")
        return text or None

    flags = {name: choice(name, ("1", "0", "1.0", "0.0", "True", "False")) for name in FINDINGS}
    present = [name for name, flag in flags.items() if flag in {"1", "1.0", "True"}]
    # Other findings refute "No Finding"; the text must not say both.
    findings = tuple(name for name in present if name != NO_FINDING) or tuple(present)
    sides = {
        name: side for name in findings if (side := choice(f"{name}_side", ("left", "right", "bilateral"))) is not None
    }
    try:
        age = float(value("age")) if value("age") else None
    except ValueError:
        raise UserError(
            f"manifest column 'age' holds {value('age')!r}; write years as a number or leave it blank"
        ) from None
    return Labels(findings, sides, choice("view", ("PA", "AP")), choice("sex", ("M", "F")), age)


# --- from labels to text ---------------------------------------------------------------------------------


def compose(labels: Labels, rng: random.Random, *, complete: bool = False) -> str:
    """A random report-like text of the labels, below ``MAX_WORDS`` words.

    Varied: order, synonyms, omitted view, sex, age and side; one text in three is the bare findings; one in
    four of several findings names only some of them; fewer than one in ten denies a finding that is not among
    the labels (blank counts as absent), and one finding in ten gets a severity or size word, which says
    nothing, because no label tells it. With ``complete`` everything that the labels say is in the text and
    nothing else, and ``parse`` gives the labels back (age in whole years; below one year as the word
    "infant"). The same ``rng`` state gives the same text.

    Raises ValueError for a finding that is not in ``FINDINGS``.
    """
    if unknown := [name for name in labels.findings if name not in FINDINGS]:
        raise ValueError(f"unknown finding {unknown[0]!r}; known are {', '.join(FINDINGS)}")
    names = _choose_findings(labels, rng, complete=complete)
    items = _phrases(names, labels, rng, complete=complete)
    bare = bool(items) and not complete and rng.random() < 0.35
    if bare:
        return _casing(_listed(items, rng), rng, lower=0.6, stop=0.3)

    view = patient = ""
    if labels.view in v.VIEWS and (complete or rng.random() < 0.7):
        view = _usual(v.VIEWS[labels.view], rng)
    elif rng.random() < 0.4:
        view = rng.choice(v.PLAIN_VIEWS)
    if complete or rng.random() < 0.6:
        patient = _patient(labels, rng, complete=complete)
    normal = names == [NO_FINDING]

    form = rng.random()
    if view and patient and items and form < 0.2:
        of_whom = f"{_article(patient)} {patient}"
        listed = _listed([rng.choice(v.NORMAL_NOUNS)] if normal else items, rng)
        sentences = [rng.choice(v.FLOWS).format(view=view, patient=of_whom, items=listed)]
    elif items and form < 0.35:
        head = [part for part in (view, patient) if part]
        rng.shuffle(head)
        sentences = [", ".join([*head, *items] if rng.random() < 0.6 else [*items, *head])]
    else:
        head = [part for part in (view, patient) if part]
        rng.shuffle(head)
        body = _sentences(items, normal, rng)
        sentences = body + head if rng.random() < 0.2 else head + body
    if items and not complete and rng.random() < 0.1:
        sentences += _denials(labels, rng)
    text = ". ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences if sentence)
    if len(text.split()) >= MAX_WORDS:
        # Only with a dozen findings or more: the tersest form, nothing dropped.
        terse = [_with_side(FINDINGS[name], labels.sides.get(name), None) for name in names]
        text = ", ".join([part for part in (view, patient) if part][: 2 if complete else 0] + terse)
    return _casing(text or rng.choice(v.PLAIN_VIEWS), rng, lower=0.2, stop=0.85)


def _choose_findings(labels: Labels, rng: random.Random, *, complete: bool) -> list[str]:
    """The findings that the text will name, in the order it will name them."""
    names = [name for name in dict.fromkeys(labels.findings) if name != NO_FINDING]
    if not names:
        return [NO_FINDING] if labels.findings else []
    if not complete:
        names = [name for name in names if not v.NARROWER.get(name, frozenset()) & set(names)]
    rng.shuffle(names)
    if len(names) > 1 and not complete and rng.random() < 0.25:
        names = names[: rng.randint(1, len(names) - 1)]
    return names


def _phrases(names: Sequence[str], labels: Labels, rng: random.Random, *, complete: bool) -> list[str]:
    """One noun phrase a finding, side and qualifier included."""
    if list(names) == [NO_FINDING]:
        return [_usual(v.NORMAL_NOUNS, rng, first=0.3)]
    phrases = {}
    for name in names:
        finding = FINDINGS[name]
        side = labels.sides.get(name) if complete or rng.random() < 0.85 else None
        phrase = _with_side(finding, side, rng)
        if finding.qualifiers and not complete and rng.random() < 0.1:
            phrase = f"{rng.choice(finding.qualifiers)} {phrase}"
        phrases[name] = phrase
    same_side = labels.sides.get("Atelectasis") in {None, labels.sides.get("Effusion")}
    both_named = {"Effusion", "Atelectasis"} <= phrases.keys()
    if both_named and same_side and not complete and rng.random() < 0.25:
        phrases["Effusion"] = v.ADJACENT.format(first=phrases["Effusion"])
        del phrases["Atelectasis"]
    return list(phrases.values())


def _with_side(finding: Finding, side: str | None, rng: random.Random | None) -> str:
    """A noun phrase for the finding, with its side if it can have one; the plainest form without ``rng``."""
    which = 0
    if rng is not None and rng.random() < 0.5:
        which = rng.randrange(len(finding.synonyms))
    noun = finding.synonyms[which]
    if side is None or not finding.can_have_side:
        return noun
    if side == "bilateral":
        noun = finding.plurals[which] or noun
        forms = v.BOTH_SIDES + (v.BOTH_LUNGS if finding.in_lung else ()) + (v.BOTH_BASES if finding.base else ())
    else:
        forms = v.ONE_SIDE + (v.ONE_LUNG if finding.in_lung else ()) + (v.ONE_BASE if finding.base else ())
    form = forms[0] if rng is None else _usual(forms, rng)
    return form.format(noun=noun, side=side, base=finding.base)


def _sentences(items: list[str], normal: bool, rng: random.Random) -> list[str]:
    """The findings as one sentence, or as one each."""
    if not items:
        return []
    if normal:
        return [rng.choice(v.NORMAL_SENTENCES) if rng.random() < 0.3 else items[0]]
    groups = [[item] for item in items] if rng.random() < 0.4 else [items]
    return [rng.choice(v.LEADS).format(items=_listed(group, rng), there=_there_is(group[0])) for group in groups]


def _denials(labels: Labels, rng: random.Random) -> list[str]:
    """One sentence that says what is not there."""
    present = set(labels.findings)
    absent = [name for name in v.DENIABLE if name not in present]
    if present & v.OPAQUE:
        absent = [name for name in absent if name not in {"Consolidation", "Edema"}]
    if "Cardiomegaly" not in present and (not absent or rng.random() < 0.3):
        return [rng.choice(v.HEART_NORMAL)]
    chosen = rng.sample(absent, min(len(absent), rng.choice((1, 1, 2))))
    if not chosen:
        return []
    return [rng.choice(v.DENIALS).format(" or ".join(rng.choice(v.DENIABLE[name]) for name in chosen))]


def _patient(labels: Labels, rng: random.Random, *, complete: bool) -> str:
    """ "54-year-old woman", "elderly man", "infant"; "" when neither sex nor age is known."""
    sex = labels.sex if labels.sex in {"M", "F"} else None
    age = labels.age if labels.age is not None and 0 <= labels.age < v.OLDEST + 1 else None
    people = v.CHILDREN if age is not None and age < v.BOY_BELOW else v.ADULTS
    if not complete and age is not None and rng.random() < 0.15:
        age = None
    elif not complete and sex and rng.random() < 0.1:
        sex = None
    person = rng.choice(people[sex])
    if age is None:
        return person if sex else ""
    word = ""
    if age < v.INFANT_BELOW:
        word = "infant"
    elif age < v.CHILD_BELOW:
        word = "child"
    elif age >= v.ELDERLY_FROM:
        word = "elderly"
    if word and (age < 1 or (not complete and rng.random() < 0.25)):
        return v.AGE_WORDS[word].format(person=person, sex=v.SEX_WORDS[sex])
    return f"{rng.choice(v.YEARS_OLD).format(age=int(age))} {person}"


def _usual(choices: Sequence[str], rng: random.Random, *, first: float = 0.5) -> str:
    """The first choice with probability ``first``, else any of them."""
    return choices[0] if rng.random() < first else rng.choice(choices)


def _listed(items: Sequence[str], rng: random.Random) -> str:
    if len(items) == 1 or rng.random() < 0.4:
        return ", ".join(items)
    return ", ".join(items[:-1]) + v.AND + items[-1]


@cache
def _nouns(*, plural: bool) -> re.Pattern[str]:
    pairs = [pair for f in FINDINGS.values() for pair in zip(f.synonyms, f.plurals, strict=True) if pair[1]]
    return re.compile(r"\b(?:" + "|".join(re.escape(pair[plural]) for pair in pairs) + r")\b")


def _there_is(phrase: str) -> str:
    """ "there are", "there is a" or "there is", as the noun of the phrase wants it."""
    if _nouns(plural=True).search(phrase):
        return "there are"
    return "there is " + _article(phrase) if _nouns(plural=False).search(phrase) else "there is"


def _article(phrase: str) -> str:
    return "an" if re.match(r"[aeiou]|8|1[18]\b|AP\b", phrase) else "a"


def _casing(text: str, rng: random.Random, *, lower: float, stop: float) -> str:
    text = text[:1].upper() + text[1:] if rng.random() >= lower else text.lower()
    return text + "." if rng.random() < stop else text


# --- from text to labels ---------------------------------------------------------------------------------

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


if __name__ == "__main__":
    import sys

    from roentgen.errors import run
    from roentgen.prompt_lists import main

    sys.exit(run(main, prog="python -m roentgen.prompts"))
