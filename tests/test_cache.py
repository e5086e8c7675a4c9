"""Caches of latents and text states: the right rows, computed once, and never from a damaged file."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from damaged import damage
from pictures import write_manifest
from PIL import Image
from safetensors.numpy import load_file, save
from torch import Tensor

from roentgen import cache
from roentgen.cache import build_rows
from roentgen.data.images import ImageSource, open_source
from roentgen.data.shards import write_shards
from roentgen.devices import Team
from roentgen.errors import UserError
from roentgen.models.autoencoder.latents import encode
from roentgen.models.loading import load_vae
from roentgen.models.text_encoders import encode_text_states, make_reader
from roentgen.training import encoded
from roentgen.training.encoded import latent_cache, text_cache

SIZE = 32


@pytest.fixture(scope="module")
def vae(tiny_pipeline: Path) -> Any:
    return load_vae(tiny_pipeline / "vae")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "data", 12, size=SIZE)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of four latents of the tiny pipeline, in blocks of two."""
    monkeypatch.setattr(cache, "SHARD_BYTES", 4 * 2 * 4 * 8 * 8 * 2)
    monkeypatch.setattr(cache, "BLOCK", 2)


class Counted:
    """An image source that knows which rows were read."""

    def __init__(self, source: ImageSource) -> None:
        self.table, self.groups, self.size, self.digests = source.table, source.groups, source.size, source.digests
        self.read = source.read
        self._source = source
        self.rows: list[int] = []

    def read_many(self, indices: Any, *, threads: int = 4) -> Any:
        self.rows += [int(index) for index in indices]
        return self._source.read_many(indices, threads=threads)


def counted(manifest: Path, splits: tuple[str, ...] | None = None) -> Counted:
    return Counted(open_source(manifest, splits=splits, size=SIZE))


def build(vae: Any, source: Any, folder: Path, **settings: Any) -> Any:
    return latent_cache(vae, source, folder=folder, device="cpu", batch_size=2, **settings)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*-*/rows-*"))}


@pytest.mark.usefixtures("small_files")
def test_rows_are_those_of_the_cache_in_memory(vae: Any, manifest: Path, tmp_path: Path) -> None:
    source = counted(manifest)
    latents = build(vae, source, tmp_path / "cache")
    assert len(latents) == 12 and sorted(source.rows) == list(range(12))
    wanted = encode(vae, source._source.read_many(range(12)), device=torch.device("cpu")).numpy()
    order = np.random.default_rng(0).permutation(12)
    mean, std = latents.rows(torch.from_numpy(order))
    assert mean.shape == (12, 4, 8, 8) and mean.dtype == std.dtype == np.float16
    # Batches of other images: bfloat16 rounds to 1 part in 256.
    np.testing.assert_allclose(mean, wanted[order, 0], rtol=2e-2, atol=2e-2)
    np.testing.assert_allclose(std, wanted[order, 1], rtol=2e-2, atol=1e-3)
    assert len(files_of(tmp_path / "cache")) == 3
    copied = pickle.dumps(latents)
    assert len(copied) < 5000  # no rows in it
    assert np.array_equal(pickle.loads(copied).rows([3])[0], latents.rows([3])[0])


@pytest.mark.usefixtures("small_files")
def test_only_new_and_changed_images_are_encoded(vae: Any, manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = counted(manifest, ("train",))
    before = build(vae, first, folder).rows(range(8))
    assert len(first.rows) == 8
    again = counted(manifest, ("train",))
    assert np.array_equal(build(vae, again, folder).rows(range(8))[0], before[0]) and again.rows == []
    more = counted(manifest)
    build(vae, more, folder)
    assert sorted(more.table["split"].iloc[more.rows]) == ["val"] * 4

    # Other content of the same length under the same date: the change time tells.
    path = manifest.parent / "images" / "1.png"
    status, data = path.stat(), bytearray(path.read_bytes())
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path, compress_level=0)
    bigger = path.read_bytes()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = counted(manifest, ("train",))
    after = build(vae, changed, folder).rows(range(8))
    assert changed.rows == [0] and bigger != data
    assert not np.array_equal(after[0][0], before[0][0]) and np.array_equal(after[0][1:], before[0][1:])

    # The same content elsewhere, or at another time, is not encoded again.
    shutil.copytree(manifest.parent, tmp_path / "moved")
    moved = counted(tmp_path / "moved" / "manifest.csv")
    build(vae, moved, folder)
    assert moved.rows == []


