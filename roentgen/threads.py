"""How many threads compute and how they wait, chosen before torch is loaded. Light at import: no torch.

OpenMP's threads spin while they wait for each other. As soon as another program runs on the same cores they spin
instead of it and it instead of them, and a command takes several times as long.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path


def settle(environ: MutableMapping[str, str] | None = None) -> None:
    """Set ``OMP_WAIT_POLICY`` to passive and ``OMP_NUM_THREADS`` to ``cores()``, unless the user has set them.

    OpenMP reads them once, when torch is loaded: after that nothing is changed.
    """
    environ = os.environ if environ is None else environ
    if "torch" in sys.modules:
        return
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environ.setdefault("OMP_NUM_THREADS", str(cores()))


def cores(system: Path = Path("/")) -> int:
    """Physical cores that this process may use, at least 1: those of its affinity, within its control group's limit.

    Two threads on one physical core share its arithmetic units, so they gain nothing here. ``system`` is the root of
    the file system (for tests).
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    places = set()
    for cpu in allowed:
        topology = system / f"sys/devices/system/cpu/cpu{cpu}/topology"
        try:
            places.add(tuple((topology / name).read_text().strip() for name in ("physical_package_id", "core_id")))
        except OSError:
            places.add((str(cpu),))  # not told: every one counts
    quota = _quota(system)
    return max(1, len(places) if quota is None else min(len(places), math.ceil(quota)))


def _quota(system: Path) -> float | None:
    """Cores' worth of time that control groups (version 2 or 1) leave to this process; None without a limit."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        base = system / "sys/fs/cgroup" / ("cpu" if kinds else "")
        # A container often sees its own group as the root of the tree, whatever it is called outside.
        groups = [base, *(base.joinpath(*Path(place).parts[1:end]) for end in range(2, len(Path(place).parts) + 1))]
        for group in groups:
            try:
                if kinds:
                    quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                else:
                    quota, period = (group / "cpu.max").read_text().split()
                if quota != "max" and float(quota) > 0:
                    limits.append(float(quota) / float(period))
            except (OSError, ValueError, ZeroDivisionError):
                continue
    return min(limits, default=None)
