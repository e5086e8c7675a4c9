"""Prompts: from labels to report-like text (``compose``) and back again (``parse``).

The training text of every recipe is made by ``compose``; ``parse`` reads the findings that a prompt asks for,
so that a generated image can be judged against them. Sides are the patient's.
"""

from roentgen.prompts.compose import MAX_WORDS, compose, statement
from roentgen.prompts.labels import NO_FINDING, Labels, labels_from_row, labels_text, read_labels_text
from roentgen.prompts.parse import parse
from roentgen.prompts.vocabulary import FINDINGS, Finding, vocabulary, words

__all__ = [
    "FINDINGS",
    "MAX_WORDS",
    "NO_FINDING",
    "Finding",
    "Labels",
    "compose",
    "labels_from_row",
    "labels_text",
    "parse",
    "read_labels_text",
    "statement",
    "vocabulary",
    "words",
]