@pytest.mark.usefixtures("small_files")
def test_shards_and_files_share_a_cache(vae: Any, manifest: Path, tmp_path: Path) -> None:
    build(vae, counted(manifest), tmp_path / "cache")
    write_shards(manifest, tmp_path / "shards", shard_mb=0.01)
    source = counted(tmp_path / "shards")
    latents = build(vae, source, tmp_path / "cache")
    assert source.rows == []
    wanted = encode(vae, source._source.read_many(range(12)), device=torch.device("cpu")).numpy()
    np.testing.assert_allclose(latents.rows(range(12))[0], wanted[:, 0], rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("small_files")
def test_another_autoencoder_or_size_is_another_cache(vae: Any, manifest: Path, tmp_path: Path) -> None:
    build(vae, counted(manifest), tmp_path / "cache")
    other = pickle.loads(pickle.dumps(vae))
    with torch.no_grad():
        other.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    source = counted(manifest)
    build(other, source, tmp_path / "cache")
    assert len(source.rows) == 12
    larger = Counted(open_source(manifest, splits=None, size=24))
    build(vae, larger, tmp_path / "cache")
    assert len(larger.rows) == 12
    assert len(list((tmp_path / "cache").glob("latents-*/cache.json"))) == 3


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("how", ["flipped in the rows", "flipped in a key", "cut", "empty"])
def test_a_damaged_file_is_said_and_computed_again(
    vae: Any, manifest: Path, tmp_path: Path, how: str, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "cache"
    wanted = build(vae, counted(manifest), folder).rows(range(12))
    before = files_of(folder)
    path = sorted(folder.glob("latents-*/rows-*"))[1]
    if how == "flipped in the rows":
        damage(path, len(before[path.name]) - 100)
    elif how == "flipped in a key":
        damage(path, before[path.name].index(b"keys") + 30)
    else:
        path.write_bytes(before[path.name][: {"cut": -2, "empty": 0}[how]])
    capsys.readouterr()
    source = counted(manifest)
    got = build(vae, source, folder).rows(range(12))
    assert f"{path}: corrupt" in capsys.readouterr().err
    assert len(source.rows) == 4 and files_of(folder) == before
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.usefixtures("small_files")
def test_a_damaged_list_of_digests_is_not_believed(
    vae: Any, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    build(vae, counted(manifest), tmp_path / "cache")
    (path,) = (tmp_path / "cache" / "images").iterdir()
    damage(path, 200)
    capsys.readouterr()
    source = counted(manifest)
    build(vae, source, tmp_path / "cache")
    assert f"{path}: corrupt" in capsys.readouterr().err and source.rows == []


def test_damage_of_every_byte_is_noticed(tmp_path: Path) -> None:
    keys = ["a", "b", "c"]
    rows = np.arange(12, dtype=np.float16).reshape(3, 4)
    settings: dict[str, Any] = {"what": "rows", "batch_size": 3}
    build_rows(tmp_path, keys, lambda items: items, lambda items: rows[items], **settings)
    (path,) = tmp_path.glob("rows-*")
    sound = path.read_bytes()
    for place in range(len(sound)):
        broken = bytearray(sound)
        broken[place] ^= 4
        path.write_bytes(broken)
        cache.check_rows(tmp_path, what="rows")
        assert not path.exists(), place
    store = build_rows(tmp_path, keys, lambda items: items, lambda items: rows[items], **settings)
    assert np.array_equal(store.take([2, 0]), rows[[2, 0]]) and path.read_bytes() == sound


def test_files_of_the_first_version_are_read(tmp_path: Path) -> None:
    """As safetensors' own writer made them, with one array and no second list of it."""
    rows, digest = np.arange(8, dtype=np.float16).reshape(2, 4), hashlib.sha256
    note = json.dumps({"keys": ["a", "b"], "sha256": digest(rows.tobytes()).hexdigest()})
    name = f"rows-{digest(b'a b').hexdigest()[:20]}.safetensors"
    (tmp_path / name).write_bytes(save({"rows": rows}, metadata={"roentgen": note}))
    settings: dict[str, Any] = {"what": "rows", "batch_size": 3}
    store = build_rows(tmp_path, ["b", "a"], lambda items: pytest.fail("computed"), lambda _: rows, **settings)
    assert np.array_equal(store.take([0, 1]), rows[[1, 0]])


def test_named_rows_and_whole_arrays(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """safetensors reads what is written; types and order stay; damage is said and made good."""
    store = cache.Store(tmp_path, what="features")
    first = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "hash": np.array([True, False])}
    store.write(["a", "b"], first)
    store.write(["c"], {"x": np.full((1, 3), 9, np.float32), "hash": np.array([True])})
    (path,) = (path for path in tmp_path.glob("rows-*") if load_file(path)["x"].shape == (2, 3))
    assert all(np.array_equal(load_file(path)[name], values) for name, values in first.items())
    found = cache.Store(tmp_path, what="features").read(["c", "a"], ["x", "hash"])
    assert found["x"].tolist() == [[9, 9, 9], [0, 1, 2]] and found["hash"].tolist() == [True, True]
    damage(path, path.stat().st_size - 3)
    again = cache.Store(tmp_path, what="features")
    assert "a" not in again and "c" in again and f"{path}: corrupt; its features" in capsys.readouterr().err

    made: list[int] = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"pixels": np.arange(12, dtype=np.uint8).reshape(3, 2, 2), "none": np.zeros((0, 5), np.int32)}

    for _ in range(2):
        got = cache.kept(tmp_path / "whole", "pixels", "ab" * 32, make)
        assert np.array_equal(got["pixels"], make()["pixels"]) and got["none"].shape == (0, 5)
    assert len(made) == 3  # two by this test
    (path,) = (tmp_path / "whole").iterdir()
    damage(path, path.stat().st_size - 3)
    assert np.array_equal(cache.kept(tmp_path / "whole", "pixels", "ab" * 32, make)["pixels"], make()["pixels"])
    assert f"{path}: corrupt" in capsys.readouterr().err


class TinyVae(torch.nn.Module):
    """What ``latent_cache`` asks of an autoencoder; without diffusers, whose import takes longer than these tests."""

    def __init__(self) -> None:
        super().__init__()
        self.config = FrozenConfig(in_channels=1, latent_channels=4)
        self.convolution = torch.nn.Conv2d(1, 8, 4, stride=4)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.linspace(-1, 1 + number, parameter.numel()).view(parameter.shape))

    def encode(self, x: Tensor) -> SimpleNamespace:
        mean, std = self.convolution(x).chunk(2, dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=std))


