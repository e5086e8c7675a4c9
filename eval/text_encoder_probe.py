"""What a text encoder knows of findings: linear probes on its frozen states, on real reports.

    python eval/text_encoder_probe.py --encoder mini --encoder mini-finetuned=OUT/pipeline \\
        --out eval/results/text_encoder.json --update docs/training.md

The texts are the impressions of the Open-i reports (Demner-Fushman et al., JAMIA 2016), the labels the MeSH terms that
human indexers gave each report. For each finding a logistic regression reads it from one vector a report (the mean of
the encoder's states over the tokens that are not padding; or the state of the end token, which CLIP pools, [CLS] of
BERT). Reports are in folds by patient (Open-i does not tell patients, so each report is taken for one); the strength of
regularisation is chosen inside the training folds; intervals and paired differences are bootstraps by patient. The
first two encoders are compared: before and after a fine-tune. Without --encoder the result of --out is put in a table.

Controls: bag of words (no encoder at all), an encoder of the first one's architecture with random weights, and the
first encoder with shuffled labels, which must give 0.5.

What it shows and what not. An impression nearly always names its findings in words that are in the label, so a bag of
words already reads most of them, and probes on all reports come close to one another: the small training sets are where
representations differ. A higher AUROC means that the finding is easier to read off linearly, its negation included
("no pneumothorax"); it does not mean that the U-Net draws it. RoentGen (Chambon et al. 2022) reports that fine-tuning
improved the representation of pneumothorax by 25 %, measured on its own MIMIC-CXR data; the reports, labels and
classifier here are others, so the question is the same and the figures are not comparable.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from roentgen import errors
from roentgen.config import Count, Filled, Range, Resamples, Seed, parse_settings
from roentgen.data.sections import clean_text
from roentgen.data.sources.openi import REPORTS_ARCHIVE, carried_file, openi_reports
from roentgen.experiments.text_probe import (
    Probed,
    bag_of_words,
    folds_of,
    judge,
    probe_report,
    probe_scores,
    summarise,
)
from roentgen.files import file_hash, require_writable, tensors_hash
from roentgen.metrics.report.tables import fill_all
from roentgen.metrics.result import Context, read_result, shown, write_result
from roentgen.metrics.statistics import RESAMPLES, Bootstrap, Floats
from roentgen.models.hub import NAMED
from roentgen.models.text_encoders import encode_text_states, load_text_encoder, make_reader
from roentgen.provenance import portable

WORDS, RANDOM, SHUFFLED = "bag of words", "random weights", "shuffled labels"
POOLS = ("mean", "end")


@dataclass(frozen=True)
class Settings:
    """Settings of the probe."""

    out: Annotated[Path, "result JSON, written, or read without --encoder"]
    encoder: Annotated[
        tuple[str, ...],
        "text encoders as NAME_OR_PATH or LABEL=NAME_OR_PATH: `mini`, a name (radbert, sapbert, cxr-bert), a pipeline "
        "or encoder folder, a hub id; repeat it to compare; LABEL is what the table calls it",
    ] = ()
    reports: Annotated[Path | None, f"{REPORTS_ARCHIVE} (default: torchxrayvision's copy)"] = None
    sections: Annotated[
        tuple[Literal["comparison", "indication", "findings", "impression"], ...],
        Filled(),
        "sections joined to the text",
    ] = ("impression",)
    sizes: Annotated[tuple[Count, ...], "training set sizes beside all reports"] = (64, 256)
    draws: Annotated[Count, "random draws of each small training set"] = 3
    folds: Annotated[int, Range(2, 1000), "outer folds, by patient"] = 5
    least: Annotated[Count, "reports that a finding must be in"] = 20
    limit: Annotated[Count | None, "use the first reports only, to try things out"] = None
    resamples: Annotated[Resamples, "of the bootstrap"] = RESAMPLES
    window: Annotated[Count | None, "tokens of a text (default: the encoder's own)"] = None
    seed: Annotated[Seed, "of every random choice"] = 0
    update: Annotated[tuple[Path, ...], "Markdown files with the markers"] = ()
    check: Annotated[bool, "fail if --update is out of date; write nothing there"] = False


@dataclass(frozen=True)
class Reports:
    """Texts, labels (N, F) in {0, 1, NaN} of ``findings``, a patient each, and counts of what was left out."""

    texts: list[str]
    labels: Floats
    findings: list[str]
    patients: list[str]
    counts: dict[str, int]


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="eval/text_encoder_probe.py", about=__doc__)
    result = measure(s) if s.encoder else read_result(s.out)
    with shown(s.out):
        text = probe_report(result)
    print(text)
    fill_all(s.update, {"text-encoder": text}, check=s.check)
    return 0


def measure(s: Settings) -> dict[str, Any]:
    """Every probe, to the result JSON."""
    require_writable(s.out.parent, "--out")
    encoders = dict(named_encoder(text) for text in s.encoder)
    if len(encoders) < len(s.encoder):
        raise errors.UserError("two --encoder have the same name; tell them apart with LABEL=PATH")
    path = s.reports or carried_file(REPORTS_ARCHIVE)
    if path is None:
        raise errors.UserError(
            f"--reports is missing: name {REPORTS_ARCHIVE}, or install torchxrayvision, which has it"
        )
    reports = read_reports(path, s)
    print(f"{path.name}: {reports.counts}", file=sys.stderr)
    cut: dict[str, int] = {}
    features, models = features_of(encoders, reports.texts, s, cut)
    sizes = [*s.sizes, None]
    judged = probe_all(features, reports, sizes, s)
    runs = [
        {"features": name, "pool": pool, "size": size, **summarise(found)}
        for (name, pool, size), found in judged.items()
    ]
    first, after = next(iter(encoders)), list(encoders)[1] if len(encoders) > 1 else None
    differences = [
        {"of": after, "less": first, "pool": pool, "size": size,
         **summarise(judged[after, pool, size], judged[first, pool, size])}
        for pool in POOLS for size in sizes if after is not None
    ]  # fmt: skip
    main_run = (differences or runs)[len(sizes) - 1]["auroc"]["macro"]
    told = replace(s, encoder=tuple(without_folders(text) for text in s.encoder), update=(), check=False)
    context = Context.of(
        "eval/text_encoder_probe.py", told, extractor="frozen text encoder, logistic regression", resize="none",
        model=models, inputs={"reports": {"name": path.name, "sha256": file_hash(path)}},
    )  # fmt: skip
    counted = zip(reports.findings, reports.labels.T, strict=True)
    return write_result(
        s.out,
        metric=f"macro AUROC of linear probes on text states, {f'{after} less {first}' if after else first}",
        value=main_run["value"],
        ci=main_run["ci"],
        ci_method="95 % percentile, bootstrap by patient, paired",
        n=len(reports.texts),
        context=context,
        details={
            "encoders": list(encoders),
            "features": list(dict.fromkeys(name for name, _ in features)),
            "pools": list(POOLS),
            "sizes": sizes,
            "folds": s.folds,
            "sections": list(s.sections),
            "reports": reports.counts,
            "cut_at_the_window": cut,
            "findings": [
                {"finding": name, "positives": int(np.nansum(column)), "unknown": int(np.isnan(column).sum())}
                for name, column in counted
            ],
            "runs": runs,
            "differences": differences,
        },
    )


def features_of(
    encoders: dict[str, str], texts: list[str], s: Settings, cut: dict[str, int]
) -> tuple[dict[tuple[str, str], Floats], dict[str, str]]:
    """States (N, D) by encoder and pool, the controls' with them, and hashes of the encoders' weights."""
    features: dict[tuple[str, str], Floats] = {}
    models = {}
    loaded = {name: load_text_encoder(source) for name, source in encoders.items()}
    first, (tokenizer, encoder) = next(iter(loaded.items()))
    torch.manual_seed(s.seed)
    untrained = type(encoder)(encoder.config).eval()
    for name, (words, net) in {**loaded, RANDOM: (tokenizer, untrained)}.items():
        if name != RANDOM:
            models[name] = tensors_hash(sorted(net.state_dict().items()))
        features |= {(name, pool): x for pool, x in encode(words, net, texts, s.window, cut, name).items()}
    features[WORDS, POOLS[0]] = bag_of_words(texts)
    features[SHUFFLED, POOLS[0]] = features[first, POOLS[0]]
    return features, models


def probe_all(
    features: dict[tuple[str, str], Floats], reports: Reports, sizes: Sequence[int | None], s: Settings
) -> dict[tuple[str, str, int | None], Probed]:
    """Held-out scores of every probe, judged."""
    weights = Bootstrap(s.resamples, s.seed).weights(reports.patients)
    folds = folds_of(reports.patients, s.folds, s.seed)
    judged: dict[tuple[str, str, int | None], Probed] = {}
    for (name, pool), x in features.items():
        for size in sizes:
            scores = []
            for draw in range(1 if size is None and name != SHUFFLED else s.draws):
                seed = s.seed + draw
                # Moving the features among the reports is the same as shuffling the labels, rows whole.
                moved = x[np.random.default_rng(seed).permutation(len(x))] if name == SHUFFLED else x
                standardise = name != WORDS
                scores.append(probe_scores(moved, reports.labels, folds, size=size, seed=seed, standardise=standardise))
            judged[name, pool, size] = found = judge(scores, reports.labels, weights)
            where = "all" if size is None else size
            area = np.mean([one.value for one in found["auroc"]])
            print(f"{name}, {pool}, {where} reports: macro AUROC {area:.3f}", file=sys.stderr)
    return judged


def named_encoder(text: str) -> tuple[str, str]:
    """(label, source) of one --encoder; ``mini`` and the other named models stand for their folder or hub id."""
    label, equals, source = text.partition("=")
    if not equals:
        source = text
        label = str(portable(text)) if Path(text).is_dir() else text  # a result tells no folders
    model = NAMED.get(source)
    if model is not None:
        source = str(model.folder) if model.folder is not None else model.hub_ids[0]
    return label, source


def without_folders(text: str) -> str:
    """One --encoder as a result may tell it."""
    label, source = named_encoder(text)
    return text if label == text else f"{label}={portable(str(Path(source).absolute()))}"


def read_reports(path: Path, s: Settings) -> Reports:
    """The reports with text and labels."""
    table = openi_reports(path)
    counts = {"reports": len(table)}
    table = table.iloc[: s.limit]
    rows = table.to_dict("records")
    table = table.assign(text=[" ".join(filter(None, (clean_text(row[name]) for name in s.sections))) for row in rows])
    table = table[table["text"] != ""]
    counts["with_text"] = len(table)
    table = table[table["labels"].str.len() > 0]
    counts["with_text_and_labels"] = len(table)
    counts["different_texts"] = int(table["text"].nunique())
    names = sorted({name for labels in table["labels"] for name in labels})
    labels = np.array([[row.get(name, np.nan) for name in names] for row in table["labels"]], dtype=np.float64)
    enough = np.flatnonzero((np.nansum(labels, axis=0) >= s.least) & ((labels == 0).sum(axis=0) >= s.least))
    if not len(enough):
        raise errors.UserError(f"no finding is in {s.least} reports of {path}; lower --least")
    patients = [f"CXR{uid}" for uid in table["uid"]]
    return Reports(table["text"].tolist(), labels[:, enough], [names[i] for i in enough], patients, counts)


@torch.inference_mode()
def encode(
    tokenizer: Any, encoder: Any, texts: list[str], window: int | None, cut: dict[str, int], name: str
) -> dict[str, Floats]:
    """(N, D) for each of ``POOLS``; ``cut`` gets the number of texts that were longer than the window."""
    encoder.eval()
    reader = make_reader(tokenizer, encoder, window=window)
    cut[name] = reader.count(texts).cut
    if cut[name] and name != RANDOM:
        print(f"{name}: {cut[name]} of {len(texts)} texts are cut at {reader.window} tokens", file=sys.stderr)
    means, ends = [], []
    for start in range(0, len(texts), 64):
        tokens = reader.tokens(texts[start : start + 64])
        states = encode_text_states(encoder, tokens, masked=reader.masked).double()
        real = tokens.attention.double().unsqueeze(-1)
        means.append((states * real).sum(1) / real.sum(1))
        # A CLIP token sees what is before it, so the end token has seen all; BERT is trained to gather in [CLS].
        place = torch.zeros(len(states), dtype=torch.long) if reader.masked else tokens.attention.sum(1) - 1
        ends.append(states[torch.arange(len(states)), place])
    return {"mean": torch.cat(means).numpy(), "end": torch.cat(ends).numpy()}


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/text_encoder_probe.py"))
