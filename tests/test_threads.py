"""Threads and how they wait: chosen before torch is loaded, never over what the user has set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from roentgen import threads

MANY = hasattr(os, "sched_getaffinity")


def machine(root: Path, *, cpus: dict[int, tuple[int, int]], files: dict[str, str]) -> Path:
    """A file system that describes ``cpus`` (number -> package, core) and holds ``files``."""
    for cpu, place in cpus.items():
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        for name, value in zip(("physical_package_id", "core_id"), place, strict=True):
            (folder / name).write_text(f"{value}\n")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


EIGHT = {cpu: (0, cpu % 4) for cpu in range(8)}  # four cores, two threads each
V2 = {"proc/self/cgroup": "0::/box/inner\n"}


@pytest.mark.skipif(not MANY, reason="no affinities here")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4),
        (V2 | {"sys/fs/cgroup/box/inner/cpu.max": "max 100000\n"}, 4),
        (V2 | {"sys/fs/cgroup/box/inner/cpu.max": "150000 100000\n"}, 2),
        (V2 | {"sys/fs/cgroup/box/cpu.max": "50000 100000\n"}, 1),
        (V2 | {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "3:cpu,cpuacct:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"proc/self/cgroup": "3:cpu,cpuacct:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 4),
        (V2 | {"sys/fs/cgroup/cpu.max": "nonsense"}, 4),
    ],
)  # fmt: skip
def test_cores_are_physical_and_within_limits(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert threads.cores(machine(tmp_path, cpus=EIGHT, files=files)) == expected


@pytest.mark.skipif(not MANY, reason="no affinities here")
def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 1})
    assert threads.cores(machine(tmp_path, cpus=EIGHT, files={})) == 2
    assert threads.cores(tmp_path / "knows nothing") == 3


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    mine = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"}
    threads.settle(mine)
    assert mine == {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"}
    empty: dict[str, str] = {}
    threads.settle(empty)
    assert empty == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads.cores())}
    monkeypatch.setitem(sys.modules, "torch", object())
    late: dict[str, str] = {}
    threads.settle(late)
    assert late == {}  # OpenMP has read them already: a change would only reach child processes


def test_the_command_settles_threads_before_anything_else() -> None:
    script = (
        "import sys, os\n"
        "from roentgen import cli, __main__ as command\n"
        "cli.main = lambda argv: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules) or 0\n"
        "sys.exit(command.main())"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    ran = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["PASSIVE", "False"]
