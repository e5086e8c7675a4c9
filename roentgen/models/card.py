"""The card of a model that a recipe trained: ``README.md`` for people and for the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from roentgen.files import write_atomic
from roentgen.models.hub import NAMED, is_hub_id
from roentgen.models.lora import LORA_FILE
from roentgen.provenance import __version__, portable

if TYPE_CHECKING:
    import pandas as pd

TOLD = (
    "model",
    "seed",
    "rate",
    "text_rate",
    "decoder_rate",
    "batch_size",
    "images",
    "schedule",
    "precision",
    "optimizer",
)
"""Settings that a card shows; all of them are in training.json."""


def model_licence(folder: Path) -> str | None:
    """The licence that the card of a model's folder (``README.md``) names for the Hugging Face hub, or None."""
    try:
        front = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]
        licence = yaml.safe_load(front)["license"]
    except (OSError, UnicodeDecodeError, IndexError, TypeError, KeyError, yaml.YAMLError):
        return None  # no card, or one that names none
    return licence if isinstance(licence, str) else None


def sources_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Images by source and licence of a manifest's rows, as far as its columns say."""
    named = table.reindex(columns=["source", "licence"]).astype(object).fillna("").astype(str).replace("", "not named")
    counts = named.value_counts(sort=False).sort_index()
    return [{"source": source, "licence": licence, "images": int(n)} for (source, licence), n in counts.items()]


def write_card(folder: Path, training: Mapping[str, Any], *, name: str, measures: str = "") -> None:
    """Write ``folder/README.md``.

    Args:
        folder: a pipeline or an adapter.
        training: what training.json holds: settings, images, training_images, sources, licence (of the start).
        name: title.
        measures: results as Markdown; empty: not measured.
    """
    text = card(training, name=name, adapter=(folder / LORA_FILE).is_file(), measures=measures)
    write_atomic(folder / "README.md", text.encode())


def card(training: Mapping[str, Any], *, name: str, adapter: bool, measures: str) -> str:
    """The card's text; see ``write_card``."""
    from jinja2 import Environment, StrictUndefined

    settings = training.get("settings", {})
    base = settings.get("model")
    shown = (
        None
        if base is None
        else str(base if base in NAMED or is_hub_id(str(base)) else portable(Path(base).absolute()))
    )
    licence = training.get("licence")
    hub_ids = NAMED[shown].hub_ids if shown in NAMED else (shown,) if shown and is_hub_id(shown) else ()
    header = {
        "license": licence or "other",
        **({} if licence else {"license_name": "as-the-model-and-the-data"}),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        **({"base_model": hub_ids[0]} if hub_ids else {}),
        "tags": ["chest-x-ray", "synthetic-data", "not-for-diagnosis", *(["lora"] if adapter else [])],
    }
    template = Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8")
    jinja = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return jinja.from_string(template).render(
        header=yaml.safe_dump(header, sort_keys=False).strip(), name=name, base=shown, adapter=adapter,
        licence=licence, seen=training.get("images"), count=training.get("training_images"),
        sources=training.get("sources", []), measures=measures, version=__version__,
        settings={key: settings[key] for key in TOLD if key != "model" and settings.get(key) is not None},
    )  # fmt: skip
