"""The device and precision to run on; which of several processes this is, and how these wait for each other."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from roentgen.errors import UserError
from roentgen.files import reason

MEETING = timedelta(minutes=10)
"""How long processes wait for one another at the start: one that is not there by then has failed."""
PATIENCE = timedelta(days=14)
"""How long a process waits for the slowest later: one that ends breaks its connections, which the others notice."""


@dataclass(frozen=True)
class Process:
    """Which of how many processes this is."""

    rank: int = 0
    world: int = 1

    def own(self, count: int) -> range:
        """The share of this process in ``count`` things."""
        return range(self.rank, count, self.world)


ALONE = Process()


@dataclass(frozen=True)
class Team(Process):
    """The processes that share a piece of work, and their barrier: it returns once all of them have called it."""

    wait: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, accelerator: Any) -> Team:
        """The processes of one of accelerate's runs."""
        return cls(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)


TEAM_OF_ONE = Team()


class PeerLost(UserError):
    """Another process of this run has ended before it came to a barrier."""


def this_process(device: str) -> tuple[Process, str]:
    """Which process this is, by the variables of accelerate and torchrun, and its device ("auto": a GPU of its own).

    Raises:
        UserError: RANK, WORLD_SIZE or LOCAL_RANK is no number, or the rank is not below the number of processes.
    """
    try:
        who = Process(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
        local = int(os.environ.get("LOCAL_RANK", 0))
    except ValueError:
        raise UserError("RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers; unset them for one process") from None
    if not 0 <= who.rank < who.world:
        raise UserError(f"RANK {who.rank} of WORLD_SIZE {who.world}: ranks count from 0")
    if device == "auto" and pick_device("auto") == "cuda":
        import torch

        return who, f"cuda:{local % torch.cuda.device_count()}"
    return who, device


@contextmanager
def meeting(who: Process) -> Iterator[Callable[[], None]]:
    """A function that returns when every process has called it; nothing to wait for where there is one process.

    The function raises ``PeerLost`` where another process has ended.

    Raises:
        UserError: the variables by which processes find each other are missing, or not all of them have come.
    """
    if who.world == 1:
        yield lambda: None
        return
    if "MASTER_ADDR" not in os.environ:
        raise UserError("MASTER_ADDR is not set but WORLD_SIZE is; start with `accelerate launch`, or unset WORLD_SIZE")

    import torch.distributed

    try:  # over gloo: they meet, and exchange nothing on a GPU
        torch.distributed.init_process_group("gloo", timeout=MEETING)
        group: Any = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise PeerLost(
            f"process {who.rank} has not met the others of {who.world} within {MEETING.seconds // 60} minutes "
            f"({reason(error)}); look for their messages, then start all of them again"
        ) from error

    def wait() -> None:
        try:
            torch.distributed.barrier(group=group)
        except RuntimeError as error:  # gloo: its connection is closed
            raise PeerLost(
                "another process of this run has ended early; look for its message, then run the same command again"
            ) from error

    try:
        yield wait
    finally:
        torch.distributed.destroy_process_group()


def pick_device(device: str | None) -> str:
    """A device that is here: None and "auto" take a GPU if there is one; UserError names what is missing."""
    import torch

    if device in (None, "auto"):
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device {device}: unknown device; use auto, cpu, cuda, cuda:N or mps") from error
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {device}: no CUDA GPU is available here; use --device cpu")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {device}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    if kind.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {device}: no Apple GPU is available here; use --device cpu")
    if kind.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {device}: unsupported; use auto, cpu, cuda, cuda:N or mps")
    return str(kind)


def throughput_dtype(device: str) -> str:
    """What ``dtype`` auto means for thousands of images: bfloat16 on a CPU that multiplies in it, else ``auto``.

    A single image is made in float32 on every CPU, so that it is the same everywhere but for rounding.
    """
    import torch

    if pick_device(device) != "cpu":
        return "auto"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # from PyTorch 2.11
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "auto"


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back: a CPU step else spends its time in page faults.

    M_TRIM_THRESHOLD (-1) and M_MMAP_MAX (-4) of mallopt(3). Nothing happens with another C library.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, 2**31 - 1)
        mallopt(-4, 0)
