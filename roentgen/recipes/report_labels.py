"""The loop of ``roentgen train report --arch labels``: the classifier with sides and places, and its calibration."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from roentgen.cache import RowStore
from roentgen.config import require
from roentgen.data.boxes import read_boxes
from roentgen.data.manifest import WEIGHT, finding_columns, read_manifest
from roentgen.files import write_atomic, write_npz
from roentgen.images import read_image
from roentgen.models.efficientnet_lite import TRUNK, load_imagenet
from roentgen.models.own import save_network
from roentgen.prompts import NO_FINDING
from roentgen.recipes.classifier import finding_aurocs
from roentgen.recipes.report_calibration import calibrate_rules
from roentgen.recipes.report_features import jitter_of, trunk_features
from roentgen.recipes.report_screen import fit_screen
from roentgen.recipes.report_settings import LabelsRecipe, Recipe, Run
from roentgen.recipes.report_targets import SOURCES_ONLY, Targets, box_loss, label_loss, read_targets
from roentgen.reports.finding_net import (
    KIND,
    STRIDE,
    FindingNet,
    Predictions,
    join,
    load_net,
    predict,
    probabilities,
    squash,
)
from roentgen.reports.labels import SCREEN
from roentgen.reports.load import find_reporter
from roentgen.training.checkpoints import Checkpoints, RunState
from roentgen.training.loop import steps
from roentgen.training.order import batch_generator, batch_indices
from roentgen.training.schedule import EMA, set_cosine

STAGE = 4  # evaluations of the whole validation set at a time: images of a forward pass are this times 16


@dataclass
class _Data:
    table: pd.DataFrame
    targets: Targets
    train: np.ndarray
    val: np.ndarray
    stores: list[RowStore] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)


def train_labels(recipe: Recipe, run: Run, accelerator: Accelerator, settings: dict[str, Any]) -> int:
    """Train, calibrate and write the reporter; ``settings`` are what a checkpoint must have been made with."""
    r = recipe.labels
    require(r.size % 32 == 0, f"--labels.size {r.size}: must be a multiple of 32")
    require(accelerator.num_processes == 1, "--arch labels trains in one process; start it without accelerate launch")
    if recipe.model is not None:
        return _recalibrate(recipe, run)
    data = _read(run, r)
    print(_plan_of(data, recipe), flush=True)
    if run.dry_run:
        return 0
    net = _network(data, recipe, run.cache or run.out / "cache")
    optimizer = _optimizer(net, recipe)
    net.to(accelerator.device)
    ema = EMA([net], halflife=r.halflife)
    checkpoints = Checkpoints(run.out / "checkpoints")
    state = RunState(checkpoints, accelerator, network=net, optimizer=optimizer, ema=ema, settings=settings)
    saved = state.restore()
    images, best = saved.get("images", 0), saved.get("best", {"macro": -1.0})
    for name, value in net.named_buffers() if saved else ():
        value.copy_(saved["buffers"][name])

    # The loop: each batch is a function of its number alone, so that a run that was stopped goes on as if it had not.
    regressed = data.targets.regressed(data.train.tolist())
    weights = _weights(data, r.box_boost)
    log = SummaryWriter(run.out / "log")
    running: list[Tensor] = []
    began = time.perf_counter()
    for step in steps(images, recipe.images, batch_size=recipe.batch_size, show=True):
        generator = batch_generator(recipe.seed, step.number)
        chosen = batch_indices(weights, len(data.train), size=recipe.batch_size, seed=recipe.seed, batch=step.number)
        rows = data.train[chosen.numpy()]
        views = torch.randint(r.views, (len(rows),), generator=generator).tolist()
        places = [number if v else row for v, row, number in zip(views, rows, chosen.tolist(), strict=True)]
        kept = torch.from_numpy(np.stack([data.stores[v].take([p])[0] for v, p in zip(views, places, strict=True)]))
        jitters = [jitter_of(data.digests[row], v) for row, v in zip(rows, views, strict=True)]
        set_cosine(optimizer, step.before, warmup=recipe.warmup, total=recipe.images, floor=0.01)
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))  # of dropout
        net.train()
        net.features.stem.eval(), net.features.blocks[: r.frozen].eval()
        out = net.after_trunk(net.features.onward(kept.float().to(accelerator.device), r.frozen))
        loss = label_loss(
            out, data.targets, torch.from_numpy(rows), smoothing=r.smoothing, mil=r.mil_weight,
            side=r.side_weight,
        )  # fmt: skip
        if r.box_weight:
            loss = loss + r.box_weight * box_loss(out, data.targets, rows.tolist(), jitters, regressed)
        require(bool(torch.isfinite(loss)), f"the loss is not finite after {images} images; lower --rate")
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        images = step.images
        ema.update(images, recipe.batch_size)
        running.append(loss.detach())

        if step.due(run.eval_every):
            ema.swap()
            best = _validate(recipe, run, net, data, images=images, best=best, losses=running, began=began, log=log)
            running.clear()
            ema.swap()
            state.save(images, buffers=dict(net.named_buffers()), best=best)
            if images - best["images"] >= run.patience * run.eval_every:
                print(f"no better for {run.patience} validations: stopped at {images} images", flush=True)
                break
    return _write(recipe, run, data, best)


def _plan_of(data: _Data, recipe: Recipe) -> str:
    patients = data.table["patient_id"].iloc[data.train].nunique()
    return (
        f"{len(data.train)} training images of {patients} patients, {len(data.val)} for validation; "
        f"{len(data.targets.findings)} findings; {sum(map(bool, data.targets.boxes))} images with boxes; "
        f"{recipe.images} images to see"
    )


def _network(data: _Data, recipe: Recipe, cache: Path) -> FindingNet:
    """A new network whose frozen blocks have been run on all images: ``data`` has their stores."""
    r = recipe.labels
    torch.manual_seed(recipe.seed)
    net = FindingNet(len(data.targets.findings), dropout=r.dropout)
    if r.imagenet:
        load_imagenet(net.features)
    _features(data, net, r, cache)
    for part in (net.features.stem, net.features.blocks[: r.frozen]):
        part.requires_grad_(False)
    return net


def _optimizer(net: FindingNet, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with two peak rates: of the heads, and of ImageNet's blocks that are trained."""
    backbone = [p for p in net.features.parameters() if p.requires_grad]
    heads = [p for name, p in net.named_parameters() if p.requires_grad and not name.startswith("features.")]
    parts: list[dict[str, Any]] = [
        {"params": heads, "peak": recipe.rate}, {"params": backbone, "peak": recipe.labels.backbone_rate}
    ]  # fmt: skip
    return torch.optim.AdamW(parts, lr=float(recipe.rate or 0), weight_decay=recipe.weight_decay)


