"""Checkpoints: whole or not there, of two the newest kept, and what is said of those that do not fit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from roentgen.errors import UserError
from roentgen.files import new_folder
from roentgen.folders import hold_folder
from roentgen.training.checkpoints import Checkpoints, load_trained_state, trained_state


def test_checkpoints_keep_two_and_say_what_differs(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    for images in (1, 2, 3):
        checkpoints.save(images, {"x": torch.tensor(images), "settings": {"rate": 1}})
    assert len(list(tmp_path.iterdir())) == 2
    state = checkpoints.latest()
    assert state is not None and state["images"] == 3
    with pytest.raises(UserError, match=r"rate \(1 there, 2 now\)"):
        checkpoints.check_same(state["settings"], {"rate": 2}, free=frozenset())
    checkpoints.check_same(state["settings"], {"rate": 2}, free=frozenset({"rate"}))


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "state-0000000001.pt").write_bytes(b"no")
    with pytest.raises(UserError, match=r"state-0000000001\.pt"):
        Checkpoints(tmp_path).latest()


def test_what_a_killed_run_left_is_tidied(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": torch.zeros(1)})
    (tmp_path / "state-0000000002.tmp").write_bytes(b"half")
    (tmp_path / "state-0000000003.tmp").mkdir()
    (tmp_path / "state-0000000003.tmp" / "shard").write_bytes(b"half")
    newest = checkpoints.newest()
    assert newest is not None and newest.name == "state-0000000001.pt"  # half a checkpoint is none
    checkpoints.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["state-0000000001.pt"]


def test_sharded_checkpoints_are_folders_of_which_two_are_kept(tmp_path: Path) -> None:
    checkpoints, waits = Checkpoints(tmp_path), []
    for images in (1, 2, 3):
        checkpoints.save_sharded(
            images,
            {"settings": {"rate": 1}, "processes": 2},
            write=lambda folder: (folder / "shard").write_bytes(b"x"),
            main=True,
            wait=lambda: waits.append(1),
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"state-{n:010d}.sharded" for n in (2, 3)]
    state = checkpoints.latest()
    assert state is not None and state["images"] == 3 and state["processes"] == 2
    assert (state["folder"] / "shard").read_bytes() == b"x"
    assert len(waits) == 9


def test_a_sharded_checkpoint_that_fails_leaves_the_older_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    options: dict[str, Any] = {"main": True, "wait": lambda: None}
    checkpoints.save_sharded(1, {}, write=lambda folder: None, **options)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="older ones are kept"):
        checkpoints.save_sharded(2, {}, write=full, **options)
    assert [path.name for path in tmp_path.glob("*.sharded")] == ["state-0000000001.sharded"]


def test_a_checkpoint_of_another_model_names_the_folder(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    net, other = nn.Linear(2, 2), nn.Linear(3, 2)
    saved = {"model": trained_state(net)}
    checkpoints.load_into(saved, nn.Linear(2, 2), load_trained_state)
    with pytest.raises(UserError, match=rf"{tmp_path / 'run'}: .*another model.*new --out"):
        checkpoints.load_into(saved, other, load_trained_state)


def test_hashes_that_differ_are_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"settings: the images, texts or splits of --manifest, the weights of --model"):
        Checkpoints(tmp_path).check_same({"data": "a", "start": "b"}, {"data": "c", "start": "d"}, free=frozenset())


def test_every_flipped_byte_of_a_checkpoints_weights_is_noticed(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(4, {"model": {"w": torch.arange(64.0)}})
    path = kept.newest()
    assert path is not None
    whole, data = path.read_bytes(), torch.arange(64.0).numpy().tobytes()
    start = whole.index(data)
    for place in (start, start + 100, start + len(data) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"checkpoint cannot be read .*damaged"):
            kept.latest()
    path.write_bytes(whole)
    state = kept.latest()
    assert state is not None and state["model"]["w"].tolist() == list(range(64))


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with new_folder(tmp_path / "there") as folder:
            (folder / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["there", "there/new"]


def test_a_folder_belongs_to_one_run_until_its_process_is_dead(tmp_path: Path) -> None:
    code = "from pathlib import Path; from roentgen.folders import hold_folder; import time; "
    code += f"kept = hold_folder(Path({str(tmp_path)!r}), '--out'); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"--out .*another run is writing there"):
            hold_folder(tmp_path, "--out")
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    hold_folder(tmp_path, "--out").close()


def test_trained_state_holds_what_is_trained_and_goes_back() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    state = {name: value.clone() for name, value in trained_state(net).items()}
    assert set(state) == {"1.weight", "1.bias"}
    net[1].weight.data.zero_()
    load_trained_state(net, state)
    assert torch.equal(net[1].weight, state["1.weight"])
    net[0].requires_grad_(True)
    with pytest.raises(ValueError, match="parameters"):
        load_trained_state(net, state)
