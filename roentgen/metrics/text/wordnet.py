"""WordNet from files that are on this machine: of Debian's ``wordnet-base``, of NLTK, or of WordNet's own release."""

from __future__ import annotations

import io
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

DEBIAN = Path("/usr/share/wordnet")
HOME = "WNSEARCHDIR"
"""Environment variable of WordNet's own programs: the folder of its files."""
KINDS = ("noun", "verb", "adj", "adv")
FILES = (*(f"{part}.{kind}" for part in ("data", "index") for kind in KINDS), *(f"{kind}.exc" for kind in KINDS))


class WordNetMissing(Exception):
    """WordNet's files are not there; the message says which, and how they come."""


@lru_cache(maxsize=1)
def load_wordnet() -> Any:
    """NLTK's reader of WordNet's files, of the folder ``WNSEARCHDIR``, else of NLTK's data, else Debian's.

    Raises:
        WordNetMissing: a file is missing.
    """
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):  # type: ignore[misc]
        """Without what synonyms do not need: ``lexnames``, which Debian's release lacks, and ways to other releases."""

        def open(self, file: str) -> Any:
            if file == "lexnames" and not (home / file).is_file():
                return io.StringIO("".join(f"{number:02}\tfile{number:02}\t0\n" for number in range(45)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            return None

    home = Path(os.environ.get(HOME) or _of_nltk() or DEBIAN)
    missing = [name for name in FILES if not (home / name).is_file()]
    if missing:
        raise WordNetMissing(
            f"{home / missing[0]} is missing, a file of WordNet, which has the synonyms; run `apt-get install "
            f"wordnet-base` or `python -m nltk.downloader wordnet`, or name the folder in {HOME}"
        )
    if str(home) not in nltk.data.path:  # it reads no file outside of the folders that it was told of
        nltk.data.path.append(str(home))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it knows English only
        return Reader(str(home), omw_reader=None)


def _of_nltk() -> Path | None:
    """NLTK's own copy, if it was downloaded and is unpacked."""
    import nltk

    try:
        return Path(str(nltk.data.find("corpora/wordnet")))
    except LookupError:
        return None
