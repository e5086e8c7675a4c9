"""The words of a prompt: findings with their synonyms, sides, severities, views, sex and age words.

Data only. Everything that ``roentgen.prompts.compose`` writes is assembled from the constants below, so that
``vocabulary`` can list every word it may ever emit.

Severity and size words are part of the vocabulary, but no label of the training data tells them: they are
written at random, so a model trained on these texts knows the words and cannot follow them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding: how it is labelled, how radiologists write it, and how it is recognised in free text."""

    name: str
    synonyms: tuple[str, ...]
    """Singular noun phrases, the usual one first."""
    plurals: tuple[str, ...]
    """One a synonym, written when both sides are meant; "" for a noun without article and plural."""
    can_have_side: bool
    in_lung: bool
    """Whether "in the left lung" can be said of it."""
    qualifiers: tuple[str, ...]
    """Severity, size and texture words that suit it; they carry no information (see the module's text)."""
    pattern: str
    """Regular expression for lower-case text that matches every synonym, plural and usual variant."""
    base: str = ""
    """A word for its usual place in the lung ("left basilar ..."), or ""."""


_SIZES = ("small", "moderate", "large")
_DEGREES = ("mild", "moderate", "severe")
_TEXTURES = ("patchy", "mild", "extensive")


def _finding(
    name: str,
    nouns: dict[str, str],
    pattern: str,
    qualifiers: tuple[str, ...] = (),
    *,
    side: bool = True,
    in_lung: bool = True,
    base: str = "",
) -> Finding:
    return Finding(
        name=name,
        synonyms=tuple(nouns),
        plurals=tuple(nouns.values()),
        can_have_side=side,
        in_lung=in_lung and side,
        qualifiers=qualifiers,
        pattern=pattern,
        base=base,
    )


