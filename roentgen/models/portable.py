"""Pipeline folders that every allowed version of transformers and diffusers reads, as they lie on disk.

What transformers 5 writes for a CLIP text encoder, older versions cannot read, and diffusers mixes its precisions:

- weights without the prefix ``text_model.``: below 5.6 none of them is found, and the encoder is random, in silence;
- a tokenizer without ``vocab.json`` and ``merges.txt``: below 5 it does not load;
- ``dtype`` float16 in the configuration: from 5 on the encoder loads in half precision beside a U-Net in single.
"""

from __future__ import annotations

import json
from pathlib import Path

PREFIX = "text_model."
# Where the tokenizer came from on the machine that wrote it.
PRIVATE = ("is_local", "local_files_only", "name_or_path")


def make_portable(folder: Path) -> None:
    """Rewrite the text encoder and tokenizer of the pipeline in ``folder``; other architectures stay as they are."""
    config = folder / "text_encoder" / "config.json"
    if config.is_file():
        values = json.loads(config.read_text())
        values["dtype"] = "float32"  # what a pipeline without a wish loads; the file may hold less
        config.write_text(json.dumps(values, indent=2) + "\n")
        if values.get("architectures") == ["CLIPTextModel"]:
            for file in (folder / "text_encoder").glob("*.safetensors"):
                _prefix(file)
    settings = folder / "tokenizer" / "tokenizer_config.json"
    if settings.is_file():
        values = json.loads(settings.read_text())
        if any([values.pop(key, None) is not None for key in PRIVATE]):
            settings.write_text(json.dumps(values, indent=2) + "\n")
        if values.get("tokenizer_class") == "CLIPTokenizer":
            _vocabulary(folder / "tokenizer")


def _prefix(file: Path) -> None:
    """Give every weight of a CLIP text model's file the prefix that all versions know."""
    from safetensors.torch import load_file, save_file

    state = load_file(file)
    if not any(name.startswith(PREFIX) for name in state):
        state = {name if name.startswith("text_projection") else PREFIX + name: value for name, value in state.items()}
        save_file(state, file, metadata={"format": "pt"})


def _vocabulary(folder: Path) -> None:
    """``vocab.json`` and ``merges.txt`` beside a ``tokenizer.json`` of byte pairs, where they are missing."""
    whole = folder / "tokenizer.json"
    if not whole.is_file() or (folder / "vocab.json").is_file():
        return
    model = json.loads(whole.read_text(encoding="utf-8"))["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
