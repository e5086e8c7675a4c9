"""A file from a cache that is unpickled whole names nothing but parts of networks."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from roentgen.errors import UserError
from roentgen.models.pickles import check_pickle

NETWORK = ("torch.nn.",)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, ("touch /tmp/never",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_network_passes_and_one_that_runs_code_does_not(tmp_path: Path, zipped: bool) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.ReLU())
    file = tmp_path / "network.pt"
    torch.save(network, file, _use_new_zipfile_serialization=zipped)
    check_pickle(file, NETWORK, "extractor xrv")
    network.hook = Evil()  # type: ignore[assignment]
    torch.save(network, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"extractor xrv: .*network\.pt would run (posix|nt)\.system"):
        check_pickle(file, NETWORK, "extractor xrv")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_every_way_to_name_a_function_is_seen(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "file.pt"
    file.write_bytes(pickle.dumps([Evil(), Evil()], protocol=protocol) * 5)
    with pytest.raises(UserError, match="would run"):
        check_pickle(file, NETWORK, "x")


@pytest.mark.parametrize(
    "named", ["torch.storage\n_load_from_bytes", "numpy\nload", "torch.nn.modules.module\ntorch.os.system"]
)
def test_ways_round_are_refused(tmp_path: Path, named: str) -> None:
    file = tmp_path / "file.pt"
    file.write_bytes(f"c{named}\n.".encode() * 5)
    with pytest.raises(UserError, match="would run"):
        check_pickle(file, NETWORK, "x")


def test_what_is_no_pickle_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file.pt"
    file.write_bytes(b"not a pickle at all")
    with pytest.raises(UserError, match="cannot be loaded"):
        check_pickle(file, NETWORK, "x")