class FrozenConfig(dict):
    """A dictionary whose keys are attributes too, as diffusers' configurations are."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def build_in_a_process(manifest: Path, folder: Path, process: int, processes: int, how: str) -> None:
    """The process that ``start`` starts: builds the cache, prints how many images it read and a sum of the rows."""
    cache.SHARD_BYTES, cache.BLOCK = 4 * 2 * 4 * 8 * 8 * 2, 2
    meeting, calls, writes = folder.parent / "meeting", [0], [0]
    write = cache._write

    def write_once(*arguments: Any) -> None:
        writes[0] += 1
        if writes[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)

    def wait() -> None:
        calls[0] += 1
        meeting.mkdir(exist_ok=True)
        (meeting / f"{calls[0]}-{process}").touch()
        ends = time.monotonic() + 120
        while not all((meeting / f"{calls[0]}-{other}").exists() for other in range(processes)):
            assert time.monotonic() < ends, "nobody came"
            time.sleep(0.01)

    if how == "kill":
        cache._write = write_once
    source = counted(manifest)
    barrier: Any = wait if how == "together" else lambda: None
    latents = build(TinyVae(), source, folder, team=Team(process, processes, barrier))
    print(len(source.rows), latents.rows(range(12))[0].astype(np.float64).sum())


def start(manifest: Path, folder: Path, process: int, processes: int, how: str) -> subprocess.Popen:
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]\n"
        "from pathlib import Path; from test_cache import build_in_a_process\n"
        f"build_in_a_process(Path({str(manifest)!r}), Path({str(folder)!r}), {process}, {processes}, {how!r})"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("how", ["together", "apart"])
def test_two_processes_build_one_cache(manifest: Path, tmp_path: Path, how: str) -> None:
    """Together: two processes of one run share the work. Apart: two runs that know nothing of each other."""
    numbers = [(0, 2), (1, 2)] if how == "together" else [(0, 1), (0, 1)]
    running = [start(manifest, tmp_path / "cache", *number, how) for number in numbers]
    said = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    if how == "together":
        assert [int(out.split()[0]) for out, _ in said] == [6, 6]
    assert said[0][0].split()[1] == said[1][0].split()[1]
    source = counted(manifest)
    mean, _ = build(TinyVae(), source, tmp_path / "cache").rows(range(12))
    assert source.rows == []
    alone, _ = build(TinyVae(), source, tmp_path / "alone").rows(range(12))
    np.testing.assert_allclose(mean, alone, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("small_files")
def test_a_killed_build_goes_on(manifest: Path, tmp_path: Path) -> None:
    killed = start(manifest, tmp_path / "cache", 0, 1, "kill")
    said = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, said
    kept = files_of(tmp_path / "cache")
    assert len(kept) == 1
    source = counted(manifest)
    build(TinyVae(), source, tmp_path / "cache")
    assert len(source.rows) == 8
    build(TinyVae(), counted(manifest), tmp_path / "unbroken")
    assert files_of(tmp_path / "cache") == files_of(tmp_path / "unbroken")


@pytest.mark.usefixtures("small_files")
def test_processes_without_a_common_disk_compute_what_they_lack(vae: Any, manifest: Path, tmp_path: Path) -> None:
    source = counted(manifest)
    latents = build(vae, source, tmp_path / "cache", team=Team(1, 2))
    assert sorted(source.rows) == list(range(12)) and latents.rows(range(12))[0].shape == (12, 4, 8, 8)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_keeps_what_was_written(
    vae: Any, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 3:  # the description, the digests and one file of rows
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"rows-.*no space left on the disk.*kept") as caught:
        build(vae, counted(manifest), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert len(files_of(tmp_path / "cache")) == 1 and not list(tmp_path.rglob("*.tmp"))


def test_images_that_cannot_be_used_are_named(vae: Any, manifest: Path, tmp_path: Path) -> None:
    broken = pickle.loads(pickle.dumps(vae))
    with torch.no_grad():
        broken.quant_conv.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"0\.jpg: its latents are not finite"):
        build(broken, counted(manifest), tmp_path / "cache")
    source = counted(manifest)
    (manifest.parent / "images" / "7.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"7\.png: cannot be read as an image"):
        build(vae, source, tmp_path / "cache")
    (manifest.parent / "images" / "7.png").unlink()
    with pytest.raises(UserError, match=r"7\.png: image not found"):
        build(vae, source, tmp_path / "cache")


# ------------------------------------------------------------------------------------------ texts

TEXTS = ["left pleural effusion", "heart is normal in size", "no acute process", "left pleural effusion", "pa view"]


def parts_of(pipeline: Path) -> tuple[Any, Any]:
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(pipeline / "tokenizer", local_files_only=True)
    folder = pipeline / "text_encoder"
    return tokenizer, CLIPTextModel.from_pretrained(folder, local_files_only=True, attention_dropout=0.9)


@pytest.mark.parametrize("chunks", [1, 2])
def test_states_are_those_of_the_encoder(tiny_pipeline: Path, tmp_path: Path, chunks: int) -> None:
    tokenizer, encoder = parts_of(tiny_pipeline)
    encoder.train()
    reader = make_reader(tokenizer, encoder, chunks=chunks)
    texts = [*TEXTS, " ".join(TEXTS * 2)]
    states = text_cache(reader, encoder, texts, folder=tmp_path, device="cpu", batch_size=2)
    assert len(states) == 6 and encoder.training
    asked = ["pa view", "", texts[-1], "left pleural effusion", "pa view"]
    got = states.states(asked)
    with torch.no_grad():
        wanted = encode_text_states(encoder.eval(), reader.tokens(asked), masked=reader.masked)
    assert got.dtype == torch.float16 and got.shape == wanted.shape == (5, 24 * chunks, 16)
    torch.testing.assert_close(got.float(), wanted, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="no states are cached for the text 'another'"):
        states.states(["another"])


def test_texts_are_encoded_once(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import roentgen.models.text_encoders as module

    tokenizer, encoder = parts_of(tiny_pipeline)
    encoded: list[int] = []

    def counting(text_encoder: Any, tokens: Any, *, masked: bool) -> Any:
        encoded.append(len(tokens.ids))
        return encode_text_states(text_encoder, tokens, masked=masked)

    monkeypatch.setattr(module, "encode_text_states", counting)

    def run(texts: list[str], **settings: Any) -> int:
        encoded.clear()
        text_cache(make_reader(tokenizer, encoder, **settings), encoder, texts, folder=tmp_path, device="cpu")
        return sum(encoded)

    assert run(TEXTS) == 5  # four texts and the empty one
    tokenizer(TEXTS, padding=True, truncation=True, max_length=5)  # leaves its traces in the tokenizer
    assert run(TEXTS) == 0
    assert run([*TEXTS, "small"]) == 1
    assert run(TEXTS, window=12) == 5
    assert run(TEXTS, chunks=2) == 5


def test_other_weights_or_tokenizers_are_another_cache(tiny_pipeline: Path, tmp_path: Path) -> None:
    tokenizer, encoder = parts_of(tiny_pipeline)
    other_tokenizer, _ = parts_of(tiny_pipeline)
    other_tokenizer.add_tokens(["pneumothorax"])
    whole = encoded.tokenizer_hash(tokenizer)
    assert whole != encoded.tokenizer_hash(other_tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(5)  # as any call may leave it
    assert whole == encoded.tokenizer_hash(tokenizer)
    reader = make_reader(tokenizer, encoder)
    first = text_cache(reader, encoder, TEXTS, folder=tmp_path, device="cpu").states(TEXTS)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
    second = text_cache(reader, encoder, TEXTS, folder=tmp_path, device="cpu").states(TEXTS)
    assert not torch.allclose(first, second, atol=0.1)


def test_states_beyond_float16_are_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    tokenizer, encoder = parts_of(tiny_pipeline)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "final_layer_norm" in name:
                parameter.mul_(1e6)
    reader = make_reader(tokenizer, encoder)
    with pytest.raises(UserError, match=r"do not fit float16.*--text-states online"):
        text_cache(reader, encoder, TEXTS, folder=tmp_path, device="cpu")


def test_rows_are_read_right_from_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD_BYTES", 40)
    keys = [f"{number:064x}" for number in range(200)]
    rows = np.arange(200, dtype=np.float16)[:, None] + np.zeros((1, 2), np.float16)
    store = build_rows(
        tmp_path,
        keys,
        lambda items: items,
        lambda items: rows[items],
        what="rows",
        batch_size=7,
    )
    wrong: list[int] = []

    def read(seed: int) -> None:
        for items in np.random.default_rng(seed).integers(0, 200, (50, 16)):
            if not np.array_equal(store.take(items), rows[items]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