# Where two patterns match at the same place the earlier finding wins, so narrow ones stand before wide ones.
_ALL = (
    _finding("No Finding", {"no finding": ""}, r"(?!)", side=False),  # recognised by NORMAL_PATTERN
    _finding(
        "COVID-19",
        {"COVID-19 pneumonia": "", "COVID-19": "", "SARS-CoV-2 pneumonia": "", "coronavirus pneumonia": ""},
        r"(?:covid(?:[- ]?19)?|sars[- ]cov[- ]2|coronavirus)(?: disease| infection)?"
        r"(?: (?:viral )?pneumonia)?",
        _DEGREES,
    ),
    _finding(
        "Bacterial Pneumonia",
        {"bacterial pneumonia": ""},
        r"bacterial (?:broncho|lobar )?pneumonias?",
        _DEGREES,
    ),
    _finding("Viral Pneumonia", {"viral pneumonia": ""}, r"viral (?:broncho)?pneumonias?", _DEGREES),
    _finding("Pneumonia", {"pneumonia": ""}, r"(?:broncho)?pneumoni(?:as?|c)", _DEGREES),
    _finding(
        "Atelectasis",
        {
            "atelectasis": "",
            "subsegmental atelectasis": "",
            "linear atelectasis": "",
            "atelectatic change": "",
        },
        r"atelecta(?:sis|ses|tic)(?: changes?)?|volume loss",
        ("mild", "moderate"),
        base="basilar",
    ),
    _finding(
        "Cardiomegaly",
        {
            "cardiomegaly": "",
            "enlarged heart": "enlarged hearts",
            "enlarged cardiac silhouette": "enlarged cardiac silhouettes",
            "cardiac enlargement": "",
        },
        r"cardiomegaly|(?:enlarged|enlargement of the|large|big|increased) "
        r"(?:heart|cardiac (?:silhouette|shadow|size)|cardiomediastinal silhouette)(?: size|s)?"
        r"|cardiac enlargement|(?:heart|cardiac|cardiomediastinal)(?: (?:silhouette|shadow|size))? "
        r"(?:(?:is|appears|remains) )?(?:(?!not|no|within|normal)\w+ )?enlarged",
        _DEGREES,
        side=False,
    ),
    _finding(
        "Effusion",
        {"pleural effusion": "pleural effusions", "effusion": "effusions", "pleural fluid": ""},
        r"(?<!pericardial )(?:pleural )?effusions?|pleural fluid",
        _SIZES,
        in_lung=False,
    ),
    _finding(
        "Pleural_Thickening",
        {"pleural thickening": "", "thickened pleura": "", "thickening of the pleura": ""},
        r"pleural thickening|thickened (?:\w+ )?pleura|thickening of the (?:\w+ )?pleura|pleural scarring",
        ("mild", "moderate"),
        in_lung=False,
    ),
    _finding(
        "Pneumothorax",
        {"pneumothorax": "pneumothoraces"},
        r"(?:hydro)?pneumothora(?:x|ces|xes)|ptx",
        _SIZES,
        in_lung=False,
    ),
    _finding(
        "Consolidation",
        {"consolidation": "consolidations", "airspace consolidation": "", "focal consolidation": ""},
        r"consolidat(?:ions?|ive changes?)",
        ("patchy", "dense", "extensive"),
    ),
    _finding(
        "Edema",
        {"pulmonary edema": "", "edema": "", "interstitial edema": "", "pulmonary oedema": ""},
        r"o?edema|(?:vascular|venous) congestion",
        _DEGREES,
        side=False,
    ),
    _finding(
        "Emphysema",
        {"emphysema": "", "pulmonary emphysema": "", "emphysematous change": ""},
        r"(?<!subcutaneous )(?<!soft tissue )emphysema(?:tous(?: changes?)?)?|hyperinflat(?:ed|ion)",
        _DEGREES,
        side=False,
    ),
    _finding(
        "Fibrosis",
        {"fibrosis": "", "pulmonary fibrosis": "", "fibrotic change": "", "interstitial fibrosis": ""},
        r"fibro(?:sis|tic(?: (?:changes?|scarring))?)|(?:pulmonary|lung|parenchymal) scar(?:ring|s)?",
        ("mild", "extensive"),
    ),
    _finding(
        "Hernia",
        {"hiatal hernia": "hiatal hernias", "hernia": "hernias", "hiatus hernia": "hiatus hernias"},
        r"hernia(?:s|tion)?",
        _SIZES,
        side=False,
    ),
    _finding(
        "Infiltration",
        {
            "infiltrate": "infiltrates",
            "infiltration": "",
            "pulmonary infiltrate": "pulmonary infiltrates",
            "lung infiltrate": "lung infiltrates",
        },
        r"infiltrat(?:es?|ions?|ive changes?)",
        _TEXTURES,
    ),
    _finding(
        "Nodule",
        {
            "nodule": "nodules",
            "pulmonary nodule": "pulmonary nodules",
            "lung nodule": "lung nodules",
            "nodular opacity": "nodular opacities",
        },
        r"nodules?|nodular (?:opacit(?:y|ies)|densit(?:y|ies)|lesions?)",
        ("small", "tiny"),
    ),
    _finding(
        "Mass",
        {"mass": "masses", "lung mass": "lung masses", "pulmonary mass": "pulmonary masses"},
        r"mass(?:es)?(?! effect| index)|masslike|(?:lung|pulmonary) tumou?rs?",
        ("large",),
    ),
    _finding(
        "Lung Opacity",
        {
            "lung opacity": "lung opacities",
            "opacity": "opacities",
            "airspace opacity": "airspace opacities",
            "pulmonary opacity": "pulmonary opacities",
        },
        r"opacit(?:y|ies)|opacifications?|air[- ]?space disease|ground[- ]glass(?: opacit(?:y|ies))?",
        _TEXTURES,
    ),
)
FINDINGS: dict[str, Finding] = {finding.name: finding for finding in _ALL}

# A narrower diagnosis already says the wider one.
NARROWER: dict[str, frozenset[str]] = {"Pneumonia": frozenset({"Bacterial Pneumonia", "Viral Pneumonia", "COVID-19"})}
# Findings that make the lung opaque: denying consolidation beside one of them would contradict the picture.
OPAQUE = frozenset(
    {
        "Pneumonia", "Bacterial Pneumonia", "Viral Pneumonia", "COVID-19", "Consolidation", "Infiltration",
        "Lung Opacity", "Atelectasis", "Edema", "Mass",
    }
)  # fmt: skip
# What a text may deny when the labels lack it.
DENIABLE: dict[str, tuple[str, ...]] = {
    "Pneumothorax": ("pneumothorax",),
    "Effusion": ("pleural effusion", "effusion"),
    "Consolidation": ("focal consolidation", "consolidation"),
    "Edema": ("pulmonary edema",),
}
DENIALS = ("no {}", "no evidence of {}", "no {} is seen")
HEART_NORMAL = ("heart size is normal", "normal heart size", "the heart is normal in size")

