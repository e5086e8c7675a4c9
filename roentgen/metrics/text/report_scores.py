"""Report-based scores: an image-to-text model describes each image, and its text is scored against the prompt.

The score is that of generator and describer together, so it is read beside the same describer on real images with
their own texts (ceiling) and beside shuffled prompts (floor; word overlap of two unrelated reports is far above 0).

Words are lower-case runs of letters and digits. BLEU is sacrebleu's, from the counts of each pair, which the bootstrap
draws; ROUGE is rouge-score's. METEOR is nltk's: whole where WordNet's files are there, and of exact and stem matches
alone, which need no files. CIDEr weighs n-grams by scikit-learn's counts. BERTScore needs its model's weights only.
CheXbert F1, RadGraph F1 and RaTEScore come from their own packages and weights. What cannot be computed is in the
result with its reason: nothing is skipped in silence.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.files import reason
from roentgen.images import read_image
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import NOTHING, EvaluationInputs, Result, Unavailable, measure
from roentgen.metrics.reading import texts_of
from roentgen.metrics.statistics import USUAL, Bootstrap, Drawn, Floats, ratio_estimate, resampled_means
from roentgen.metrics.text.cider import cider
from roentgen.metrics.text.wordnet import WordNetMissing, load_wordnet
from roentgen.models import hub, loading
from roentgen.prompts.vocabulary import words
from roentgen.provenance import portable
from roentgen.reports import Report, Reporter, load_reporter

BATCH = 16
"""Images that a reporter reads at a time."""
BLEU_ORDER = 4
FEW = 100
BERT_SCORE_MODEL = "roberta-large"
BERT_SCORE_LAYERS = {"roberta-large": 17}


class NotComputed(Exception):
    """A score cannot be had here; the message says why and what would mend it."""


# ----------------------------------------------------------------------------------- scores of their own


def bleu_counts(candidates: Sequence[str], references: Sequence[str]) -> Floats:
    """sacrebleu's counts (N, 2 + 2 * 4) that BLEU is made of: lengths of both, then matches and n-grams, n = 1 to 4."""
    _need("sacrebleu", "sacrebleu")
    from sacrebleu.metrics import BLEU as Scorer

    # Our words are its tokens; the order, of which it warns for single sentences, does not touch the counts.
    scorer = Scorer(tokenize="none", smooth_method="none", effective_order=True, max_ngram_order=BLEU_ORDER)
    rows = []
    for candidate, reference in zip(candidates, references, strict=True):
        one = scorer.sentence_score(" ".join(words(candidate)), [" ".join(words(reference))])
        grams = [count for pair in zip(one.counts, one.totals, strict=True) for count in pair]
        rows.append([one.sys_len, one.ref_len, *grams])
    return np.array(rows, dtype=np.float64).reshape(-1, 2 + 2 * BLEU_ORDER)


def corpus_bleu(totals: Floats, order: int = BLEU_ORDER) -> Floats:
    """sacrebleu's BLEU (B,) from 0 to 1 up to ``order``, of summed ``bleu_counts`` (B, 10); no smoothing."""
    _need("sacrebleu", "sacrebleu")
    from sacrebleu.metrics import BLEU as Scorer

    values = []
    for row in totals:
        lengths, hits, grams = row[:2], row[2::2][:order].tolist(), row[3::2][:order].tolist()
        own, other = map(round, lengths.tolist())
        found = Scorer.compute_bleu(hits, grams, own, other, smooth_method="none", max_ngram_order=order)
        # Where the texts are too short for an order, it stops there; without smoothing there is no BLEU of that order.
        values.append(found.score / 100 if all(hits) else 0.0)
    return np.array(values, dtype=np.float64)


def rouge(candidates: Sequence[str], references: Sequence[str], kind: str) -> Floats:
    """ROUGE F1 (N,) of pairs (Lin 2004), by rouge-score: ``kind`` "1" or "2" for n-grams, "L" for the longest common
    subsequence of the texts, "Lsum" for those of their sentences."""
    _need("rouge_score", "rouge-score")
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([f"rouge{kind}"], tokenizer=SimpleNamespace(tokenize=words))
    if kind == "Lsum":  # it reads a sentence a line
        candidates, references = (
            [re.sub(r"(?<=[.!?])\s+", "\n", one) for one in texts] for texts in (candidates, references)
        )
    pairs = zip(candidates, references, strict=True)
    return np.array([scorer.score(r, c)[f"rouge{kind}"].fmeasure for c, r in pairs], dtype=np.float64)


