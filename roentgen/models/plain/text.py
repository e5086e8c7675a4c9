"""CLIP's text encoder and tokenizer without transformers: ``CLIPTextModel``, and the file that tokenizers reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from roentgen.files import read_json

ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}


class Config(dict[str, Any]):
    """A configuration as plain values."""

    def to_dict(self) -> dict[str, Any]:
        """A copy."""
        return dict(self)


class TextEncoder(nn.Module):
    """Radford et al. (2021): a transformer that reads from left to right; the states of its last layer, normalised."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = Config(config)
        width, eps = config["hidden_size"], config.get("layer_norm_eps", 1e-5)
        # From empty weights: drawing random ones without memory would import torch._dynamo.
        counts = {"token_embedding": config["vocab_size"], "position_embedding": config["max_position_embeddings"]}
        self.embeddings = nn.ModuleDict(
            {name: nn.Embedding.from_pretrained(torch.empty(count, width)) for name, count in counts.items()}
        )
        layers = nn.ModuleList([Layer(config, width, eps) for _ in range(config["num_hidden_layers"])])
        self.encoder = nn.ModuleDict({"layers": layers})
        self.final_layer_norm = nn.LayerNorm(width, eps)

    @classmethod
    def fits(cls, config: Mapping[str, Any]) -> bool:
        """Whether this is the encoder that a configuration of transformers describes."""
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        return (
            config.get("model_type") == "clip_text_model"
            and config.get("hidden_act") in ACTIVATIONS
            and not config.get("use_attention_mask")
            and all(type(config.get(size)) is int for size in (*sizes, "max_position_embeddings"))
            and isinstance(config.get("layer_norm_eps", 1e-5), int | float)
        )

    def forward(self, ids: Tensor, attention_mask: None = None) -> tuple[Tensor]:
        """States (N, L, D) of tokens int64 (N, L)."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.embeddings["token_embedding"](ids) + self.embeddings["position_embedding"](positions)
        layers: Any = self.encoder["layers"]
        for layer in layers:
            x = layer(x)
        return (self.final_layer_norm(x),)


class Layer(nn.Module):
    """``CLIPEncoderLayer``."""

    def __init__(self, config: Mapping[str, Any], width: int, eps: float) -> None:
        super().__init__()
        inner = config["intermediate_size"]
        self.heads = config["num_attention_heads"]
        self.act = ACTIVATIONS[config["hidden_act"]]
        names = ("k_proj", "v_proj", "q_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer_norm1(x)
        q, k, v = (
            self.self_attn[name](y).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.self_attn["out_proj"](y.transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](self.act(self.mlp["fc1"](self.layer_norm2(x))))


class Tokenizer:
    """What ``TextReader`` asks of a tokenizer of transformers, from ``tokenizer.json`` and its settings."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Words

        try:
            self._words = Words.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises no class of its own
            raise ValueError(f"{folder / 'tokenizer.json'}: {error}") from error
        self._words.no_padding()
        self._words.no_truncation()
        settings = read_json(folder / "tokenizer_config.json", advice="fetch the model again")
        self.model_max_length = int(settings["model_max_length"])
        pad = settings["pad_token"]
        self.pad_token_id: int | None = self._words.token_to_id(pad["content"] if isinstance(pad, dict) else pad)

    def __len__(self) -> int:
        return int(self._words.get_vocab_size(with_added_tokens=True))

    def __call__(
        self, texts: str | Sequence[str], *, add_special_tokens: bool = True, verbose: bool = True
    ) -> dict[str, Any]:
        """``input_ids`` of one text, or of each."""
        if isinstance(texts, str):
            return {"input_ids": self._words.encode(texts, add_special_tokens=add_special_tokens).ids}
        found = self._words.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return {"input_ids": [one.ids for one in found]}
