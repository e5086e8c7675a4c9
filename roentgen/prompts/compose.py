"""From labels to report-like text, the training text of every recipe."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache

from roentgen.prompts import vocabulary as v
from roentgen.prompts.labels import NO_FINDING, Labels
from roentgen.prompts.vocabulary import FINDINGS, Finding

MAX_WORDS = 60
"""``compose`` stays below this many words, which leaves a 77-token text encoder room for every one."""


def compose(labels: Labels, rng: random.Random, *, complete: bool = False) -> str:
    """A random report-like text of the labels, below ``MAX_WORDS`` words.

    Varied: order, synonyms, omitted view, sex, age and side; one text in three is the bare findings; one in
    four of several findings names only some of them; fewer than one in ten denies a finding that is not among
    the labels (blank counts as absent), and one finding in ten whose severity is not known gets a severity or
    size word, which says nothing; a known one is said in six of ten. With ``complete`` everything that the labels
    say is in the text and nothing else, and ``parse`` gives the labels back but for severities (age in whole
    years; below one year as the word "infant"). The same ``rng`` state gives the same text.

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


def statement(name: str, *, side: str | None = None, severity: str | None = None) -> str:
    """One plain sentence that says a finding, always in the same words: "There is a small left pleural effusion."

    ``parse`` gives finding and side back. Raises ValueError for a finding that is not in ``FINDINGS``.
    """
    if name not in FINDINGS or name == NO_FINDING:
        raise ValueError(f"unknown finding {name!r}; known are {', '.join(FINDINGS)}")
    phrase = _with_side(FINDINGS[name], side, None)
    phrase = f"{severity} {phrase}" if severity else phrase
    lead = _there_is(phrase)
    return f"{lead[:1].upper()}{lead[1:]} {phrase}."


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
        severity = labels.severities.get(name)
        if severity is not None:
            if complete or rng.random() < 0.6:
                phrase = f"{severity} {phrase}"
        elif finding.qualifiers and not complete and rng.random() < 0.1:
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
