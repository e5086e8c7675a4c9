"""Train the small dual encoder that scores image-text alignment offline.

    roentgen train alignment --config alignment --manifest data/openchest/manifest.csv --out runs/alignment
    roentgen train alignment --config alignment --manifest data/sample/manifest.csv --out runs/alignment --pairs 5000

Images are seen through the shipped classifier, texts through ``mini``'s text encoder, both frozen: their features are
made once and cached, so that only two small heads are trained, in minutes on one core. Each pair is a training image
and one of several texts: the manifest's and others composed from its labels. Symmetric InfoNCE, from which texts that
are true of an image without being its own are removed. Trains on the ``train`` split and keeps the heads of the best
``val`` figure; ``test`` is never read. Writes ``OUT/model.safetensors``, ``OUT/config.json`` and the result JSON, whose
figures also go into ``OUT/README.md`` if there is one.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch

from roentgen.cache import kept, kept_in_batches
from roentgen.config import Count, Range, Rate, Share, ShareBelowOne, Short, parse_settings, require
from roentgen.data.images import CHAIN, load_pixels
from roentgen.data.manifest import finding_columns, train_and_val
from roentgen.files import file_hash, require_writable, sha256
from roentgen.metrics.adherence.auroc import macro_auroc
from roentgen.metrics.measure import Result
from roentgen.metrics.report.tables import figure, replace_between_markers, table
from roentgen.metrics.result import Context, write_result
from roentgen.metrics.statistics import Bootstrap
from roentgen.metrics.text import retrieval
from roentgen.metrics.text.alignment import alignment, own_and_other
from roentgen.models.dual_encoder import (
    AlignmentHeads,
    contrastive_loss,
    describes,
    frozen_parts,
    load_shipped,
    sayings,
    text_features,
)
from roentgen.models.own import save_network
from roentgen.prompts import FINDINGS, Labels, compose, labels_from_row, parse
from roentgen.provenance import portable
from roentgen.recipes import CONFIGS, Basics
from roentgen.training.loop import steps
from roentgen.training.order import batch_generator, batch_indices
from roentgen.training.schedule import set_cosine


@dataclass(frozen=True, kw_only=True)
class Settings(Basics):
    """Settings of the dual encoder recipe."""

    texts: Annotated[int, Range(1, 1000), "texts a training image, the manifest's and composed ones"] = 4
    bare: Annotated[
        Share,
        "share of the composed texts that say findings and sides only; view, sex and age are easier to see, "
        "and would be all that is learned",
    ] = 0.5
    balance: Annotated[
        float,
        Range(0, 10),
        "exponent of one over the count of an image's rarest finding, its chance to be drawn (0: all alike)",
    ] = 0.0
    hidden: Annotated[int, Range(1, 65_536), "hidden size of both heads"] = 512
    dim: Annotated[int, Range(1, 65_536), "size of the common space"] = 128
    dropout: Annotated[ShareBelowOne, "of features and hidden layer"] = 0.5
    pairs: Annotated[Count, Short("-n"), "length of training in pairs of image and text"] = 250_000
    batch_size: Annotated[int, Range(2, 65_536), "pairs a step; every other text of the batch is a negative"] = 256
    rate: Annotated[Rate, "peak learning rate of AdamW"] = 1e-3
    weight_decay: Annotated[float, Range(0, 100), "of AdamW"] = 0.1
    noise: Annotated[float, Range(0, 100), "standard deviation of the noise on standardised image features"] = 0.0
    eval_every: Annotated[Count, "pairs between validations"] = 15_000
    resamples: Annotated[int, Range(1, 1_000_000), "bootstrap resamples of the result"] = 1000
    result: Annotated[Path | None, "JSON of the val figures (default OUT/alignment.json)"] = None


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="roentgen train alignment", about=__doc__, configs=CONFIGS)
    train, val = train_and_val(s.manifest)
    require(len(train) >= s.batch_size, f"--manifest {s.manifest}: {len(train)} train images; lower --batch-size")
    require(len(val) >= 2, f"--manifest {s.manifest}: fewer than two val images; they choose the heads")
    print(f"{len(train)} training and {len(val)} validation images; {s.pairs} pairs to see", flush=True)
    if s.dry_run:
        return 0
    require_writable(s.out, "--out")
    cache = s.cache or s.out / "cache"
    require_writable(cache, "--cache")
    began = time.perf_counter()

    # Frozen features, made once: images by the classifier, texts by the text encoder.
    judge, text_encoder, reader, hashes = frozen_parts()
    images = {name: image_features(rows, judge, hashes, cache) for name, rows in (("train", train), ("val", val))}
    rng = random.Random(s.seed)
    labels = [labels_from_row(row) for row in train.to_dict("records")]
    texts = [t or compose(own, rng) for t, own in zip(train["text"], labels, strict=True)]
    for _ in range(s.texts - 1):
        texts += [compose(bare(own) if rng.random() < s.bare else own, rng) for own in labels]
    cut = reader.count(texts).cut
    if cut:
        print(f"warning: {cut} of {len(texts)} texts are longer than the encoder reads: cut", file=sys.stderr)
    key = sha256("\n".join([hashes["text_encoder"], *texts]))
    words = np.array(kept(cache, "texts", key, lambda: {"rows": text_features(text_encoder, reader, texts)})["rows"])
    val_labels = [labels_from_row(row) for row in val.to_dict("records")]
    val_known = sayings(val_labels)
    known, said = sayings(labels), sayings([parse(text) for text in texts])
    counts = np.maximum(known.findings.sum(axis=0), 1)
    rarest = np.where(known.findings > 0, 1 / counts, 0).max(axis=1)
    weights = torch.from_numpy(np.where(rarest > 0, rarest, 1 / len(train)) ** s.balance) if s.balance else None
    # Whole texts and bare findings each have a say in which heads are kept.
    val_texts = {"whole": list(val["text"]), "bare": [compose(bare(own), rng) for own in val_labels]}
    val_words = {kind: torch.from_numpy(text_features(text_encoder, reader, t)) for kind, t in val_texts.items()}
    val_true = {kind: describes(val_known, sayings([parse(one) for one in t])) for kind, t in val_texts.items()}

    torch.manual_seed(s.seed)
    inputs, val_inputs = (torch.from_numpy(images[name]) for name in ("train", "val"))
    widths = {"image_width": inputs.shape[1], "text_width": words.shape[1], "hidden": s.hidden, "dim": s.dim}
    heads = AlignmentHeads(**widths, dropout=s.dropout)
    for name, features in (("image", images["train"]), ("text", words)):
        heads.get_buffer(f"{name}_mean").copy_(torch.from_numpy(features.mean(axis=0)))
        heads.get_buffer(f"{name}_scale").copy_(torch.from_numpy(features.std(axis=0)).clamp(min=1e-3))
    optimizer = torch.optim.AdamW(heads.parameters(), lr=s.rate, weight_decay=s.weight_decay)
    info: dict[str, Any] = {**widths, "hashes": hashes, "training_images": len(train)}

    best = -1.0
    running: list[torch.Tensor] = []
    for step in steps(0, s.pairs, batch_size=s.batch_size, show=True, unit="pair"):
        chosen = batch_indices(weights, len(train), size=s.batch_size, seed=s.seed, batch=step.number)
        generator = batch_generator(s.seed, step.number, 3)
        version = torch.randint(s.texts, (s.batch_size,), generator=generator)
        rows, text_rows = chosen.numpy(), (chosen + version * len(train)).numpy()
        x = inputs[chosen]
        x = x + s.noise * heads.image_scale * torch.randn(x.shape, generator=generator)
        true = torch.from_numpy(describes(known[rows], said[text_rows]))
        set_cosine(optimizer, step.before, peak=s.rate, warmup=10 * s.batch_size, total=s.pairs, floor=0.01)
        heads.train()
        loss = contrastive_loss(
            heads.image_vectors(x),
            heads.text_vectors(torch.from_numpy(words[text_rows])),
            heads.log_scale.clamp(max=np.log(100)).exp(),
            true,
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen = step.images
        running.append(loss.detach())

        if step.due(s.eval_every):
            heads.eval()
            with torch.inference_mode():
                v = heads.image_vectors(val_inputs).double().numpy()
                t = {kind: heads.text_vectors(x).double().numpy() for kind, x in val_words.items()}
            beats = {k: float(np.nanmean(own_and_other(v, t[k], same=val_true[k])[2])) for k in t}
            share = sum(beats.values()) / len(beats)
            print(
                f"{seen} pairs, loss {torch.stack(running).mean().item():.3f}, on val the own text beats "
                f"{beats['whole']:.4f} of the others, {beats['bare']:.4f} of bare findings",
                flush=True,
            )
            running.clear()
            if share > best:
                best = share
                info |= {"pairs": seen, "val_beats": beats, "seconds": round(time.perf_counter() - began)}
                save_network(s.out, heads, info)
    result = measure(s, val, images["val"], val_texts, val_true)
    if (s.out / "README.md").is_file():
        replace_between_markers(s.out / "README.md", "alignment", report(result))
    print(f"{result['metric']}: {result['value']:.3f} {result['ci']}, n = {result['n']}")
    print(s.out)
    return 0


def bare(labels: Labels) -> Labels:
    """The labels without view, sex and age."""
    return Labels(findings=labels.findings, sides=labels.sides)


def image_features(rows: pd.DataFrame, judge: Any, hashes: dict[str, str], cache: Path) -> np.ndarray:
    """Features (N, D) of the rows' images, kept under the hash of the pixels and of the classifier."""
    pixels = load_pixels(rows["image"].tolist(), size=judge.size, cache=cache).pixels
    key = sha256(hashes["classifier"], np.ascontiguousarray(pixels))
    made = kept_in_batches(
        cache, "image-features", key, lambda part: {"rows": judge.features(np.array(pixels[part]))}, count=len(pixels)
    )
    return np.array(made["rows"])


