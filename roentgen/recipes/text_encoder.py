"""Make a CLIP text encoder with its own tokenizer, taught to read findings, sides, view, sex and age.

    roentgen train text-encoder --config mini-text --manifest data/openchest/manifest.csv --out runs/text
    roentgen train text-encoder --manifest data/sample/manifest.csv --out runs/text --texts 2000

A diffusion model that starts from nothing learns anatomy long before it learns words. This gives it a text encoder
whose states already tell the findings apart; ``roentgen train finetune`` then trains it further with the U-Net. Needs
no images, only the labels in the manifest. Writes ``OUT/tokenizer`` and ``OUT/text_encoder``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F

from roentgen.config import BatchSize, Count, CountFromZero, Range, Rate, Seed, Share, Short, parse_settings, require
from roentgen.data.manifest import read_manifest
from roentgen.files import new_files, require_writable
from roentgen.models.clip_text import TextProbe, build_tokenizer, text_targets, tokenize
from roentgen.prompts import FINDINGS, Labels, compose, labels_from_row, parse
from roentgen.recipes import CONFIGS
from roentgen.training.loop import descend, steps
from roentgen.training.order import batch_generator, batch_indices
from roentgen.training.schedule import set_cosine
from roentgen.training.setup import make_accelerator


@dataclass(frozen=True)
class Settings:
    """Settings of the text encoder recipe."""

    manifest: Annotated[Path, "manifest whose `train` labels give the texts"]
    out: Annotated[Path, Short("-o"), "folder for tokenizer/ and text_encoder/"]
    width: Annotated[int, Range(1, 65_536), "hidden size; must equal the U-Net's cross-attention width"] = 256
    layers: Annotated[int, Range(1, 64), "transformer layers"] = 4
    heads: Annotated[int, Range(1, 1024), "attention heads"] = 4
    window: Annotated[int, Range(3, 4096), "tokens of a text, with start and end"] = 64
    merges: Annotated[CountFromZero, "byte-pair merges of the tokenizer at most"] = 600
    corpus: Annotated[Count, "composed texts from which the merges are learned"] = 20_000
    texts: Annotated[Count, Short("-n"), "length of training in texts"] = 60_000
    batch_size: Annotated[BatchSize, "texts a step"] = 64
    rate: Annotated[Rate, "peak learning rate of AdamW"] = 1e-3
    random_sides: Annotated[
        Share, "share of the texts whose labels get a random side, since few manifests hold sides"
    ] = 0.5
    seed: Annotated[Seed, "seed"] = 0
    dry_run: Annotated[bool, "print what would be done and stop"] = False


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="roentgen train text-encoder", about=__doc__, configs=CONFIGS)
    require(s.width % s.heads == 0, "--width must be a multiple of --heads")
    table = read_manifest(s.manifest, splits=["train"], allow_empty_text=True, check_files=False)
    rows = [labels_from_row(row) for row in table.to_dict("records")]
    # The rarest findings decide how often a label set is drawn: texts cost nothing, so balance is free.
    counts = {f: sum(f in r.findings for r in rows) for f in FINDINGS}
    weights = torch.tensor([max((1 / counts[f] for f in r.findings), default=1 / len(rows)) ** 0.7 for r in rows])
    print(f"{len(rows)} label sets; {s.texts} texts to read", flush=True)
    if s.dry_run:
        return 0
    require_writable(s.out, "--out")
    from transformers import CLIPTextConfig, CLIPTextModel

    rng = random.Random(s.seed)
    corpus = [compose(vary(rng.choices(rows, weights.tolist())[0], s.random_sides, rng), rng) for _ in range(s.corpus)]
    tokenizer = build_tokenizer(corpus, s.out / "tokenizer", merges=s.merges, max_length=s.window)
    torch.manual_seed(s.seed)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=s.width,
            intermediate_size=4 * s.width,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            max_position_embeddings=s.window,
            projection_dim=s.width,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    accelerator = make_accelerator(precision="bf16")
    probe = TextProbe(encoder, text_targets([rows[0]])[0].shape[1])
    optimizer = torch.optim.AdamW(probe.parameters(), lr=s.rate, weight_decay=0.01)
    model, optimizer = accelerator.prepare(probe, optimizer)
    right = torch.zeros(2)
    for number, seen, *_ in steps(0, s.texts, batch_size=s.batch_size, show=True, unit="text"):
        chosen = batch_indices(weights, len(rows), size=s.batch_size, seed=s.seed, batch=number)
        rng = random.Random(int(batch_generator(s.seed, number, 3).initial_seed()))
        texts = [compose(vary(rows[i], s.random_sides, rng), rng) for i in chosen.tolist()]
        ids, cut = tokenize(tokenizer, texts)
        require(cut == 0, f"--window {s.window}: a composed text is longer; use a larger window")
        target, mask = text_targets([parse(text) for text in texts])
        set_cosine(optimizer, seen, peak=s.rate, warmup=2_000, total=s.texts)
        with accelerator.autocast():
            logits = model(ids.to(accelerator.device))
        error = F.binary_cross_entropy_with_logits(logits.float().cpu(), target, reduction="none")
        loss = (error * mask).sum() / mask.sum()
        descend(accelerator, loss, optimizer, probe.parameters())
        agree = (((logits.detach().float().cpu() > 0) == (target > 0.5)).float() * mask)[:, :-1]
        right = right + torch.tensor([agree.sum().item(), mask[:, :-1].sum().item()])
        if number % 100 == 99:
            print(
                f"{seen + s.batch_size} texts, loss {loss.item():.4f}, agreement {right[0] / right[1]:.4f}",
                flush=True,
            )
            right.zero_()
    if accelerator.is_main_process:
        with new_files(s.out / "text_encoder") as made:
            encoder.save_pretrained(made)
        print(s.out)
    accelerator.end_training()
    return 0


def vary(labels: Labels, share: float, rng: random.Random) -> Labels:
    """The labels, in ``share`` of the cases with a random side for each finding that can have one."""
    if rng.random() >= share:
        return labels
    sides = {f: rng.choice(("left", "right", "bilateral")) for f in labels.findings if FINDINGS[f].can_have_side}
    return Labels(findings=labels.findings, sides=sides, view=labels.view, sex=labels.sex, age=labels.age)
