"""From findings with sides and severities to the sentences of a report: plain, always the same, and read back by
``roentgen.prompts.parse``."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from roentgen.prompts import FINDINGS, statement
from roentgen.prompts.vocabulary import HEART_NORMAL, NARROWER, OPAQUE
from roentgen.reports.base import Finding

NORMAL = "No acute cardiopulmonary abnormality."
CLEAR = "The lungs are clear."
# What a reader wants to hear denied, in the order of a report, and the noun for it.
DENIED = (("Consolidation", "focal consolidation"), ("Effusion", "pleural effusion"), ("Pneumothorax", "pneumothorax"))
HEART = "Cardiomegaly"
VIEW = "{} view."


def sentence_of(finding: Finding) -> Finding:
    """The finding with its sentence."""
    assert finding.label is not None
    text = statement(finding.label, side=finding.side, severity=finding.severity)
    return Finding(
        text, finding.label, finding.probability, finding.boxes, finding.side, finding.severity, finding.present
    )


def compose_report(found: Sequence[Finding], absent: Collection[str], *, view: str | None = None) -> list[Finding]:
    """The sentences of a report, findings first by probability, then what is denied.

    Args:
        found: findings that are there, without text.
        absent: labels that the reporter is sure enough to deny; only those of ``DENIED`` and the heart are said.
        view: PA or AP where it is to be said.
    """
    labels = {finding.label for finding in found}
    # A narrower diagnosis already says the wider one.
    kept = [one for one in found if not NARROWER.get(str(one.label), frozenset()) & labels]
    kept.sort(key=lambda one: (-(one.probability or 0.0), list(FINDINGS).index(str(one.label))))
    sentences = [Finding(VIEW.format(view), present=True)] if view else []
    sentences += [sentence_of(finding) for finding in kept]
    if not kept:
        sentences.append(Finding(CLEAR, present=False))
    denied = [(label, noun) for label, noun in DENIED if label in absent and label not in labels]
    if labels & OPAQUE:  # denying consolidation beside an opaque lung would contradict the picture
        denied = [(label, noun) for label, noun in denied if label != "Consolidation"]
    if denied:
        nouns = [noun for _, noun in denied]
        listed = nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} or {nouns[-1]}"
        sentences.append(Finding(f"No {listed}.", denied[0][0] if len(denied) == 1 else None, present=False))
    if HEART in absent and HEART not in labels:
        sentences.append(Finding(f"{HEART_NORMAL[0][:1].upper()}{HEART_NORMAL[0][1:]}.", HEART, present=False))
    if not kept:
        sentences.append(Finding(NORMAL, present=False))
    return sentences


def text_of(sentences: Sequence[Finding]) -> str:
    """The report's text."""
    return " ".join(one.text for one in sentences)


def split_sentences(text: str) -> list[str]:
    """The sentences of a generated text, each with its full stop; abbreviations and decimals do not end one."""
    import re

    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z0-9(])|\n+", " ".join(text.split(" ")).strip())
    return [part.strip() for part in parts if part and part.strip()]