def measure(
    s: Settings,
    val: pd.DataFrame,
    features: np.ndarray,
    texts: dict[str, list[str]],
    true: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Alignment, retrieval and zero-shot AUROC of the heads as written, on ``val``, each beside its chance level.

    ``texts`` and ``true`` are of whole texts and of bare findings: the former can be told apart by view, sex and age.
    """
    encoder = load_shipped(s.out)
    images = encoder.from_features(features)
    patients = val["patient_id"].tolist()
    findings = finding_columns(val)
    places = [list(FINDINGS).index(finding) for finding in findings]
    labels = val[findings].to_numpy(dtype=np.float64, na_value=np.nan)
    same = retrieval.same_findings(labels, labels)
    bootstrap = Bootstrap(s.resamples, s.seed)
    pairs, to_text = {}, {}
    for kind, own in texts.items():
        vectors = encoder.texts(own)
        named = sayings([parse(text) for text in own]).findings.astype(np.float64)
        pairs[kind] = alignment(images, vectors, patients, same=true[kind], bootstrap=bootstrap)
        to_text[kind] = retrieval.retrieval(
            images, vectors, retrieval.same_findings(labels, named[:, places]), patients, bootstrap=bootstrap
        )

    def among(vectors: np.ndarray) -> Result:
        """Images of other patients found for an image."""
        return retrieval.retrieval(vectors, vectors, same, patients, gallery_groups=patients, bootstrap=bootstrap)

    # Zero-shot: cosine with the mean of the vectors of a finding's names, against its labels.
    names = [encoder.texts(list(FINDINGS[finding].synonyms)).mean(axis=0) for finding in findings]
    scores = images.astype(np.float64) @ retrieval.unit_rows(np.stack(names)).T
    zero_shot = macro_auroc(scores, labels, findings, bootstrap.weights(patients), leave_out=("No Finding",))
    context = Context.of(
        "train/alignment.py",
        s,
        extractor=f"dual encoder {portable(s.out)}, sha256 {encoder.hash}",
        resize=f"{CHAIN}: {encoder.chain}",
        inputs={str(portable(s.manifest.resolve())): file_hash(s.manifest)},
    )
    return write_result(
        s.result or s.out / "alignment.json",
        metric="share of other texts that an image's own text beats (val)",
        value=pairs["whole"].details["beats"]["value"],
        ci=pairs["whole"].details["beats"]["ci"],
        ci_method=pairs["whole"].ci_method,
        n=pairs["whole"].n,
        context=context,
        warnings=["val chose among the heads saved in training, so its figures are somewhat too good"],
        details={
            "chance": 0.5,
            "cosine": pairs["whole"].as_dict(),
            "cosine_bare_findings": pairs["bare"].as_dict(),
            "self_retrieval": retrieval.self_retrieval(images),
            "image_to_text": to_text["whole"].as_dict(),
            "image_to_text_bare_findings": to_text["bare"].as_dict(),
            "image_to_image": among(images).as_dict(),
            "image_to_image_classifier_features": among(features).as_dict(),
            "relevance": "the same set of findings, as the text names them and the image has them",
            "zero_shot_auroc": {
                **zero_shot.entry,
                "findings": {row["finding"]: row["value"] for row in zero_shot.findings if row["in_macro"]},
            },
        },
    )


def report(result: dict[str, Any]) -> str:
    """Markdown of the result: each figure with its interval beside its chance level."""
    d = result["details"]
    rows = []
    for what, kind in (("own text", "cosine"), ("own findings, without view, sex and age", "cosine_bare_findings")):
        entry = d[kind]["details"]["beats"]
        rows.append([f"Share of other texts that the {what} beats", figure(entry), "0.50"])
    for what, kind in (
        ("Image to text", "image_to_text"),
        ("Image to text, findings only", "image_to_text_bare_findings"),
        ("Image to image", "image_to_image"),
        ("Image to image, by the classifier's features alone", "image_to_image_classifier_features"),
    ):
        rows += [
            [f"{what}, precision at {at['k']}", figure(at), figure({**at, "value": at["chance"], "ci": None})]
            for at in d[kind]["details"]["at"]
        ]
    rows.append(["Macro AUROC of a finding's name against its label", figure(d["zero_shot_auroc"]), "0.50"])
    notes = f"n = {result['n']} images of `val`; brackets: 95 % intervals by patient. Note: {result['warnings'][0]}."
    return table(["measure", "value", "chance"], rows) + "\n\n" + notes
