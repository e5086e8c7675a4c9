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

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roentgen import errors
from roentgen.data.sections import clean_text
from roentgen.data.sources.openi import REPORTS_ARCHIVE, SECTIONS, carried_file, openi_reports
from roentgen.experiments.text_probe import bag_of_words, folds_of, judge, probe_report, probe_scores, summarise
from roentgen.files import file_hash, require_writable, tensors_hash
from roentgen.metrics.report.tables import replace_between_markers
from roentgen.metrics.result import Context, read_result, write_result
from roentgen.metrics.statistics import RESAMPLES, cluster_weights
from roentgen.models.hub import NAMED
from roentgen.models.text_encoders import encode_text_states, load_text_encoder, make_reader
from roentgen.provenance import portable

WORDS, RANDOM, SHUFFLED = "bag of words", "random weights", "shuffled labels"
POOLS = ("mean", "end")


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    result = measure(args) if args.encoder else read_result(args.out)
    text = probe_report(result)
    print(text)
    for document in args.update:
        if replace_between_markers(document, "text-encoder", text, write=not args.check) and args.check:
            raise errors.UserError(f"{document} is out of date; run the command again without --check")
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="eval/text_encoder_probe.py", description=(__doc__ or "").splitlines()[0])
    found.add_argument(
        "--encoder",
        action="append",
        default=[],
        metavar="[LABEL=]NAME_OR_PATH",
        help="text encoder: `mini`, a name (radbert, sapbert, cxr-bert), a pipeline or encoder folder, a hub id; "
        "repeat it to compare; LABEL is what the table calls it",
    )
    found.add_argument("--out", type=Path, required=True, help="result JSON, written, or read without --encoder")
    found.add_argument("--reports", type=Path, help=f"{REPORTS_ARCHIVE} (default: torchxrayvision's copy)")
    found.add_argument(
        "--sections", nargs="+", default=["impression"], choices=SECTIONS, help="sections joined to the text"
    )
    found.add_argument("--sizes", nargs="*", type=int, default=[64, 256], help="training set sizes beside all reports")
    found.add_argument("--draws", type=int, default=3, help="random draws of each small training set")
    found.add_argument("--folds", type=int, default=5)
    found.add_argument("--least", type=int, default=20, help="reports that a finding must be in")
    found.add_argument("--limit", type=int, help="use the first reports only, to try things out")
    found.add_argument("--resamples", type=int, default=RESAMPLES, help="of the bootstrap")
    found.add_argument("--window", type=int, help="tokens of a text (default: the encoder's own)")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--update", type=Path, action="append", default=[], help="Markdown file with the markers")
    found.add_argument("--check", action="store_true", help="fail if --update is out of date; write nothing there")
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    require_writable(args.out.parent, "--out")
    encoders = dict(named_encoder(text) for text in args.encoder)
    if len(encoders) < len(args.encoder):
        raise errors.UserError("two --encoder have the same name; tell them apart with LABEL=PATH")
    path = args.reports or carried_file(REPORTS_ARCHIVE)
    if path is None:
        raise errors.UserError(
            f"--reports is missing: name {REPORTS_ARCHIVE}, or install torchxrayvision, which has it"
        )
    texts, labels, findings, patients, counts = read_reports(path, args)
    print(f"{path.name}: {counts}", file=sys.stderr)

    torch.manual_seed(args.seed)
    features: dict[tuple[str, str], NDArray[np.float64]] = {}
    models, cut = {}, {}
    for name, source in encoders.items():
        tokenizer, encoder = load_text_encoder(source)
        models[name] = weights_hash(encoder)
        features |= {(name, pool): x for pool, x in encode(tokenizer, encoder, texts, args.window, cut, name).items()}
    first = next(iter(encoders))
    tokenizer, encoder = load_text_encoder(encoders[first])
    untrained = type(encoder)(encoder.config).eval()
    features |= {(RANDOM, pool): x for pool, x in encode(tokenizer, untrained, texts, args.window, {}, RANDOM).items()}
    features[WORDS, POOLS[0]] = bag_of_words(texts)
    features[SHUFFLED, POOLS[0]] = features[first, POOLS[0]]

    weights = cluster_weights(patients, args.resamples, args.seed)
    folds = folds_of(patients, args.folds, args.seed)
    sizes = [*args.sizes, None]
    runs, judged = [], {}
    for (name, pool), x in features.items():
        for size in sizes:
            scores = []
            for draw in range(1 if size is None and name != SHUFFLED else args.draws):
                seed = args.seed + draw
                # Moving the features among the reports is the same as shuffling the labels, rows whole.
                moved = x[np.random.default_rng(seed).permutation(len(x))] if name == SHUFFLED else x
                scores.append(probe_scores(moved, labels, folds, size=size, seed=seed, standardise=name != WORDS))
            judged[name, pool, size] = judge(scores, labels, weights)
            run = {"features": name, "pool": pool, "size": size, **summarise(judged[name, pool, size])}
            runs.append(run)
            where = "all" if size is None else size
            print(f"{name}, {pool}, {where} reports: macro AUROC {run['auroc']['macro']['value']:.3f}", file=sys.stderr)
    differences = []
    if len(encoders) > 1:
        before, after = list(encoders)[:2]
        for pool in POOLS:
            for size in sizes:
                change = summarise(judged[after, pool, size], judged[before, pool, size])
                differences.append({"of": after, "less": before, "pool": pool, "size": size, **change})

    main_run = differences[len(sizes) - 1] if differences else runs[len(sizes) - 1]
    settings = {
        key: portable(value)
        for key, value in vars(args).items()
        if key not in ("encoder", "update", "check", "out", "reports")
    }
    settings["encoder"] = list(encoders)
    context = Context(
        extractor="frozen text encoder, logistic regression",
        resize="none",
        seed=args.seed,
        settings=settings,
        model=models,
        inputs={"reports": {"name": path.name, "sha256": file_hash(path)}},
        command=shlex.join(["python", "eval/text_encoder_probe.py", *command(args)]),
    )
    label = f"{list(encoders)[1]} less {first}" if differences else first
    result = write_result(
        args.out,
        metric=f"macro AUROC of linear probes on text states, {label}",
        value=main_run["auroc"]["macro"]["value"],
        ci=main_run["auroc"]["macro"]["ci"],
        ci_method="95 % percentile, bootstrap by patient, paired",
        n=len(texts),
        context=context,
        details={
            "encoders": list(encoders),
            "features": list(dict.fromkeys(name for name, _ in features)),
            "pools": list(POOLS),
            "sizes": sizes,
            "folds": args.folds,
            "sections": args.sections,
            "reports": counts,
            "cut_at_the_window": cut,
            "findings": [
                {"finding": name, "positives": int(np.nansum(column)), "unknown": int(np.isnan(column).sum())}
                for name, column in zip(findings, labels.T, strict=True)
            ],
            "runs": runs,
            "differences": differences,
        },
    )
    return result