NORMAL_NOUNS = (
    "no acute cardiopulmonary process",
    "normal chest radiograph",
    "clear lungs",
    "no finding",
    "no acute cardiopulmonary abnormality",
    "no acute cardiopulmonary disease",
    "no acute abnormality",
    "normal chest x-ray",
    "normal chest",
)
NORMAL_SENTENCES = ("the lungs are clear", "lungs are clear", "unremarkable chest radiograph", "normal study")
_IMAGE = r"(?:radiograph|x-?ray|film|study|exam(?:ination)?)"
_STUDY = rf"(?:chest(?: {_IMAGE})?|cxr|{_IMAGE})"
NORMAL_PATTERN = (
    r"no (?:acute |significant |active |focal |other )*"
    r"(?:cardio-?pulmonary |cardiothoracic |intrathoracic |chest |lung |pulmonary |radiographic |abnormal )*"
    r"(?:process|abnormalit(?:y|ies)|disease|findings?|pathology)\b(?! (?:of|to suggest|suggest\w*|for)\b)"
    rf"|(?:normal|unremarkable|healthy) (?:frontal |portable |pa |ap )*(?:{_STUDY}|lungs)"
    rf"|{_STUDY} (?:is |was |appears )?(?:normal|unremarkable|within normal limits)"
    r"|clear lungs|lung(?:s| fields) (?:(?:are|is|remain|appear) )?(?:(?!not)\w+ )?clear"
)

# Sides, as seen from the patient. {} is the noun.
ONE_SIDE = ("{side} {noun}", "{side}-sided {noun}", "{noun} on the {side}")
ONE_LUNG = ("{noun} in the {side} lung",)
ONE_BASE = ("{side} {base} {noun}", "{noun} at the {side} base")
BOTH_SIDES = ("bilateral {noun}", "{noun} on both sides")
BOTH_LUNGS = ("{noun} in both lungs",)
BOTH_BASES = ("bibasilar {noun}", "{noun} at both bases")
SIDES = ("left", "right")

VIEWS: dict[str, tuple[str, ...]] = {
    "PA": (
        "PA view",
        "PA chest radiograph",
        "frontal PA view",
        "PA chest x-ray",
        "posteroanterior view",
        "upright PA view",
    ),
    "AP": (
        "AP view",
        "AP chest radiograph",
        "AP portable view",
        "AP chest x-ray",
        "anteroposterior view",
        "portable AP chest radiograph",
    ),
}
PLAIN_VIEWS = ("frontal chest radiograph", "chest radiograph", "frontal view", "chest x-ray")

YEARS_OLD = ("{age}-year-old", "{age} year old")
ADULTS: dict[str | None, tuple[str, ...]] = {
    "M": ("man", "male"),
    "F": ("woman", "female"),
    None: ("patient",),
}
CHILDREN: dict[str | None, tuple[str, ...]] = {
    "M": ("boy", "male"),
    "F": ("girl", "female"),
    None: ("child", "patient"),
}
ELDERLY_FROM, CHILD_BELOW, INFANT_BELOW, BOY_BELOW = 70.0, 13.0, 2.0, 18.0  # years
OLDEST = 120
"""Ages above this are errors of the source (NIH has 400-year-olds) and are left out of the text."""
AGE_WORDS = {"elderly": "elderly {person}", "infant": "{sex}infant", "child": "{sex}child"}
SEX_WORDS: dict[str | None, str] = {"M": "male ", "F": "female ", None: ""}

# How findings are wrapped into a sentence; {there} is one of THERE.
LEADS = (
    "{items}",
    "{items}",
    "{there} {items}",
    "{items} noted",
    "findings: {items}",
    "impression: {items}",
    "evidence of {items}",
)
FLOWS = ("{view} of {patient} with {items}", "{view} of {patient} showing {items}")
ADJACENT = "{first} with adjacent atelectasis"
THERE = ("there is a", "there is an", "there is", "there are")
AND = " and "


def words(text: str) -> list[str]:
    """The words of a text as ``vocabulary`` counts them: lower case, letters and digits, no punctuation."""
    return re.findall(r"[a-z0-9]+", text.lower())


@cache
def vocabulary() -> frozenset[str]:
    """Every lower-case word (see ``words``) that ``compose`` can emit, ages as numbers included."""
    texts: list[str] = [str(age) for age in range(OLDEST + 1)]
    for finding in FINDINGS.values():
        texts += [*finding.synonyms, *finding.qualifiers, finding.base]
        if finding.can_have_side:
            texts += finding.plurals
    for group in (
        NORMAL_NOUNS, NORMAL_SENTENCES, DENIALS, HEART_NORMAL, *DENIABLE.values(), ONE_SIDE, ONE_LUNG,
        ONE_BASE, BOTH_SIDES, BOTH_LUNGS, BOTH_BASES, SIDES, *VIEWS.values(), PLAIN_VIEWS, YEARS_OLD,
        *ADULTS.values(), *CHILDREN.values(), AGE_WORDS.values(), SEX_WORDS.values(), LEADS, FLOWS, THERE,
        (ADJACENT, AND, "or"),
    ):  # fmt: skip
        texts += group
    return frozenset(word for text in texts for word in words(re.sub(r"\{\w*\}", " ", text)))