def _validate(
    recipe: Recipe, run: Run, net: FindingNet, data: _Data, *, images: int, best: dict[str, Any],
    losses: Sequence[Tensor], began: float, log: SummaryWriter,
) -> dict[str, Any]:  # fmt: skip
    """Measure on ``val``, and write the reporter where it is the best so far; returns the best."""
    seen = see_rows(net, data.stores[0], data.val, recipe.labels.frozen)
    per = finding_aurocs(seen.image, data.targets.labels[data.val].numpy(), data.targets.findings, least=7)
    macro, mean = float(np.mean(list(per.values()))) if per else 0.0, torch.stack(list(losses)).mean().item()
    speed = images / (time.perf_counter() - began)
    print(f"{images} images, loss {mean:.4f}, validation macro AUROC {macro:.3f}, {speed:.0f}/s", flush=True)
    log.add_scalar("val/macro_auroc", macro, images)
    log.add_scalar("train/loss", mean, images)
    if macro < best["macro"]:
        return best
    best = {"macro": macro, **per, "images": images}
    _finish(recipe, run, net, data, seen, best)
    return best


def _write(recipe: Recipe, run: Run, data: _Data, best: dict[str, Any]) -> int:
    """Calibrate once more from the weights as they were written, so that a calibration that has changed reaches the
    folder too, and fit the screen of strange images."""
    r = recipe.labels
    net, _ = load_net(run.out, flag="--out", fold=False)
    _finish(recipe, run, net, data, see_rows(net, data.stores[0], data.val, r.frozen), best)
    paths = data.table["image"]
    strange = fit_screen(net, paths.iloc[data.train].tolist(), paths.iloc[data.val].tolist(), size=r.size)
    write_npz(run.out / SCREEN, strange)
    print(json.dumps({"validation_macro_auroc": best["macro"]}), flush=True)
    print(run.out)
    return 0


