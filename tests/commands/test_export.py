"""``roentgen export`` as a user runs it: sets that the packages open, kills, processes, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from forks import Forks, Kill
from PIL import Image

from roentgen import cli
from roentgen.images import read_provenance

Cli = Callable[..., tuple[int, str, str]]
SMALL = ("--per-finding", 6, "--findings", "Effusion,Edema", "--shard-size", 3, "--filter", "none")


def here(*flags: object) -> None:
    """An export in this process, with one thread as in those of ``forks``, which must end well."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert cli.main(["export", *map(str, flags)]) == 0
    finally:
        torch.set_num_threads(threads)


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_pipeline: Callable[..., Path]) -> Path:
    """A tiny model whose text encoder takes long prompts. Read only."""
    return make_pipeline(tmp_path_factory.mktemp("model") / "tiny", window=77)


# ------------------------------------------------------------------------------------ the model that ships


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """A small set by the shipped model with the usual filter, in every format. Read only."""
    out = tmp_path_factory.mktemp("shipped") / "out"
    flags = ("--per-finding", 2, "--findings", "No Finding,Effusion,Cardiomegaly", "--out", out)
    formats = ("--format", "folder,parquet,webdataset,dicom")
    done = forks("-m", "roentgen", "export", *flags, *formats)
    assert done.code == 0, done.err
    assert done.out == f"{out}\n"
    assert "filter: broken, prompt, real, copies, repeats" in done.err
    return out


@pytest.mark.slow
def test_the_set_is_marked_and_its_sums_are_right(shipped: Path) -> None:
    table = pd.read_csv(shipped / "manifest.csv")
    assert 0 < len(table) <= 6 and table["synthetic"].all()
    for image in table["image"]:
        assert read_provenance(shipped / image)["synthetic"] == "true"
        assert np.asarray(Image.open(shipped / image)).std() > 20
    lines = (shipped / "SHA256SUMS").read_text().splitlines()
    assert {line.split(maxsplit=1)[1].lstrip("*") for line in lines} == set(tree(shipped)) - {"SHA256SUMS"}
    assert all(tree(shipped)[name.lstrip("*")] == value for value, name in (line.split(maxsplit=1) for line in lines))
    card = (shipped / "README.md").read_text()
    assert "Every image of this set is synthetic" in card
    assert all(f"\n  {stage}:\n" in card for stage in ("broken", "prompt", "real", "copies", "repeats"))


