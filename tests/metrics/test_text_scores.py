"""Scores of texts by hand and against libraries, the image-to-text hook, and what is not computed."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import write_tokenizer
from PIL import Image
from tiny import write_bert

from roentgen.errors import UserError
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.statistics import Bootstrap
from roentgen.metrics.text import report_scores as t
from roentgen.metrics.text import wordnet
from roentgen.metrics.text.cider import cider
from roentgen.metrics.text.report_scores import Described
from roentgen.reports import load_reporter

CANDIDATES = [
    "Small left pleural effusion.",
    "No acute process. The heart is normal in size.",
    "Right effusion with the heart enlarged, a small one",
    "normal",
]
REFERENCES = [
    "small left effusion",
    "No acute cardiopulmonary process; heart size is normal.",
    "The heart is enlarged with a small right pleural effusion",
    "pneumothorax",
]
GROUPS = ["a", "b", "c", "d"]


def plain(texts: list[str]) -> list[str]:
    return [" ".join(t.words(text)) for text in texts]


def test_rouge_by_hand() -> None:
    one, other = ["a b c d"], ["a c b e d f"]
    assert t.rouge(one, other, "1")[0] == pytest.approx(2 * 4 / (4 + 6))
    assert t.rouge(one, other, "2")[0] == 0.0
    assert t.rouge(one, other, "L")[0] == pytest.approx(2 * 3 / (4 + 6))  # a b d or a c d
    assert t.rouge(["a b b"], ["b b a"], "2")[0] == pytest.approx(2 * 1 / (2 + 2))
    np.testing.assert_array_equal(t.rouge(["", "x"], ["x", ""], "L"), [0, 0])


def test_rouge_agrees_with_rouge_score() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    names = {"1": "rouge1", "2": "rouge2", "L": "rougeL"}
    reference = scorer.RougeScorer(list(names.values()))
    for kind, name in names.items():
        expected = [reference.score(r, c)[name].fmeasure for c, r in zip(CANDIDATES, REFERENCES, strict=True)]
        np.testing.assert_allclose(t.rouge(CANDIDATES, REFERENCES, kind), expected, atol=1e-12)


def test_bleu_by_hand() -> None:
    totals = t.bleu_counts(["the cat sat on mat"], ["the cat sat on the mat"]).sum(axis=0, keepdims=True)
    precisions = np.array([5 / 5, 3 / 4, 2 / 3, 1 / 2])
    for order in range(1, 5):
        expected = np.exp(1 - 6 / 5) * precisions[:order].prod() ** (1 / order)
        assert t.corpus_bleu(totals, order)[0] == pytest.approx(expected)
    longer = t.corpus_bleu(t.bleu_counts(["a b c d"], ["a b"]), 1)[0]
    assert longer == pytest.approx(1 / 2)  # length is punished below the reference only
    assert t.corpus_bleu(t.bleu_counts(["a b"], ["a b"]))[0] == 0.0  # no 4-gram, no smoothing
    assert t.corpus_bleu(t.bleu_counts(["a b c d e"], ["a b c d e"]))[0] == pytest.approx(1)


def test_bleu_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    totals = t.bleu_counts(CANDIDATES, REFERENCES).sum(axis=0, keepdims=True)
    for order in (1, 2, 3, 4):
        scorer = sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order)
        expected = scorer.corpus_score(plain(CANDIDATES), [plain(REFERENCES)]).score / 100
        assert t.corpus_bleu(totals, order)[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_bleu_agrees_with_torchmetrics() -> None:
    text = pytest.importorskip("torchmetrics.functional.text")
    totals = t.bleu_counts(CANDIDATES, REFERENCES).sum(axis=0, keepdims=True)
    for order in (1, 2):
        expected = text.bleu_score(plain(CANDIDATES), [[r] for r in plain(REFERENCES)], n_gram=order)
        assert t.corpus_bleu(totals, order)[0] == pytest.approx(float(expected), abs=1e-6)


def test_meteor_by_hand() -> None:
    pytest.importorskip("nltk")
    # Equal texts of m words: one chunk, so 1 - 0.5 (1 / m)^3.
    values = t.meteor(["a b c d", "effusions", "x"], ["a b c d", "effusion", "y"], synonyms=False)
    np.testing.assert_allclose(values, [1 - 0.5 / 64, 0.5, 0.0], atol=1e-12)


def test_meteor_knows_the_synonyms_of_wordnets_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nltk")
    for name in wordnet.FILES:
        (tmp_path / name).write_text("")
    head = "  1 in WordNet's files, lines of the licence begin with spaces\n"
    # Byte where it lies, file, kind, two words with their senses, no pointers, and what it means.
    synset = f"{len(head):08} 03 n 02 chest 0 thorax 0 000 | part of the body\n"
    (tmp_path / "data.noun").write_text(head + synset)
    index = "".join(f"{word} n 1 0 1 0 {len(head):08}\n" for word in ("chest", "thorax"))
    (tmp_path / "index.noun").write_text(head + index)
    monkeypatch.setenv(wordnet.HOME, str(tmp_path))
    one, other = ["left thorax"], ["left chest"]  # NLTK looks up stems, and these are their own
    assert t.meteor(one, other)[0] > t.meteor(one, other, synonyms=False)[0] > 0
    wordnet.load_wordnet.cache_clear()
    (tmp_path / "index.verb").unlink()
    with pytest.raises(t.NotComputed, match=r"index\.verb"):
        t.meteor(one, other)


def test_cider_by_hand() -> None:
    """Equal texts have 10; words that all references have weigh nothing; one shared rare word of two by its cosine."""
    values = cider(["a b c d e", "a x", "a"], ["a b c d e", "a y x", "a z"])
    # n = 2 to 4 have nothing in common in the second pair, and in n = 1 "a" weighs nothing: x against y and x.
    np.testing.assert_allclose(values, [10, 10 / 4 / np.sqrt(2), 0], atol=1e-9)
    assert cider([""], ["left"]).tolist() == [0]


def test_rouge_of_sentences_forgives_their_order() -> None:
    one, other = ["Left effusion seen. The heart is large."], ["The heart is large. Left effusion seen."]
    assert t.rouge(one, other, "Lsum")[0] == pytest.approx(1) and t.rouge(one, other, "L")[0] < 1


@pytest.mark.slow
def test_bert_score_equals_torchmetrics_pair_by_pair(tmp_path: Path) -> None:
    folder = str(write_bert(tmp_path / "bert", window=512))
    values = t.bert_score(CANDIDATES, REFERENCES, model=folder)
    np.testing.assert_allclose(t.bert_score(CANDIDATES, REFERENCES, model=folder, batch_size=1), values, atol=1e-6)
    np.testing.assert_allclose(t.bert_score(CANDIDATES, CANDIDATES, model=folder), 1, atol=1e-6)
    assert t.bert_score(["", "left"], ["left", ""], model=folder).tolist() == [0, 0]
    theirs = pytest.importorskip("torchmetrics.functional.text.bert")
    for value, candidate, reference in zip(values, CANDIDATES, REFERENCES, strict=True):
        # One pair at a time: in a list it pairs texts that do not belong together.
        expected = theirs.bert_score([candidate], [reference], model_name_or_path=folder)
        assert value == pytest.approx(float(expected["f1"]), abs=1e-5)


def test_every_score_is_there_computed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("f1chexbert", "radgraph", "RaTEScore", "nltk"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(t.importlib.util, "find_spec", lambda name: None if sys.modules.get(name, 1) is None else 1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    described = Described(CANDIDATES, REFERENCES, GROUPS)
    results = t.text_scores(described, real=Described(REFERENCES, REFERENCES, GROUPS), bootstrap=Bootstrap(50))
    assert set(results) == set(t.SCORES)
    missing = {name for name, result in results.items() if result.details["not_computed"]}
    assert missing == {"METEOR", "METEOR (exact and stem)", "BERTScore", "RadGraph F1", "RaTEScore", t.CHEXBERT}
    for name in missing:
        assert np.isnan(results[name].value) and results[name].n == 0
        assert "not computed" in results[name].notes[0]
    assert "pip install radgraph" in results["RadGraph F1"].notes[0]
    assert "hf download roberta-large" in results["BERTScore"].notes[0]
    rouge = results["ROUGE-L"]
    assert rouge.floor is not None and rouge.ceiling is not None
    assert rouge.floor["value"] < rouge.value < rouge.ceiling["value"] == 1
    assert rouge.ci[0] <= rouge.value <= rouge.ci[1]
    assert results["BLEU-1"].value == pytest.approx(
        t.corpus_bleu(t.bleu_counts(CANDIDATES, REFERENCES).sum(axis=0, keepdims=True), 1)[0]
    )


def test_packages_are_called_as_they_want(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with the packages' own signatures: argument order decides what RadGraph and RaTEScore say."""

    class Label:
        def get_label(self, report: str) -> list[int]:
            builtins.print("a package that talks")
            return [int("effusion" in report.lower()), int("heart" in report.lower()), *[0] * 12]

    class Graph:
        def __init__(self, reward_level: str, model_type: str) -> None:
            assert (reward_level, model_type) == ("partial", "radgraph-xl")

        def __call__(self, refs: list[str], hyps: list[str]) -> tuple[float, list[float], list[Any], list[Any]]:
            return 0.0, [len(hyp) / len(ref) for hyp, ref in zip(hyps, refs, strict=True)], [], []

    class Rate:
        def compute_score(self, candidate_list: list[str], reference_list: list[str]) -> list[float]:
            return [float(len(c) > len(r)) for c, r in zip(candidate_list, reference_list, strict=True)]

    modules = {"f1chexbert": {"F1CheXbert": Label}, "radgraph": {"F1RadGraph": Graph}, "RaTEScore": {"RaTEScore": Rate}}
    for package, content in modules.items():
        monkeypatch.setitem(sys.modules, package, SimpleNamespace(**content))
    monkeypatch.setattr(t.importlib.util, "find_spec", lambda name: 1)
    names = [t.CHEXBERT, "RadGraph F1", "RaTEScore"]
    results = t.text_scores(Described(CANDIDATES, REFERENCES, GROUPS), scores=names, bootstrap=Bootstrap(20))
    # effusion: 2 agree; heart: 2 agree; nothing else is named by either.
    assert results[t.CHEXBERT].value == 1
    longer = [len(c) / len(r) for c, r in zip(CANDIDATES, REFERENCES, strict=True)]
    assert results["RadGraph F1"].value == pytest.approx(np.mean(longer))
    assert results["RaTEScore"].value == np.mean([value > 1 for value in longer])

    def fails() -> None:
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "f1chexbert", SimpleNamespace(F1CheXbert=fails))
    broken = t.text_scores(Described(CANDIDATES, REFERENCES, GROUPS), scores=[t.CHEXBERT], bootstrap=Bootstrap(20))
    assert "chexbert.pth" in broken[t.CHEXBERT].notes[0] and "no network" in broken[t.CHEXBERT].notes[0]


