"""Text encoders: a CLIP tokenizer and text model of our own vocabulary, and what it must be able to tell."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roentgen.prompts import FINDINGS, Labels

START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(corpus: Iterable[str], folder: Path, *, merges: int, max_length: int) -> Any:
    """Train byte-pair merges on ``corpus`` (Radford et al. 2021, section 2.4: CLIP's scheme) and save a CLIP tokenizer.

    Any text can be encoded: characters outside the corpus fall back to bytes. Words that occur often become one token.

    Args:
        corpus: training texts.
        folder: where ``vocab.json``, ``merges.txt`` and the configuration go.
        merges: number of merges at most.
        max_length: tokens of a text, with start and end.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    split = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    learned = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(pair) for pair in learned), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in learned)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": max_length,
                "bos_token": START,
                "eos_token": END,
                "pad_token": END,
                "unk_token": END,
            },
            indent=1,
        )
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def text_targets(labels: Sequence[Labels]) -> tuple[Tensor, Tensor]:
    """Targets and mask, both float32 (N, T), of what texts say: findings, their sides, view, sex and age.

    Sides, view, sex and age count only where the text names them. Order: findings; left and right of each finding that
    can have a side; PA; male; age / 100.
    """
    names = list(FINDINGS)
    sided = [n for n in names if FINDINGS[n].can_have_side]
    targets, masks = [], []
    for item in labels:
        row = [float(n in item.findings) for n in names]
        mask = [1.0] * len(names)
        for n in sided:
            side = item.sides.get(n)
            row += [float(side in ("left", "bilateral")), float(side in ("right", "bilateral"))]
            mask += [float(side is not None)] * 2
        row += [float(item.view == "PA"), float(item.sex == "M"), (item.age or 0.0) / 100]
        mask += [float(item.view is not None), float(item.sex is not None), float(item.age is not None)]
        targets.append(row)
        masks.append(mask)
    return torch.tensor(targets), torch.tensor(masks)


class TextProbe(nn.Module):
    """A text model with a linear head on the mean over token states, for learning what a text says."""

    def __init__(self, text_encoder: Any, outputs: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.head = nn.Linear(text_encoder.config.hidden_size, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (N, L) -> logits (N, outputs)."""
        logits: Tensor = self.head(self.text_encoder(ids).last_hidden_state.mean(1))
        return logits


def tokenize(tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, int]:
    """Token ids (N, L) padded to the tokenizer's window, and how many texts were longer than it."""
    full = tokenizer(list(texts), truncation=False, padding=False)["input_ids"]
    cut = sum(len(ids) > tokenizer.model_max_length for ids in full)
    ids = tokenizer(
        list(texts),
        truncation=True,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )["input_ids"]
    return ids, cut