# ------------------------------------------------------------------------- scores of other people's making


def meteor(candidates: Sequence[str], references: Sequence[str], *, synonyms: bool = True) -> Floats:
    """METEOR (N,) (Banerjee & Lavie 2005) by nltk: exact and stem matches and, from WordNet's files, synonyms.

    NLTK looks for synonyms of stems, so that "large", whose stem is "larg", has none; other tools' figures differ.
    """
    _need("nltk", "nltk")
    from nltk.translate.meteor_score import single_meteor_score

    wordnet: Any = SimpleNamespace(synsets=lambda word: [])  # where METEOR looks for synonyms
    if synonyms:
        try:
            wordnet = load_wordnet()
        except WordNetMissing as error:
            raise NotComputed(str(error)) from None
    pairs = zip(candidates, references, strict=True)
    return np.array([single_meteor_score(words(r), words(c), wordnet=wordnet) for c, r in pairs])


def bert_score(
    candidates: Sequence[str], references: Sequence[str], *, model: str = BERT_SCORE_MODEL, batch_size: int = 16
) -> Floats:
    """BERTScore F1 (N,) (Zhang et al. 2020, section 3): greedy cosine matches of token states, no idf, no rescaling.

    ``model``: folder or cached hub id; layer 17 of roberta-large, as the paper's authors advise, the last of others.
    Written here because torchmetrics 1.9 sorts candidates and references by length and puts them back in a wrong order,
    so that it compares texts that do not belong together.
    """
    folder = hub.local(model)
    if folder is None:
        raise NotComputed(
            f"{model} is not on this disk; where there is a network run `hf download {model} --local-dir FOLDER` and "
            "give the folder as BERTScore's model"
        )
    import torch
    import torch.nn.functional as F
    from transformers import AutoModel, AutoTokenizer

    what, kinds = f"{folder}: cannot be loaded as BERTScore's model", (AutoTokenizer, AutoModel)
    tokenizer, encoder = _weights(
        str(model), lambda: [loading.from_folder(kind, folder, what, unused=("pooler.",)) for kind in kinds]
    )
    layer = min(BERT_SCORE_LAYERS.get(model, encoder.config.num_hidden_layers), encoder.config.num_hidden_layers)
    window = min(int(tokenizer.model_max_length), 512)

    def states(texts: Sequence[str]) -> tuple[Any, Any]:
        """Unit states (n, L, D) and which of them are words (n, L): neither padding nor the start and end token."""
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=window, return_tensors="pt")
        mask = tokens["attention_mask"]
        found = encoder(input_ids=tokens["input_ids"], attention_mask=mask, output_hidden_states=True).hidden_states[
            layer
        ]
        inside = mask.bool()
        inside[:, 0] = False
        inside[torch.arange(len(mask)), mask.sum(1) - 1] = False
        return F.normalize(found.float(), dim=2), inside

    values = []
    with torch.inference_mode():
        for start in range(0, len(candidates), batch_size):
            one, mine = states(candidates[start : start + batch_size])
            other, theirs = states(references[start : start + batch_size])
            cosine = one @ other.transpose(1, 2)
            cosine = cosine.masked_fill(~(mine[:, :, None] & theirs[:, None]), -torch.inf)
            for matrix, a, b in zip(cosine, mine, theirs, strict=True):
                if a.any() and b.any():
                    precision, recall = matrix.amax(1)[a].mean(), matrix.amax(0)[b].mean()
                    values.append(float(2 * precision * recall / (precision + recall)))
                else:  # an empty text matches nothing
                    values.append(0.0)
    return np.array(values)


