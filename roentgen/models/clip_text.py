"""The making of a CLIP text model of our own: its tokenizer, and what it learns to tell from texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roentgen.files import new_files, write_atomic
from roentgen.models.text_encoders import TextReader
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
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in learned)]
    about = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_length,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    write_atomic(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False).encode())
    write_atomic(folder / "merges.txt", ("\n".join(lines) + "\n").encode())
    write_atomic(folder / "tokenizer_config.json", json.dumps(about, indent=1).encode())
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    with new_files(folder) as made:
        tokenizer.save_pretrained(made)
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
    reader = TextReader(tokenizer, tokenizer.model_max_length)
    return reader.tokens(texts).ids, reader.count(texts).cut