def named_encoder(text: str) -> tuple[str, str]:
    """(label, source) of one --encoder; ``mini`` and the other named models stand for their folder or hub id."""
    label, equals, source = text.partition("=")
    if not equals:
        source = text
        label = portable(text) if Path(text).is_dir() else text  # a result tells no folders
    model = NAMED.get(source)
    if model is not None:
        source = str(model.folder) if model.folder is not None else model.hub_ids[0]
    return str(label), source


def command(args: argparse.Namespace) -> list[str]:
    """The flags that make ``args`` again, without anybody's folders."""
    words = []
    for text in args.encoder:
        label, source = named_encoder(text)
        words += ["--encoder", text if label == text else f"{label}={portable(str(Path(source).absolute()))}"]
    for key, default in vars(parser().parse_args(["--out", "x"])).items():
        value = getattr(args, key)
        if key not in ("encoder", "out", "update", "check") and value != default:
            words += [f"--{key}", *(str(portable(item)) for item in (value if isinstance(value, list) else [value]))]
    return [*words, "--out", str(portable(args.out))]


def read_reports(
    path: Path, args: argparse.Namespace
) -> tuple[list[str], NDArray[np.float64], list[str], list[str], dict[str, int]]:
    """Texts, labels (N, F) in {0, 1, NaN}, findings, patients, and counts of what was left out."""
    table = openi_reports(path)
    counts = {"reports": len(table)}
    if args.limit is not None:
        table = table.iloc[: args.limit]
    text = [
        " ".join(filter(None, (clean_text(row[name]) for name in args.sections))) for row in table.to_dict("records")
    ]
    table = table.assign(text=text)
    table = table[table["text"] != ""]
    counts["with_text"] = len(table)
    table = table[table["labels"].str.len() > 0]
    counts["with_text_and_labels"] = len(table)
    counts["different_texts"] = int(table["text"].nunique())
    names = sorted({name for labels in table["labels"] for name in labels})
    labels = np.array([[row.get(name, np.nan) for name in names] for row in table["labels"]], dtype=np.float64)
    enough = [
        place
        for place in range(len(names))
        if np.nansum(labels[:, place]) >= args.least and (labels[:, place] == 0).sum() >= args.least
    ]
    if not enough:
        raise errors.UserError(f"no finding is in {args.least} reports of {path}; lower --least")
    findings = [names[place] for place in enough]
    return table["text"].tolist(), labels[:, enough], findings, [f"CXR{uid}" for uid in table["uid"]], counts


@torch.inference_mode()
def encode(
    tokenizer: Any, encoder: Any, texts: list[str], window: int | None, cut: dict[str, int], name: str
) -> dict[str, NDArray[np.float64]]:
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


def weights_hash(encoder: Any) -> str:
    """First 16 hex digits of the SHA-256 over the encoder's weights, by name."""
    return tensors_hash(sorted(encoder.state_dict().items()))


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/text_encoder_probe.py"))
