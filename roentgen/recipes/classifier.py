"""Train the multi-label classifier that judges generated images offline (no flips, split by patient).

    roentgen train classifier --config mini-classifier --manifest data/openchest/manifest.csv --out runs/classifier
    roentgen train classifier --manifest data/openchest/manifest.csv --part 0-0.4 --out runs/judge --images 20000

``--part`` trains on a share of the training patients only: a classifier that rewards in training and one that judges
afterwards must not have seen the same patients. Writes ``OUT/model.safetensors`` and ``OUT/config.json`` (weights of
the validation with the best macro AUROC).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from roentgen.config import (
    BatchSize,
    Count,
    Pixels,
    Range,
    Rate,
    ShareBelowOne,
    Short,
    Weight,
    as_dict,
    parse_settings,
    require,
)
from roentgen.data.images import load_pixels
from roentgen.data.manifest import finding_columns, read_manifest, side_signs
from roentgen.files import require_writable
from roentgen.images import to_autoencoder
from roentgen.metrics.adherence.auroc import by_auroc
from roentgen.metrics.adherence.scored import by_finding
from roentgen.models.classifier import HalvesNet, finding_loss, inside_part
from roentgen.models.own import save_network
from roentgen.recipes import CONFIGS, Basics
from roentgen.training.augment import jittered
from roentgen.training.loop import descend, steps
from roentgen.training.order import batch_generator, batch_indices
from roentgen.training.schedule import set_cosine
from roentgen.training.setup import make_accelerator, share_of_batch
from roentgen.training.trackers import Log, Trackers


@dataclass(frozen=True, kw_only=True)
class Settings(Basics):
    """Settings of the classifier recipe."""

    part: Annotated[
        str, "share of training patients to use, as START-END of the unit interval (patients are hashed into it)"
    ] = "0-1"
    findings: Annotated[
        tuple[str, ...] | None, "findings to learn (default: all with at least `min_positive` positive training images)"
    ] = None
    min_positive: Annotated[Count, "see findings"] = 30
    size: Annotated[Pixels, "side of the image in pixels"] = 128
    blocks: Annotated[tuple[Annotated[int, Range(1, 64)], ...], "residual blocks a stage"] = (1, 1, 1, 1)
    images: Annotated[Count, Short("-n"), "length of training in images seen"] = 80_000
    batch_size: Annotated[BatchSize, "images a step, over all processes"] = 32
    rate: Annotated[Rate, "peak learning rate of AdamW"] = 2e-3
    weight_decay: Annotated[float, Range(0, 100), "of AdamW"] = 0.05
    mil_weight: Annotated[Weight, "weight of the half-image loss against the image loss"] = 0.5
    side_weight: Annotated[Weight, "weight of the loss on known sides (the manifest's `<Finding>_side` columns)"] = 0.5
    label_smoothing: Annotated[ShareBelowOne, "towards 0.5, for labels mined from reports"] = 0.02
    precision: Annotated[Literal["bf16", "no"], "bf16 or no"] = "bf16"
    trackers: Trackers = ("tensorboard",)
    eval_every: Annotated[Count, "images between validations"] = 8_000


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="roentgen train classifier", about=__doc__, configs=CONFIGS)
    inside_part([], s.part, "--part")  # a wrong one is said before anything is read
    accelerator = make_accelerator(precision=s.precision, trackers=s.trackers)
    mine = share_of_batch(accelerator, s.batch_size)

    # Data: unknown labels (blank) carry no loss; patients outside the part are not seen at all.
    table = read_manifest(s.manifest, splits=["train", "val"], allow_empty_text=True)
    inside = inside_part(table["patient_id"].tolist(), s.part, "--part")
    train, val = table[(table["split"] == "train") & inside], table[table["split"] == "val"]
    require(len(train) > 0 and len(val) > 0, f"--manifest {s.manifest}: no train or val images in part {s.part}")
    findings = list(s.findings or [f for f in finding_columns(table) if (train[f] == 1).sum() >= s.min_positive])
    unknown = [f for f in findings if f not in table.columns]
    require(not unknown, f"--findings {', '.join(unknown)}: not a column of {s.manifest}")
    require(
        bool(findings),
        f"--manifest {s.manifest}: no finding has {s.min_positive} positives; lower --min-positive",
    )
    accelerator.print(
        f"{len(train)} training images of {train['patient_id'].nunique()} patients, {len(val)} for "
        f"validation; {len(findings)} findings; {s.images} images to see",
        flush=True,
    )
    if s.dry_run:
        return 0
    require_writable(s.out, "--out")
    with accelerator.main_process_first():
        everything = load_pixels(table["image"].tolist(), size=s.size, cache=s.cache or s.out / "cache").pixels
    inputs, val_inputs = everything[train.index], everything[val.index]
    labels = torch.tensor(train[findings].to_numpy(dtype=np.float32, na_value=np.nan))
    known_sides = torch.from_numpy(side_signs(train, findings))
    val_labels = val[findings].to_numpy(dtype=np.float32, na_value=np.nan)

    torch.manual_seed(s.seed)
    net = HalvesNet(len(findings), blocks=s.blocks).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=s.rate, weight_decay=s.weight_decay)
    model, optimizer = accelerator.prepare(net, optimizer)
    info = {
        "findings": findings,
        "size": s.size,
        "blocks": list(s.blocks),
        "part": s.part,
        "training_images": len(train),
    }
    log = Log(s.trackers, s.out, as_dict(s)) if accelerator.is_main_process else None

    best, began = -1.0, time.perf_counter()
    running: list[torch.Tensor] = []
    for step in steps(0, s.images, batch_size=s.batch_size, show=accelerator.is_main_process):
        chosen = batch_indices(None, len(train), size=s.batch_size, seed=s.seed, batch=step.number)
        generator = batch_generator(s.seed, step.number)
        x = augment(to_autoencoder(inputs[chosen.numpy()]), generator)[mine].to(accelerator.device)
        y = labels[chosen][mine].to(accelerator.device)
        sign = known_sides[chosen][mine].to(accelerator.device)
        set_cosine(optimizer, step.before, peak=s.rate, warmup=2_000, total=s.images, floor=0.01)
        model.train()
        with accelerator.autocast():
            logits, sides = model(x.contiguous(memory_format=torch.channels_last))
        loss = finding_loss(
            logits.float(), sides.float(), y, sign, smoothing=s.label_smoothing, mil=s.mil_weight, side=s.side_weight
        )
        descend(accelerator, loss, optimizer, net.parameters())
        images = step.images
        running.append(loss.detach())

        if step.due(s.eval_every):
            net.eval()
            if accelerator.is_main_process:
                scores = predict(net, val_inputs, accelerator.device)
                per = finding_aurocs(scores, val_labels, findings, least=8)
                macro = float(np.mean(list(per.values()))) if per else 0.0
                print(
                    f"{images} images, loss {torch.stack(running).mean().item():.4f}, validation macro AUROC "
                    f"{macro:.3f}, {images / (time.perf_counter() - began):.0f} images/s",
                    flush=True,
                )
                assert log is not None
                log.add_scalar("val/macro_auroc", macro, images)
                log.add_scalar("train/loss", torch.stack(running).mean().item(), images)
                running.clear()
                if macro >= best:
                    best = macro
                    save_network(
                        s.out,
                        net,
                        {
                            **info,
                            "images": images,
                            "validation_auroc": {"macro": macro, **per},
                            "seconds": round(time.perf_counter() - began),
                        },
                    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print(json.dumps({"validation_macro_auroc": best}), flush=True)
        print(s.out)
    accelerator.end_training()
    return 0


def finding_aurocs(
    scores: NDArray[np.floating], labels: NDArray[np.float32], findings: Sequence[str], *, least: int
) -> dict[str, float]:
    """AUROC of each finding with at least ``least`` positives and negatives; scores, labels (N, F), NaN unknown."""
    known, none = labels.astype(np.float64), np.empty((0, len(labels)))
    found = by_finding(by_auroc, scores.astype(np.float64), known, findings, none)
    return {one.finding: one.value for one in found if one.cases >= least}


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Small shifts, zooms, turns, contrast and brightness changes and noise of (N, 1, H, W) in [-1, 1]; no flips."""
    x = jittered(x, generator, contrast=(0.75, 1.25))
    smooth = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = x + (torch.rand(len(x), 1, 1, 1, generator=generator) < 0.3) * (smooth - x)
    return x + 0.03 * torch.randn(x.shape, generator=generator)


@torch.inference_mode()
def predict(net: HalvesNet, inputs: np.ndarray, device: torch.device) -> np.ndarray:
    """Probabilities (N, F)."""
    net.eval()
    parts = []
    for start in range(0, len(inputs), 64):
        parts.append(net(to_autoencoder(inputs[start : start + 64]).to(device))[0].sigmoid().cpu())
    return torch.cat(parts).numpy()
