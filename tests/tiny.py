"""Tiny text encoders on disk, in the layouts that hospitals download: real tokenizers, random weights."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from conftest import WORDS, write_tokenizer

# Whole words of the tiny pipeline, word pieces to build others, and single letters, so that little is unknown.
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "pneumo", "##thorax", ".", ","]
PIECES += [*ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase)]


def write_bert(folder: Path, width: int = 16, window: int = 48, *, layers: int = 2) -> Path:
    """A BertModel with its WordPiece tokenizer, as ``save_pretrained`` of both into one folder."""
    import torch
    from transformers import BertModel

    write_wordpiece(folder, window)
    torch.manual_seed(0)
    BertModel(bert_config(width, window, layers)).save_pretrained(folder)
    return folder


def bert_config(width: int = 16, window: int = 48, layers: int = 2) -> Any:
    """Configuration of the tiny BERT."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(PIECES),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=window,
    )


def write_wordpiece(folder: Path, window: int = 48) -> None:
    """``vocab.txt`` and ``tokenizer_config.json``: all that most BERT repositories have."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": window}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_cxr_bert(folder: Path, *, safe: bool, width: int = 16, window: int = 48) -> Path:
    """The layout of microsoft/BiomedVLP-CXR-BERT-specialized: a BertForMaskedLM and a projection head, with code."""
    import torch
    from safetensors.torch import save_file
    from transformers import BertForMaskedLM

    write_wordpiece(folder, window)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {
        "tokenizer_class": "CXRBertTokenizer",
        "auto_map": {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    torch.manual_seed(0)
    model = BertForMaskedLM(bert_config(width, window))
    config = {
        **model.config.to_dict(),
        "architectures": ["CXRBertModel"],
        "model_type": "cxr-bert",
        "projection_size": 8,
        "auto_map": {
            "AutoConfig": "configuration_cxrbert.CXRBertConfig",
            "AutoModel": "modeling_cxrbert.CXRBertModel",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_cxrbert.py").write_text("raise SystemExit('remote code was run')\n")
    head = torch.nn.Linear(width, 8)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state |= {f"cls_projection_head.dense_to_hidden.{name}": value for name, value in head.state_dict().items()}
    if safe:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(state, folder / "pytorch_model.bin")
    return folder


def write_clip_text(
    folder: Path,
    width: int = 16,
    window: int = 24,
    *,
    layers: int = 2,
    vocabulary: int | None = None,
    whole: bool = False,
) -> Path:
    """A CLIPTextModel with its byte-pair tokenizer in one folder.

    ``vocabulary``: tokens that the model knows (None: the tokenizer's). ``whole``: a CLIPModel, vision model and all.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    write_tokenizer(folder, window)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    config = CLIPTextConfig(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=window,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    if whole:
        vision = {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 8,
            "patch_size": 4,
        }
        model = CLIPModel(CLIPConfig(text_config=config.to_dict(), vision_config=vision, projection_dim=8))
    else:
        model = CLIPTextModel(config)
    model.save_pretrained(folder)
    return folder


def write_roberta(folder: Path, width: int = 16, window: int = 24) -> Path:
    """A RobertaModel with its byte-level tokenizer; it has two positions more than its window."""
    import torch
    from transformers import RobertaConfig, RobertaModel

    folder.mkdir(parents=True)
    letters = ["Ġ", *(chr(code) for code in range(33, 127))]
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=window + 2,
    )
    RobertaModel(config).save_pretrained(folder)
    return folder


def write_whole_clip(folder: Path) -> Path:
    """A CLIPModel with tokenizer and image processor."""
    write_clip_text(folder, whole=True)
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 8},
        "crop_size": {"height": 8, "width": 8},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