def _recalibrate(recipe: Recipe, run: Run) -> int:
    """Write the trained reporter ``recipe.model`` again, its network as it is, calibrated on the ``val`` images."""
    folder = find_reporter(str(recipe.model), flag="--model")
    net, info = load_net(folder, fold=False)
    data = _read(run, dataclasses.replace(recipe.labels, findings=tuple(info["findings"])))
    print(f"{folder.name}: to be calibrated on {len(data.val)} validation images", flush=True)
    if run.dry_run:
        return 0
    paths, size = data.table["image"].iloc[data.val].tolist(), int(info["size"])
    parts = []
    for start in tqdm(range(0, len(paths), 16), unit="batch", file=sys.stderr):
        pixels = [squash(read_image(path), size) for path in paths[start : start + 16]]
        parts.append(predict(net, np.stack(pixels)))
    rules = calibrate_rules(join(parts), data.targets, data.train, data.val)
    save_network(run.out, net, {**info, **rules})
    if (folder / SCREEN).is_file():
        write_atomic(run.out / SCREEN, (folder / SCREEN).read_bytes())
    print(run.out)
    return 0


def _read(run: Run, r: LabelsRecipe) -> _Data:
    manifest = run.manifest
    table = read_manifest(manifest, splits=["train", "val"], allow_empty_text=True)
    boxes = read_boxes(run.boxes) if run.boxes else {}
    train = np.flatnonzero(table["split"] == "train")
    val = np.flatnonzero(table["split"] == "val")
    require(len(train) > 0 and len(val) > 0, f"--manifest {manifest}: needs images of the splits train and val")
    there = [name for name in finding_columns(table) if name not in (NO_FINDING, *SOURCES_ONLY)]
    common = [name for name in there if (table[name].iloc[train] == 1).sum() >= r.min_positive]
    findings = list(r.findings or common)
    unknown = [name for name in findings if name not in table.columns]
    require(not unknown, f"--labels.findings {', '.join(unknown)}: not a column of {manifest}")
    require(
        bool(findings),
        f"--manifest {manifest}: no finding has {r.min_positive} positives; lower --labels.min-positive",
    )
    known = set(table["image"])
    if boxes and not known & set(boxes):
        require(False, f"--boxes: no box is of an image in {manifest}; name the tables of its images")
    return _Data(table, read_targets(table, findings, boxes), train, val)


def _features(data: _Data, net: FindingNet, r: LabelsRecipe, cache: Path) -> None:
    """Stores of the first view, of all images by their row, and of the others, of training images by their number."""
    paths = data.table["image"].tolist()
    more_of = {"size": r.size, "cache": cache, "blocks": r.frozen}
    stores, data.digests = trunk_features(net.features, paths, views=1, **more_of)  # type: ignore[arg-type]
    data.stores = stores
    if r.views > 1:
        more, _ = trunk_features(net.features, [paths[row] for row in data.train], views=r.views, **more_of)  # type: ignore[arg-type]
        data.stores += more[1:]


def _weights(data: _Data, boost: float) -> Tensor:
    column = data.table[WEIGHT].to_numpy(float) if WEIGHT in data.table else np.ones(len(data.table))
    boxed = np.array([boost if places else 1.0 for places in data.targets.boxes])
    return torch.from_numpy((np.nan_to_num(column, nan=1.0) * boxed)[data.train])


@torch.inference_mode()
def see_rows(net: FindingNet, store: RowStore, rows: np.ndarray, blocks: int = TRUNK) -> Predictions:
    """Predictions of rows of a store of what the first ``blocks`` blocks give, in evaluation mode."""
    net.eval()
    device = next(net.parameters()).device
    parts = []
    for start in range(0, len(rows), 16 * STAGE):
        kept = torch.from_numpy(store.take(rows[start : start + 16 * STAGE])).float().to(device)
        parts.append(probabilities(net.after_trunk(net.features.onward(kept, blocks))))
    return join(parts)


def _finish(recipe: Recipe, run: Run, net: FindingNet, data: _Data, seen: Predictions, best: dict[str, Any]) -> None:
    """Calibrate on validation images and write the folder of the reporter."""
    r = recipe.labels
    rules = calibrate_rules(seen, data.targets, data.train, data.val)
    info = {
        "findings": list(data.targets.findings), "size": r.size, "stride": STRIDE, **rules,
        "training_images": len(data.train), "images": best["images"],
        "validation_auroc": {name: round(value, 4) for name, value in best.items() if name != "images"},
        "licence": run.licence,
    }  # fmt: skip
    save_network(run.out, net, {"kind": KIND, **info})
