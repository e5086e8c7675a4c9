"""CIDEr: how alike two texts are in the n-grams that few of the references have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roentgen.metrics.statistics import Floats
from roentgen.prompts.vocabulary import words

ORDER = 4


def cider(candidates: Sequence[str], references: Sequence[str]) -> Floats:
    """CIDEr (N,) of pairs, times 10 as is usual (Vedantam et al. 2015, arXiv 1411.5726, equations 1 to 3).

    The mean over n = 1 to 4 of the cosine of two texts' n-gram counts, each weighted by log(N / d), d the references
    among these N that hold the n-gram. One reference a text; no stemming; not CIDEr-D, which clips and punishes length.
    """
    from scipy.sparse import diags
    from sklearn.feature_extraction.text import CountVectorizer

    count = len(candidates)
    total = np.zeros(count)
    for n in range(1, ORDER + 1):
        grams = CountVectorizer(tokenizer=words, token_pattern=None, lowercase=False, ngram_range=(n, n))
        try:
            both = grams.fit_transform([*candidates, *references]).astype(np.float64)
        except ValueError:  # no text has n words
            continue
        holds = np.asarray((both[count:] > 0).sum(axis=0)).ravel()
        both = both @ diags(np.log(count / np.maximum(holds, 1)))
        mine, theirs = both[:count], both[count:]
        length = [np.sqrt(np.asarray(side.multiply(side).sum(axis=1)).ravel()) for side in (mine, theirs)]
        dot = np.asarray(mine.multiply(theirs).sum(axis=1)).ravel()
        scale = length[0] * length[1]
        total += np.divide(dot, scale, out=np.zeros(count), where=scale > 0)
    return np.asarray(10 * total / ORDER)
