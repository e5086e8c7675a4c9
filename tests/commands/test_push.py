"""What goes to a hub, and what never does; the hub is one of this file, as nothing here has a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from roentgen.data.leaks import find_leaks
from roentgen.images import save_image
from roentgen.models.card import card, sources_of

TRAINING = {
    "settings": {"model": "sd-1.5", "rate": 1e-4, "manifest": "/home/somebody/manifest.csv", "seed": 3},
    "images": 20_000,
    "training_images": 486,
    "sources": [{"source": "NIH ChestX-ray14", "licence": "NIH CC", "images": 486}],
    "licence": None,
}


@pytest.fixture
def run(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A run's folder: a pipeline without a card, and training.json beside it."""
    shutil.copytree(tiny_pipeline, tmp_path / "run" / "pipeline")
    (tmp_path / "run" / "training.json").write_text(json.dumps(TRAINING))
    return tmp_path / "run"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Records what a hub would be told."""
    calls: list[Any] = []

    class Api:
        def create_repo(self, *words: Any, **named: Any) -> str:
            calls.append((words, named))
            return "https://hub.example/owner/name"

        def create_commit(self, *words: Any, **named: Any) -> None:
            calls.append((words, named))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return calls


def test_dry_run_shows_files_and_card_and_sends_nothing(run: Path, run_cli: Any, hub: list[Any]) -> None:
    code, out, err = run_cli("push", run / "pipeline", "owner/name", "--dry-run")
    assert code == 0, err
    assert "unet/diffusion_pytorch_model.safetensors" in out and "README.md (written)" in out
    assert "NIH ChestX-ray14" in out and "somebody" not in out
    assert hub == [] and not (run / "pipeline" / "README.md").exists()


def test_what_is_sent(run: Path, run_cli: Any, hub: list[Any]) -> None:
    (run / "pipeline" / ".cache").mkdir()
    (run / "pipeline" / ".cache" / "secret.txt").write_text("x")
    code, out, err = run_cli("push", run / "pipeline", "owner/name")
    assert code == 0, err
    assert out.strip() == "https://hub.example/owner/name"
    (made, commit) = hub
    assert made == (("owner/name",), {"repo_type": "model", "private": True, "exist_ok": True})
    sent = {one.path_in_repo for one in commit[0][1]}
    wanted = {p.relative_to(run / "pipeline").as_posix() for p in (run / "pipeline").rglob("*") if p.is_file()}
    assert sent == (wanted - {".cache/secret.txt"}) | {"README.md"}


def test_the_card_is_one_that_the_hub_reads() -> None:
    for adapter in (False, True):
        text = card(TRAINING, name="left-lungs", adapter=adapter, measures="| FID | 3 |")
        header = yaml.safe_load(text.split("---\n")[1])
        assert header["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5" and header["license"] == "other"
        assert ("lora" in header["tags"]) is adapter and "| FID | 3 |" in text
        assert "20,000 images seen, of 486 training images" in text and "/home/" not in text
    known = card({**TRAINING, "licence": "apache-2.0"}, name="x", adapter=False, measures="")
    assert yaml.safe_load(known.split("---\n")[1])["license"] == "apache-2.0" and "roentgen eval" in known
    local = card({"settings": {"model": "/home/somebody/model"}}, name="x", adapter=False, measures="")
    assert "somebody" not in local and "Not recorded" in local


def test_sources_are_counted() -> None:
    table = pd.DataFrame({"source": ["A", "B", "A"], "licence": ["CC BY", "", "CC BY"]})
    assert sources_of(table) == [
        {"source": "A", "licence": "CC BY", "images": 2},
        {"source": "B", "licence": "not named", "images": 1},
    ]
    assert sources_of(table[["source"]])[0]["licence"] == "not named"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("notes.txt", "Seen by Dr. Smith today", "a name with a title"),
        ("prompts.csv", "id,prompt\n1,effusion since 12/03/2019\n", "a date"),
        ("prompts.jsonl", '{"prompt": "call 555-123-4567 now"}\n', "a telephone number"),
        ("settings.json", '{"a": {"b": ["MRN 1234567 effusion"]}}', "a record number"),
        ("settings.json", '{"manifest": "/home/somebody/data.csv"}', "a path of somebody's machine"),
        ("README.md", "# Model\nMade by mail@hospital.org in a day\n", "an e-mail address"),
    ],
)
def test_texts_that_are_kept_at_home(
    name: str, content: str, kind: str, run: Path, run_cli: Any, hub: list[Any]
) -> None:
    (run / "pipeline" / name).write_text(content)
    code, out, err = run_cli("push", run / "pipeline", "owner/name")
    assert (code, out, hub) == (2, "", []) and f"{name} holds {kind}" in err and len(err.splitlines()) == 1
    assert not any(word in err for word in ("Smith", "12/03", "4567", "somebody's/data", "hospital.org"))


def test_parquet_and_tar_are_read(tmp_path: Path) -> None:
    import io
    import tarfile

    pd.DataFrame({"prompt": ["effusion", "seen by Dr. Smith"], "n": [1, 2]}).to_parquet(tmp_path / "a.parquet")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        data = b"seen by Dr. Smith"
        member = tarfile.TarInfo("0.txt")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    found = find_leaks(tmp_path, sorted(tmp_path.iterdir()))
    assert found == [("a.parquet", "a name with a title"), ("a.tar", "a name with a title")]


def test_what_ships_has_no_leaks() -> None:
    """The detector is quiet on a model and on a set that are fit to be published."""
    root = Path(__file__).parents[2]
    for folder in (root / "roentgen/models/mini", root / "tests/files/exported"):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert find_leaks(folder, files) == []


@pytest.mark.parametrize("edited", [True, False])
def test_images_of_patients_stay(run: Path, run_cli: Any, hub: list[Any], edited: bool) -> None:
    grey = np.zeros((8, 8), dtype=np.uint8)
    save_image(grey, run / "pipeline" / "grid.png", format="png", provenance={})
    assert run_cli("push", run / "pipeline", "owner/name", "--dry-run")[0] == 0
    if edited:
        save_image(grey, run / "pipeline" / "a.png", format="png", provenance={"edited": "true"})
    else:
        Image.fromarray(grey).save(run / "pipeline" / "a.png")
    code, _, err = run_cli("push", run / "pipeline", "owner/name")
    assert code == 2 and "a.png holds an" in err and "grid.png" not in err and hub == []


def test_a_data_set_goes_as_one(run_cli: Any, hub: list[Any]) -> None:
    code, _, err = run_cli("push", Path(__file__).parents[1] / "files" / "exported", "owner/set", "--public")
    assert code == 0, err
    assert hub[0][1]["repo_type"] == "dataset" and hub[0][1]["private"] is False


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "OWNER/NAME"),
        (["nowhere", "owner/name"], "nowhere"),
        (["run/pipeline", "name"], "name"),
        (["run", "owner/name"], "run/pipeline"),
        (["run/pipeline", "owner/name", "--results", "nowhere"], "--results nowhere"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], named: str, run: Path, run_cli: Any, hub: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    code, out, err = run_cli("push", *words)
    assert (code, out, hub) == (2, "", []) and named in err and len(err.splitlines()) == 1


def test_links_that_lead_away_and_a_missing_training_json(run: Path, run_cli: Any, hub: list[Any]) -> None:
    (run / "training.json").rename(run / "elsewhere.json")
    code, _, err = run_cli("push", run / "pipeline", "owner/name")
    assert code == 2 and "training.json" in err
    (run / "pipeline" / "README.md").write_text("# Model\n")
    (run / "pipeline" / "link.json").symlink_to(run / "elsewhere.json")
    code, _, err = run_cli("push", run / "pipeline", "owner/name")
    assert code == 2 and "link.json" in err and hub == []


def test_what_the_hub_says_is_one_sentence(run: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: Any, **named: Any) -> None:
        raise OSError("401 Client Error\nInvalid credentials")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    code, _, err = run_cli("push", run / "pipeline", "owner/name")
    assert code == 2 and "owner/name: the hub did not take it" in err and len(err.splitlines()) == 1