@pytest.mark.slow
def test_torchxrayvision_opens_it(shipped: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision")
    found = xrv.datasets.NIH_Dataset(
        imgpath=str(shipped / "images"), csvpath=str(shipped / "Data_Entry_synthetic.csv"), views=["*"]
    )
    table = pd.read_csv(shipped / "manifest.csv")
    assert len(found) == len(table)
    column = list(found.pathologies).index("Effusion")
    assert sorted(found[i]["lab"][column] for i in range(len(found))) == sorted(table["Effusion"] == 1)
    sample = found[0]["img"]
    assert sample.shape[0] == 1 and -1024 <= sample.min() < sample.max() <= 1024


@pytest.mark.slow
def test_datasets_opens_the_folder_itself(shipped: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    found = datasets.load_dataset(str(shipped), split="train", cache_dir=str(tmp_path))
    table = pd.read_csv(shipped / "manifest.csv")
    assert sorted(found["text"]) == sorted(table["text"])
    assert np.asarray(found[0]["image"]).ndim == 2


@pytest.mark.slow
def test_webdataset_opens_it(shipped: Path) -> None:
    wds = pytest.importorskip("webdataset")
    shards = sorted(str(path) for path in (shipped / "webdataset").glob("*.tar"))
    found = list(wds.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png", "json"))
    table = pd.read_csv(shipped / "manifest.csv")
    assert [about["text"] for _, about in found] == list(table["text"])
    assert all(image.size == found[0][0].size for image, _ in found)


@pytest.mark.slow
def test_pydicom_opens_it(shipped: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    images = [path for path in sorted((shipped / "dicom").rglob("*.dcm")) if pydicom.dcmread(path).Modality != "SR"]
    assert len(images) == len(pd.read_csv(shipped / "manifest.csv"))
    assert pydicom.dcmread(images[0]).pixel_array.ndim == 2


@pytest.mark.slow
def test_a_finished_set_is_left_alone(run_cli: Cli, shipped: Path) -> None:
    before = tree(shipped)
    flags = ("--per-finding", 2, "--findings", "No Finding,Effusion,Cardiomegaly", "--out", shipped)
    formats = ("--format", "folder,parquet,webdataset,dicom")
    code, said, shown = run_cli("export", *flags, *formats)
    assert (code, said) == (0, f"{shipped}\n")
    assert "complete already" in shown
    assert tree(shipped) == before


# ------------------------------------------------------------------------------- kills and processes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, str]:
    """The files of an unbroken run of the tiny model."""
    out = tmp_path_factory.mktemp("whole") / "out"
    here("--model", model, *SMALL, "--out", out)
    return tree(out)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["first draw", "third draw", "first shard written"])
def test_killed_and_started_again_it_is_byte_identical(
    model: Path, tmp_path: Path, whole: dict[str, str], moment: str, forks: Forks
) -> None:
    out = tmp_path / "out"
    flags = ("--model", model, *SMALL, "--out", out)
    pattern, count = {
        "first draw": (".work/draws/round-0/*.json", 1),
        "third draw": (".work/draws/round-0/*.json", 3),
        "first shard written": (".work/written/*.json", 1),
    }[moment]
    assert forks("-m", "roentgen", "export", *flags, kill=Kill(str(out), pattern, count)).code == -signal.SIGKILL
    assert not (out / "SHA256SUMS").exists()
    here(*flags)
    assert tree(out) == whole


@pytest.mark.slow
def test_two_processes_make_the_same_set(model: Path, tmp_path: Path, whole: dict[str, str], forks: Forks) -> None:
    out = tmp_path / "out"
    done = forks("-m", "roentgen", "export", "--model", model, *SMALL, "--out", out, ranks=2)
    assert done.code == 0 and done.out == f"{out}\n", done.err
    assert tree(out) == whole


# --------------------------------------------------------------------------------------- what it says and refuses


def test_dry_run_measures_on_request_and_writes_nothing(run_cli: Cli, model: Path, tmp_path: Path) -> None:
    code, said, shown = run_cli(
        "export", "--model", model, *SMALL, "--out", tmp_path / "out", "--dry-run", "--measure", "--batch-size", 2
    )
    assert code == 0 and not any(tmp_path.iterdir())
    assert "Effusion" in shown and re.search(r"from 2 images .* time: about .* disk: about", said.replace("\n", " "))


def test_dry_run_draws_nothing_where_a_rate_is_stored(
    run_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("roentgen.synthesis.maker.load_model", never)
    flags = ("--per-finding", 1000, "--findings", "Effusion,Edema", "--device", "cpu", "--dtype", "float32")
    found = {}
    for steps in (10, 20):
        code, said, shown = run_cli("export", *flags, "--steps", steps, "--filter", "none", "--dry-run")
        assert code == 0 and "2,000 images" in shown
        found[steps] = float(re.search(r": ([\d.]+) s and", said)[1])  # type: ignore[index]
    assert found[20] == pytest.approx(2 * found[10], rel=0.1)
    code, said, _ = run_cli("export", "--model", model, *SMALL, "--device", "cpu", "--dry-run")
    assert code == 0 and "no rate is stored" in said and "--measure" in said
    code, _, shown = run_cli("export", *SMALL, "--measure", "--out", tmp_path / "out")
    assert code != 0 and "--measure is for --dry-run" in shown


def test_a_finished_set_that_has_lost_a_file_is_not_complete(
    run_cli: Cli, model: Path, begun: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(begun, out)
    code, _, shown = run_cli("export", "--model", model, *SMALL, "--out", out)
    assert code == 0 and "complete already" in shown
    next((out / "images").rglob("*.png")).unlink()
    code, said, shown = run_cli("export", "--model", model, *SMALL, "--out", out)
    assert code != 0 and not said and "is not whole: 1 of its files are gone" in shown.splitlines()[-1]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A finished small set of the tiny model. Read only."""
    from roentgen import cli

    out = tmp_path_factory.mktemp("begun") / "out"
    assert not cli.main([str(word) for word in ("export", "--model", model, *SMALL, "--out", out)])
    return out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--seed", 1), r"--out .* holds a set of another plan \(.*seed.*\); choose another folder"),
        (("--guidance", 2), "--out .* holds a set of another plan"),
        (("--per-finding", 7), "--out .* holds a set of another plan"),
        (("--format", "folder"), "--out .* holds a set of another format"),
    ],
)
def test_the_folder_of_another_plan_is_refused(
    run_cli: Cli, model: Path, begun: Path, flags: tuple[object, ...], named: str
) -> None:
    before = tree(begun)
    code, said, shown = run_cli("export", "--model", model, *SMALL, *flags, "--out", begun)
    assert code != 0 and not said
    assert re.search(f"roentgen: error: {named}", shown.splitlines()[-1])
    assert tree(begun) == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--format", "tiff"), r"--format tiff: unknown; choose from folder, parquet, webdataset, dicom"),
        (("--format", ","), "--format is empty; choose from"),
        (("--filter", "beauty"), "--filter beauty: unknown"),
        (("--filter", ""), "--filter is empty; name stages"),
        (("--batch-size", 0), "--batch-size 0: must be at least 1"),
        (("--per-finding", 0), "--per-finding 0"),
        (("--per-finding", -3), "--per-finding -3"),
        (("--findings", "Effusions"), "Effusions"),
        (("--max-tries", 0), "--max-tries 0"),
        (("--plan", "no-such.yaml"), "no-such.yaml"),
        (("--reference", "no-such", "--filter", "real"), "no-such"),
    ],
)
def test_bad_flags_are_named(run_cli: Cli, model: Path, tmp_path: Path, flags: tuple[object, ...], named: str) -> None:
    code, said, shown = run_cli("export", "--model", model, *SMALL, "--out", tmp_path / "out", *flags)
    assert code != 0 and not said and "Traceback" not in shown
    last = shown.splitlines()[-1]
    assert last.startswith("roentgen: error: ") and re.search(named, last)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused(run_cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    code, _, shown = run_cli("export", "--model", model, *SMALL, "--out", tmp_path)
    assert code != 0 and "holds other files; name a new or an empty folder" in shown
    code, _, shown = run_cli("export", "--model", model, *SMALL, "--out", tmp_path / "thesis.tex")
    assert code != 0 and "is a file; name a folder" in shown


def test_out_is_needed(run_cli: Cli, model: Path) -> None:
    code, _, shown = run_cli("export", "--model", model, *SMALL)
    assert code != 0 and "--out is missing; name a folder for the set" in shown


def test_a_model_that_makes_nan_is_said_so_and_what_is_finished_stays(
    run_cli: Cli, model: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    ill = tmp_path / "ill"
    shutil.copytree(model, ill)
    weights = ill / "unet" / "diffusion_pytorch_model.safetensors"
    state: dict[str, Any] = load_file(weights)
    state["conv_in.bias"] = torch.full_like(state["conv_in.bias"], float("nan"))
    save_file(state, weights, metadata={"format": "pt"})
    code, said, shown = run_cli("export", "--model", ill, *SMALL, "--out", tmp_path / "out")
    assert code != 0 and not said and "Traceback" not in shown
    assert re.search("not finite|NaN", shown.splitlines()[-1])
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["plan"]
    assert not (tmp_path / "out" / "SHA256SUMS").exists()