def chexbert_labels(texts: Sequence[str]) -> NDArray[np.int64]:
    """CheXbert's 14 labels (N, 14) in {0, 1}, uncertain counting as present, by the package f1chexbert."""
    _need("f1chexbert", "f1chexbert")
    from f1chexbert import F1CheXbert

    labeller = _weights("chexbert.pth of StanfordAIMI/RRG_scorers", F1CheXbert)
    return np.array([labeller.get_label(text.strip()) for text in texts], dtype=np.int64)


def radgraph_f1(candidates: Sequence[str], references: Sequence[str]) -> Floats:
    """RadGraph F1 (N,), entities with relations ("partial" reward), by the package radgraph (radgraph-xl)."""
    _need("radgraph", "radgraph")
    from radgraph import F1RadGraph

    scorer = _weights(
        "radgraph-xl.tar.gz of StanfordAIMI/RRG_scorers",
        lambda: F1RadGraph(reward_level="partial", model_type="radgraph-xl"),
    )
    return np.array(scorer(hyps=list(candidates), refs=list(references))[1], dtype=np.float64)


def rate_score(candidates: Sequence[str], references: Sequence[str]) -> Floats:
    """RaTEScore (N,) (Zhao et al. 2024), by the package RaTEScore."""
    _need("RaTEScore", "RaTEScore")
    from RaTEScore import RaTEScore

    scorer = _weights("Angelakeke/RaTE-NER-Deberta and FremyCompany/BioLORD-2023-C", RaTEScore)
    return np.array(scorer.compute_score(list(candidates), list(references)), dtype=np.float64)


def _cider(candidates: Sequence[str], references: Sequence[str]) -> Floats:
    _need("sklearn", "scikit-learn")
    return cider(candidates, references)


