"""Extraction of whole sets: order, batches, workers, processes, the cache and bad images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import Forks
from PIL import Image

from roentgen.devices import Process
from roentgen.errors import UserError
from roentgen.images import read_image
from roentgen.metrics import features
from roentgen.metrics.distribution import frechet
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.features import extract, stream_moments
from roentgen.metrics.image_set import ImageSet, open_set

ROOT = Path(__file__).resolve().parents[2]


def toy(name: str = "toy", weights: str = "0", chain: str = "means of a 4 x 4 grid") -> Extractor:
    """Sixteen block means as features and their mean as a probability; counts the images it prepared."""

    def prepare(image: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize((4, 4), Image.Resampling.BOX), np.float32)[None]

    def forward(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        flat = batch.flatten(1)
        return {"features": flat, "probabilities": flat.mean(1, keepdim=True)}

    return Extractor(name, chain, 16, weights, ("features", "probabilities"), ("Effusion",), "cpu", prepare, forward)


def counted(extractor: Extractor) -> tuple[Extractor, list[int]]:
    calls: list[int] = []

    def prepare(image: np.ndarray) -> np.ndarray:
        calls.append(1)
        return extractor.prepare(image)

    return replace(extractor, prepare=prepare), calls


@pytest.fixture
def sets(tmp_path: Path) -> list[ImageSet]:
    """Real (12) and synthetic (9) images of several sizes; two files are the same in both."""
    rng = np.random.default_rng(0)
    for kind, count in (("real", 12), ("synthetic", 9)):
        (tmp_path / kind).mkdir()
        for number in range(count):
            image = rng.integers(0, 256, (40 + number % 3, 40), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / kind / f"{number:02}.png")
    for name in ("00.png", "01.png"):
        (tmp_path / "synthetic" / name).write_bytes((tmp_path / "real" / name).read_bytes())
    return [open_set(tmp_path / kind, name=kind) for kind in ("real", "synthetic")]


def test_rows_follow_the_tables(sets: list[ImageSet], tmp_path: Path) -> None:
    found = extract(sets, [toy()], cache=tmp_path / "cache", batch_size=5)
    for images in sets:
        expected = toy()([read_image(path) for path in images.paths])
        np.testing.assert_array_equal(found.of(images.name, "toy"), expected["features"])
        np.testing.assert_array_equal(found.of(images.name, "toy", "probabilities"), expected["probabilities"])
        assert found.set(images.name).table is images.table


def test_batch_size_order_and_workers_change_nothing(sets: list[ImageSet], tmp_path: Path) -> None:
    first = extract(sets, [toy()], cache=tmp_path / "a", batch_size=4, workers=1)
    order = np.random.default_rng(0).permutation(len(sets[0]))
    mixed = [sets[0].take(order), sets[1]]
    second = extract(mixed, [toy()], cache=tmp_path / "b", batch_size=7, workers=4)
    np.testing.assert_array_equal(first.of("real", "toy")[order], second.of("real", "toy"))
    np.testing.assert_array_equal(first.of("synthetic", "toy"), second.of("synthetic", "toy"))
    kept = extract(mixed, [toy()], cache=tmp_path / "a")  # read back in another order than it was written in
    np.testing.assert_array_equal(kept.of("real", "toy"), second.of("real", "toy"))


def test_every_image_is_decoded_once_for_all_extractors(
    sets: list[ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []
    monkeypatch.setattr(features, "read_image", lambda path: decoded.append(path) or read_image(path))
    extract(sets, [toy("one"), toy("two", weights="1")], cache=tmp_path / "cache")
    assert len(decoded) == 12 + 9 - 2  # two files are in both sets
    extract(sets, [toy("one"), toy("two", weights="1")], cache=tmp_path / "cache")
    assert len(decoded) == 19  # nothing the second time


def test_cache_knows_content_weights_and_chain(sets: list[ImageSet], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    extract(sets[:1], [toy()], cache=cache)
    for other, expected in ((toy(), 0), (toy(weights="1"), 12), (toy(chain="another"), 12)):
        extractor, calls = counted(other)
        extract(sets[:1], [extractor], cache=cache)
        assert len(calls) == expected
    # Another picture at the same path: only that one is extracted, and its features are new.
    path = sets[0].paths[3]
    Image.fromarray(np.full((40, 40), 77, np.uint8)).save(path)
    extractor, calls = counted(toy())
    found = extract(sets[:1], [extractor], cache=cache)
    assert len(calls) == 1 and (found.of("real", "toy")[3] == 77).all()
    # Moved files are the same files.
    moved = tmp_path / "elsewhere"
    sets[0].paths[0].parent.rename(moved)
    extractor, calls = counted(toy())
    extract([open_set(moved, name="real")], [extractor], cache=cache)
    assert len(calls) == 0


def test_a_killed_run_goes_on(sets: list[ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at = sets[0].paths[9]

    def read(path: Path) -> np.ndarray:
        if path == stop_at:
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr(features, "read_image", read)
    with pytest.raises(KeyboardInterrupt):
        extract(sets[:1], [toy()], cache=tmp_path / "cache", batch_size=4)
    monkeypatch.undo()
    extractor, calls = counted(toy())
    found = extract(sets[:1], [extractor], cache=tmp_path / "cache", batch_size=4)
    assert len(calls) == 4  # eight were kept, two batches
    np.testing.assert_array_equal(found.of("real", "toy"), toy()([read_image(p) for p in sets[0].paths])["features"])


def test_damaged_cache_is_said_and_made_again(
    sets: list[ImageSet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = extract(sets[:1], [toy()], cache=tmp_path / "cache")
    part = next((tmp_path / "cache").rglob("rows-*"))
    part.write_bytes(part.read_bytes()[:-100])
    capsys.readouterr()
    again = extract(sets[:1], [toy()], cache=tmp_path / "cache")
    assert "corrupt" in capsys.readouterr().err
    np.testing.assert_array_equal(first.of("real", "toy"), again.of("real", "toy"))


def test_images_that_break_in_the_middle(sets: list[ImageSet], tmp_path: Path) -> None:
    broken = sets[0].paths[4]
    broken.write_bytes(broken.read_bytes()[:600])  # the header is whole, the pixels are not
    images = open_set(broken.parent, name="real")
    with pytest.raises(UserError, match="--real: 1 of 12 images are bad") as caught:
        extract([images], [toy()], cache=tmp_path / "cache")
    assert str(broken) in str(caught.value) and "\n" not in str(caught.value)
    found = extract([images], [toy()], cache=tmp_path / "cache", skip_bad=True)
    assert found.of("real", "toy").shape == (11, 16) and len(found.set("real")) == 11
    assert str(broken) not in found.set("real").table["image"].tolist() and len(found.set("real").bad) == 1
    with pytest.raises(UserError, match="1 of 12 images are bad"):
        stream_moments(images, toy())
    moments, bad = stream_moments(images, toy(), skip_bad=True)
    assert moments.n == 11 and len(bad) == 1


def test_nan_features_are_a_bad_image(sets: list[ImageSet], tmp_path: Path) -> None:
    def forward(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        found = toy().forward(batch)
        bad = found["features"][:, 0] == 200
        return {name: torch.where(bad[:, None], torch.nan, values) for name, values in found.items()}

    path = sets[0].paths[2]
    Image.fromarray(np.full((40, 40), 200, np.uint8)).save(path)
    strange = replace(toy(), forward=forward)
    with pytest.raises(UserError, match="extractor toy gives NaN") as caught:
        extract(sets[:1], [strange], cache=tmp_path / "cache")
    assert path.name in str(caught.value)
    found = extract(sets[:1], [strange], cache=tmp_path / "cache", skip_bad=True)
    assert np.isfinite(found.of("real", "toy")).all() and len(found.set("real")) == 11


def test_streaming_is_the_same_as_all_at_once(sets: list[ImageSet], tmp_path: Path) -> None:
    whole = frechet.moments(extract(sets, [toy()], cache=tmp_path / "cache").of("real", "toy"))
    parts = [stream_moments(sets[0], toy(), batch_size=5, who=Process(rank, 3))[0] for rank in range(3)]
    assert [part.n for part in parts] == [4, 4, 4]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    for one in (stream_moments(sets[0], toy(), batch_size=7, workers=3)[0], merged):
        assert one.n == whole.n
        np.testing.assert_allclose(one.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(one.scatter, whole.scatter, rtol=1e-9, atol=1e-6)


WORKER = """
import sys
from pathlib import Path
import numpy as np
import torch.distributed as dist
sys.path[:0] = [{tests!r}, {tests!r} + "/metrics"]
from test_features import toy
from roentgen.metrics.distribution import frechet
from roentgen.metrics.features import extract, stream_moments
from roentgen.metrics.image_set import open_set
from roentgen.devices import Process
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
images = open_set(Path(sys.argv[1]), name="real")
own, _ = stream_moments(images, toy(), who=Process(rank, size))
whole = frechet.merge_across_processes(own)
share = dict(who=Process(rank, size), wait=dist.barrier)
found = extract([images], [toy()], cache=Path(sys.argv[2]) / "cache", **share).of("real", "toy")
np.savez(Path(sys.argv[2]) / f"{{rank}}.npz", own=own.n, n=whole.n, mean=whole.mean, scatter=whole.scatter, f=found)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(sets: list[ImageSet], forks: Forks, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(ROOT / "tests")))
    done = forks(script, sets[0].paths[0].parent, tmp_path, ranks=2)
    assert done.code == 0, done.err
    expected = extract(sets[:1], [toy()], cache=tmp_path / "alone").of("real", "toy")
    alone = frechet.moments(expected)
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as found:
            assert (found["own"], found["n"]) == (6, 12)
            np.testing.assert_allclose(found["mean"], alone.mean, rtol=1e-12)
            np.testing.assert_allclose(found["scatter"], alone.scatter, rtol=1e-9, atol=1e-6)
            np.testing.assert_array_equal(found["f"], expected)


def test_two_names_are_refused(sets: list[ImageSet], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same name"):
        extract(sets, [toy(), toy()], cache=tmp_path)


def test_only_a_few_images_are_in_memory(sets: list[ImageSet]) -> None:
    """However many there are: workers may be ahead of the network by two batches and what they have in hand."""
    extractor, prepared = counted(toy())
    most, consumed = 0, 0

    def forward(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        nonlocal most, consumed
        most, consumed = max(most, len(prepared) - consumed), consumed + len(batch)
        return toy().forward(batch)

    many = sets[0].take(np.arange(400) % 12)
    moments, _ = stream_moments(many, replace(extractor, forward=forward), workers=3, batch_size=32)
    assert moments.n == 400 == consumed and most <= 3 * 32 + 3 + 1
