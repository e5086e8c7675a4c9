"""What the texts of a manifest are like: length, blanks, repeats, and what an image cannot show."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from roentgen.data.manifest import Problem
from roentgen.data.sections import count_blanks
from roentgen.errors import UserError
from roentgen.files import explained

CLIP_WINDOW = 77  # tokens with start and end, of SD 1.x and 2.x
TOKENS_A_WORD = 1.3  # a usual figure for CLIP's tokenizer on reports; an estimate, and labelled as one
FREQUENT = 10
WORTH_SAYING = 0.01  # share of the texts

PRIOR = re.compile(
    r"\b(?:compar(?:ed|ison)|unchanged|interval|previous(?:ly)?|priors?|stable|stably|since|again|persistent(?:ly)?"
    r"|worsen(?:ed|ing)?|improv(?:ed|ing|ement)|resol(?:ved|ving|ution)|no (?:significant )?change|new(?:ly)?)\b",
    re.IGNORECASE,
)
"""Words that compare with an earlier film, which one image cannot show."""
_NEGATION = re.compile(r"\b(?:no|not|without|negative|free of|absen(?:t|ce)|neither|nor|clear|normal)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?;])\s+")

# Frequent words of reports that are not words of another language here; "no", "die" and "a" are, so they are missing.
_ENGLISH = frozenset(
    re.findall(
        r"\w+", "the of is and are with there was has have been to from which or this that without normal seen clear"
    )
)
_OTHERS = frozenset(
    re.findall(  # Spanish, Portuguese, German, French, Italian
        r"\w+",
        "sin con del los las una por que como derecho derecha izquierdo izquierda torax signos hallazgos se observa "
        "ni apreci cambi derech izquierd siluet cronic libr signific patolog "  # PadChest stems its Spanish words
        "sem com não dos uma são "
        "der das und kein keine keinen mit ohne ist im beidseits rechts links nachweis zeichen "
        "les des sans avec pas est une dans aux du droite gauche "
        "il della del dei senza sono alla nel destra sinistra",
    )
)
_MONTH = r"(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)[a-z]*\.?"
IDENTIFIERS = {
    "a name with a title": re.compile(r"\b(?:Drs?|Mrs?|Ms|Miss|Prof|Doctor|Professor)\b\.?\s+[A-Z][\w'-]+"),
    "a record number": re.compile(
        r"\b(?:mrn|(?:medical )?records?|accession|patient id|chart|case|hospital)\s*(?:no|number|num|id|#)?\.?"
        r"\s*[:#]?\s*[a-z]{0,3}-?\d{5,}\b|(?<![\d.])\d{7,}(?![\d.])",
        re.IGNORECASE,
    ),
    "a telephone number": re.compile(
        r"(?<![\w.])(?:\+?\d{1,3}[ .-]?)?(?:\(\d{3}\)[ .-]?|\d{3}[ .-])\d{3}[ .-]\d{4}\b"
        r"|\b(?:phone|telephone|tel|pager|beeper|ext|extension|fax)\b\.?\s*(?:no|number|#)?\.?\s*[:#]?"
        r"\s*x?\+?\d[\d -]{2,}\d",
        re.IGNORECASE,
    ),
    "a date": re.compile(
        r"\b(?:\d{1,2}/\d{1,2}/(?:19|20)?\d\d|\d{1,2}([.-])\d{1,2}\1(?:19|20)\d\d|(?:19|20)\d\d([/-])\d{1,2}\2\d{1,2})\b"
        rf"|\b{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? (?:19|20)\d\d\b|\b\d{{1,2}} {_MONTH},? (?:19|20)\d\d\b",
        re.IGNORECASE,
    ),
    "an e-mail address": re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+"),
}
"""What in a text may say who the patient is, by its form; names without a title are not found."""
_NOT_LATIN = re.compile(r"[^\W\d_\u0000-\u024f]")


def foreign(text: str) -> bool:
    """Whether a text looks like another language than English, by its frequent words and its script.

    A rough test: texts of a few nouns have no frequent words and pass.
    """
    letters = sum(character.isalpha() for character in text)
    if letters and len(_NOT_LATIN.findall(text)) > 0.3 * letters:
        return True
    words = re.findall(r"[^\W\d_]+", text.lower())
    others = sum(word in _OTHERS for word in words)
    return others > sum(word in _ENGLISH for word in words)


def identifiers(text: str) -> list[str]:
    """The kinds of ``IDENTIFIERS`` that a text seems to hold; never the words themselves."""
    return [kind for kind, pattern in IDENTIFIERS.items() if pattern.search(text)]


def negations_only(text: str) -> bool:
    """Whether every sentence of a text denies something or calls it normal: it names nothing to draw."""
    sentences = [part for part in _SENTENCE.split(text.strip()) if re.search(r"\w", part)]
    return bool(sentences) and all(_NEGATION.search(part) for part in sentences)


def estimated_tokens(texts: Sequence[str]) -> list[float]:
    """Tokens with start and end, estimated from the words."""
    return [TOKENS_A_WORD * len(text.split()) + 2 for text in texts]


def token_counter(folder: Path) -> tuple[Callable[[Sequence[str]], list[int]], int]:
    """What counts the tokens of texts with start and end, and the window of the tokenizer in ``folder``.

    ``folder`` holds a tokenizer, or a pipeline with ``tokenizer/``.

    Raises:
        UserError: when there is none.
    """
    from transformers import AutoTokenizer

    place = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    if not (place / "tokenizer_config.json").is_file():
        raise UserError(f"--tokenizer {folder} has no tokenizer_config.json; name a pipeline or its tokenizer/ folder")
    with explained(f"--tokenizer {folder} cannot be loaded", "fetch the model again"):
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]] if len(texts) else []

    return count, min(int(tokenizer.model_max_length), 100_000)


def text_problems(table: pd.DataFrame) -> list[Problem]:
    """Texts with de-identification blanks, identifiers or of another language; one more if most texts are empty."""
    problems = []
    for row, text in enumerate(table["text"], start=1):
        blanks = count_blanks(text)
        if blanks:
            message = f"{blanks} blank(s) such as ___ or XXXX; clean_text of roentgen.data.sections removes them"
            problems.append(Problem(row, "de-identification blank", message))
        found = identifiers(text)
        if found:
            message = f"it seems to hold {' and '.join(found)}; take it out before a model or manifest is shared"
            problems.append(Problem(row, "identifier in text", message))
        if foreign(text):
            problems.append(Problem(row, "text not in English", f"{_short(text)!r}"))
    empty = int((table["text"] == "").sum())
    if 2 * empty > len(table):
        message = (
            f"{empty:,} of {len(table):,} texts are empty; fill the text column, or compose texts from the findings"
        )
        problems.append(Problem(int((table["text"] == "").to_numpy().argmax()) + 1, "most texts are empty", message))
    return problems


def text_tables(parts: Mapping[str, pd.DataFrame], *, tokenizer: Path | None = None) -> dict[str, pd.DataFrame]:
    """Tables for the page: one row a split, and the most frequent texts.

    Args:
        parts: name -> rows of the manifest; the first are all rows.
        tokenizer: see ``token_counter``; None: tokens are estimated, and the column says so.
    """
    if tokenizer is None:
        count, window, how = estimated_tokens, CLIP_WINDOW, " (estimate)"
    else:
        count, window = token_counter(tokenizer)  # type: ignore[assignment]
        how = ""
    everything = next(iter(parts.values()))
    different = everything["text"].drop_duplicates().tolist()
    facts = pd.DataFrame(
        {
            "words": [len(text.split()) for text in different],
            "long": [tokens > window for tokens in count(different)],
            "blank": [count_blanks(text) > 0 for text in different],
            "prior": [PRIOR.search(text) is not None for text in different],
            "denied": [negations_only(text) for text in different],
            "foreign": [foreign(text) for text in different],
        },
        index=different,
    )
    rows = []
    for part, table in parts.items():
        texts = table["text"]
        of = facts.loc[texts]
        words = of["words"][of["words"] > 0]
        if words.empty:
            words = of["words"]
        low, middle, high = words.quantile([0.05, 0.5, 0.95])
        rows.append(
            {
                "": part,
                "texts": len(texts),
                "different": int(texts.nunique()),
                "empty": _share((texts == "").mean()),
                "words, 5 %": float(low),
                "median": float(middle),
                "95 %": float(high),
                "longest": int(words.max()),
                f"over {window} tokens{how}": _share(of["long"].mean()),
                "said of another image too": _share(texts[texts != ""].duplicated(keep=False).sum() / len(texts)),
                "with blanks (___)": _share(of["blank"].mean()),
                "mention a prior": _share(of["prior"].mean()),
                "deny only": _share(of["denied"].mean()),
                "not English": _share(of["foreign"].mean()),
                "different words": len({word for text in set(texts) for word in text.lower().split()}),
            }
        )
    frequent = everything.loc[everything["text"] != "", "text"].value_counts().head(FREQUENT)
    listed = pd.DataFrame(
        [
            {"": _short(text, 160), "images": int(n), "share": _share(n / len(everything))}
            for text, n in frequent.items()
        ]
    )
    tables = {"Texts": pd.DataFrame(rows)}
    if not listed.empty:
        tables["Most frequent texts"] = listed
    return tables


def text_notes(table: pd.DataFrame) -> list[str]:
    """What is worth saying of the texts as a whole."""
    prior = table["text"].str.contains(PRIOR).mean()
    if prior < WORTH_SAYING:
        return []
    return [f'{_share(prior)} of the texts compare with an earlier film ("unchanged"), which one image cannot show']


def text_line(tables: Mapping[str, pd.DataFrame]) -> str:
    """The statistics of all texts in one line, for the terminal."""
    row = tables["Texts"].iloc[0]
    long = next(column for column in tables["Texts"].columns if column.startswith("over "))
    shares = [
        f"{row[column]} {column}" for column in ("empty", long, "with blanks (___)", "mention a prior", "deny only")
    ]
    return (
        f"texts: {row['different']:,} different of {row['texts']:,}; words {row['words, 5 %']:g} / {row['median']:g} / "
        f"{row['95 %']:g} (5 %, median, 95 %), longest {row['longest']}; {', '.join(shares)}; {row['not English']} not "
        "English"
    )


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