def _need(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise NotComputed(f"the package {package} is not installed; run `pip install {package}`")


def _weights(what: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:  # hub, HTTP, OS and pickle errors: each package has its own way to fail
        raise NotComputed(f"its weights ({what}) cannot be loaded: {reason(error)}") from error


# ---------------------------------------------------------------------------------------------- the hook


@dataclass(frozen=True)
class Described:
    """Texts of an image-to-text model (N,), the texts that they should say (N,), patients or prompts (N,)."""

    texts: Sequence[str]
    references: Sequence[str]
    groups: Sequence[object]

    def __post_init__(self) -> None:
        if not len(self.texts) == len(self.references) == len(self.groups):
            raise ValueError(f"{len(self.texts)} texts, {len(self.references)} references, {len(self.groups)} groups")
        if not len(self.texts):
            raise ValueError("no texts")


PAIRWISE: dict[str, Callable[[Sequence[str], Sequence[str]], Floats]] = {
    "ROUGE-1": lambda c, r: rouge(c, r, "1"),
    "ROUGE-2": lambda c, r: rouge(c, r, "2"),
    "ROUGE-L": lambda c, r: rouge(c, r, "L"),
    "ROUGE-Lsum": lambda c, r: rouge(c, r, "Lsum"),
    "METEOR": meteor,
    "METEOR (exact and stem)": lambda c, r: meteor(c, r, synonyms=False),
    "CIDEr": _cider,
    "BERTScore": bert_score,
    "RadGraph F1": radgraph_f1,
    "RaTEScore": rate_score,
}
"""Scores that are means over pairs, by name; (candidates, references) -> (N,)."""
BLEU = tuple(f"BLEU-{order}" for order in range(1, BLEU_ORDER + 1))
CHEXBERT = "CheXbert F1 (micro, 14)"
SCORES = (*BLEU, *PAIRWISE, CHEXBERT)


def text_scores(
    described: Described,
    *,
    real: Described | None = None,
    scores: Sequence[str] = SCORES,
    bootstrap: Bootstrap = USUAL,
) -> dict[str, Result]:
    """Every one of ``scores`` (names of ``SCORES``).

    The floor is that of the references permuted once; the ceiling of ``real`` images where they were described too.
    ``details["not_computed"]``: the reason, or None. A score that is not computed has the value NaN, n = 0 and the
    reason among its notes.
    """
    unknown = [name for name in scores if name not in SCORES]
    if unknown:
        raise ValueError(f"unknown score {unknown[0]!r}; known are {', '.join(SCORES)}")
    order = np.random.default_rng(bootstrap.seed).permutation(len(described.texts))
    shuffled = Described(described.texts, [described.references[i] for i in order], described.groups)
    cases = {"value": described, "floor": shuffled} | ({} if real is None else {"ceiling": real})
    words: dict[str, dict[str, str]] = {
        "value": {},
        "floor": {"what": "prompts shuffled"},
        "ceiling": {"what": "real images and their texts"},
    }
    weights = {name: bootstrap.weights(case.groups) for name, case in cases.items()}
    results = {}
    for name in scores:
        entries: dict[str, Any] = {}
        missing = None
        try:
            with contextlib.redirect_stdout(sys.stderr):  # these packages talk on stdout, which is for results
                for place, case in cases.items():
                    entries[place] = _score(name, case, weights[place]) | words[place]
        except NotComputed as error:
            missing = f"{name} not computed: {error}"
        n = 0 if missing else len(described.texts)
        value: dict[str, Any] = {"value": math.nan, "ci": NOTHING} if missing else entries.pop("value")
        results[name] = Result(
            **value,
            ci_method=bootstrap.said(),
            n=n,
            notes=[missing] if missing else [f"n = {n}: use at least {FEW} pairs"] if n < FEW else [],
            details={"not_computed": missing},
            **({} if missing else entries),
        )
    return results


def _score(name: str, case: Described, weights: Floats) -> dict[str, Any]:
    """Value and interval of one score on one set."""
    if name in PAIRWISE:
        values = PAIRWISE[name](case.texts, case.references)
        return Drawn(float(values.mean()), resampled_means(values, weights)).entry
    if name in BLEU:
        counts, order = bleu_counts(case.texts, case.references), BLEU.index(name) + 1
        value = corpus_bleu(counts.sum(axis=0, keepdims=True), order)[0]
        return Drawn(float(value), corpus_bleu(weights @ counts, order)).entry
    mine, theirs = chexbert_labels(case.texts), chexbert_labels(case.references)
    hits, wrong = (mine & theirs).sum(axis=1), (mine ^ theirs).sum(axis=1)
    return ratio_estimate(2.0 * hits, 2.0 * hits + wrong, weights)


def reports_by(reporter: Reporter, images: ImageSet) -> list[Report]:
    """The reporter's report of each image."""
    reports: list[Report] = []
    for start in range(0, len(images), BATCH):
        reports += reporter.report_many([read_image(path) for path in images.paths[start : start + BATCH]])
    return reports


def by_describer(inputs: EvaluationInputs) -> tuple[str, str]:
    if inputs.image_to_text is None:
        raise Unavailable("no image-to-text model was given (--image-to-text)")
    return str(portable(f"image-to-text {inputs.image_to_text}")), "the model's own image processor"


@measure(
    "text_scores", "Described by an image-to-text model,", suite="full", better="higher", output="", judge=by_describer
)
def measure_text_scores(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """An image-to-text model's words for each image against the prompt, beside its words for real images."""
    if inputs.image_to_text is None:
        raise Unavailable("no image-to-text model was given (--image-to-text)")
    reporter = load_reporter(inputs.image_to_text, device=inputs.device, flag="--image-to-text")

    def described(images: ImageSet, groups: Sequence[str]) -> Described:
        texts = texts_of(images)
        rows = [row for row, text in enumerate(texts) if text]
        said = [report.text for report in reports_by(reporter, images.take(rows))]
        return Described(said, [texts[row] for row in rows], [groups[row] for row in rows])

    mine = described(inputs.synthetic, inputs.bootstrap_groups)
    found = text_scores(mine, real=described(inputs.real, inputs.real.patients), bootstrap=inputs.bootstrap)
    rows = [
        {"name": name, **score.entry, "floor": score.floor, "ceiling": score.ceiling}
        for name, score in found.items()
        if math.isfinite(score.value)
    ]
    first, notes = next(iter(found.values())), [note for score in found.values() for note in score.notes]
    return first.plus(rows=rows, floor=rows[0]["floor"], ceiling=rows[0]["ceiling"], details={}, notes=notes)