def test_nothing_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def talks(candidates: Any, references: Any) -> np.ndarray:
        print("Using device: cpu")
        return np.ones(len(candidates))

    monkeypatch.setitem(t.PAIRWISE, "RaTEScore", talks)
    t.text_scores(Described(CANDIDATES, REFERENCES, GROUPS), scores=["RaTEScore"], bootstrap=Bootstrap(5))
    captured = capsys.readouterr()
    assert captured.out == "" and "Using device" in captured.err


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="4 texts, 3 references"):
        Described(CANDIDATES, REFERENCES[:3], GROUPS)
    with pytest.raises(ValueError, match="unknown score 'SPICE'"):
        t.text_scores(Described(CANDIDATES, REFERENCES, GROUPS), scores=["SPICE"])


def write_describer(folder: Path) -> Path:
    """A tiny BLIP with random weights, its image processor and a tokenizer."""
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration, CLIPTokenizer

    write_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = small | ends | {"sep_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text |= {"vocab_size": len(tokenizer), "encoder_hidden_size": 16, "max_position_embeddings": 24}
    vision = small | {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    settings = {"image_processor_type": "BlipImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.slow
def test_hook_describes_images(tmp_path: Path, grey: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t, "BATCH", 2)
    reporter = load_reporter(str(write_describer(tmp_path / "blip")), flag="--image-to-text")
    images = [grey, grey[:20], 255 - grey]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")

    def describe(chosen: list[np.ndarray]) -> list[str]:
        table = pd.DataFrame({"image": [str(tmp_path / f"{number}.png") for number in range(len(chosen))]})
        return [report.text for report in t.reports_by(reporter, ImageSet("real", table, []))]

    texts = describe(images)
    assert len(texts) == 3 and any(texts) and describe(images) == texts
    assert describe(images[:1])[0] == texts[0]


def test_hook_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="hf download owner/name"):
        load_reporter("owner/name", flag="--image-to-text")
    with pytest.raises(UserError, match="--image-to-text /no/such/folder"):
        load_reporter("/no/such/folder", flag="--image-to-text")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="--image-to-text"):
        load_reporter(str(tmp_path), flag="--image-to-text")
