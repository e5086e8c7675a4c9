"""Python programs in processes of their own that find other packages loaded: six seconds less for each.

A server imports torch, diffusers and the like once and forks for every program; roentgen is imported by each program
itself, as when it is started cold. Reads one JSON object a line: ``words``, as after ``python``; ``environ``;
``ranks``, processes that run it; ``kill``, when to send SIGKILL, or null; ``limit``, bytes that a file may have (a full
disk), or null. Answers with one: ``code`` (-9: killed), ``out``, ``err``.

It must not start threads itself, or its children could wait for them: no tensor is made here.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
ENVIRON = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
CPU = {"ACCELERATE_USE_CPU": "true"}


@dataclass(frozen=True)
class Kill:
    """When a program is killed: ``wait`` seconds after ``folder`` has ``count`` files named by ``pattern``.

    ``since`` leaves out files whose names come before it. An empty pattern: as soon as the program starts.
    """

    folder: str
    pattern: str
    count: int = 1
    since: str = ""
    wait: float = 0.0

    def due(self) -> bool:
        """Whether it is time to start counting ``wait``."""
        found = Path(self.folder).glob(self.pattern) if self.pattern else [Path()] * self.count
        return len([path for path in found if path.name >= self.since]) >= self.count


@dataclass(frozen=True)
class Done:
    """What a program came to: exit code (of the rank that failed first), stdout, stderr."""

    code: int
    out: str
    err: str


class Forks:
    """The server's other end, which starts it with the first program; ``with`` ends it."""

    def __init__(self) -> None:
        self.server: subprocess.Popen[str] | None = None

    def __call__(
        self,
        *words: object,
        ranks: int = 1,
        environ: dict[str, str] = CPU,
        kill: Kill | None = None,
        limit: int | None = None,
    ) -> Done:
        """Run ``python WORDS`` from the repository's root, with ``environ`` over this process's and ``ENVIRON``."""
        if self.server is None:
            self.server = subprocess.Popen(
                [sys.executable, __file__], env=os.environ | ENVIRON, cwd=ROOT, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        assert self.server.stdin is not None and self.server.stdout is not None
        job = {
            "words": [str(word) for word in words],
            "ranks": ranks,
            "environ": os.environ | ENVIRON | environ,
            "kill": kill and asdict(kill),
            "limit": limit,
        }
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return Done(**json.loads(self.server.stdout.readline()))

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.server is not None:
            self.server.communicate()


def imports() -> None:
    """What nearly all programs import of other packages."""
    import diffusers
    import pandas
    import torch.utils.tensorboard
    import transformers

    for name in ("AutoencoderKL", "DDIMScheduler", "DDPMScheduler", "StableDiffusionPipeline", "UNet2DConditionModel"):
        assert getattr(diffusers, name)
    for name in ("CLIPTextModel", "CLIPTokenizer", "CLIPTokenizerFast"):
        assert getattr(transformers, name)
    assert pandas and torch.utils.tensorboard
    with contextlib.suppress(ImportError):  # of transformers 5, which compiles a thousand expressions once
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("clip")


def child(job: dict[str, Any], rank: int, port: int, out: int, err: int) -> NoReturn:
    """Run the program in this process and leave it."""
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # not the server's jobs
        os.dup2(out, 1)
        os.dup2(err, 2)
        if job["limit"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))  # Python ignores the signal
        os.environ.clear()
        os.environ.update(job["environ"])
        if job["ranks"] > 1:  # as torchrun says it
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"], "LOCAL_WORLD_SIZE": job["ranks"]}
            os.environ.update({key: str(value) for key, value in numbers.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        words = job["words"]
        if words[0] == "-m":
            sys.argv, sys.path[0] = words[1:], str(Path.cwd())
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *words[2:]], ""
            exec(words[1], {"__name__": "__main__"})
        else:
            sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for(pids: list[int], kill: Kill | None) -> int:
    """Wait for all ranks, and kill them in time; the exit code of the first that did not end well, else 0.

    Where one fails, the others are killed, as torchrun does.
    """
    at, code, left = float("inf"), 0, set(pids)
    while left:
        for pid in sorted(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            left.remove(pid)
            if status and not code:
                code = os.waitstatus_to_exitcode(status)
                for other in left:
                    os.kill(other, signal.SIGKILL)
        now = time.monotonic()
        if kill is not None and kill.due():
            kill, at = None, now + kill.wait
        if now >= at:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            at = float("inf")
        time.sleep(0.0002 if kill is not None or at < float("inf") else 0.01)
    return code


def serve(job: dict[str, Any]) -> dict[str, Any]:
    """One program from fork to end."""
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    # pyarrow's allocator starts its thread again in children; any other would be missing there.
    assert len([name for name in threads if name != "jemalloc_bg_thd"]) == 1, threads
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pids: list[int] = []
        for rank in range(job["ranks"]):
            pids.append(os.fork())
            if pids[-1] == 0:
                child(job, rank, port, out.fileno(), err.fileno())
        code = wait_for(pids, None if job["kill"] is None else Kill(**job["kill"]))
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return {"code": code, "out": texts[0], "err": texts[1]}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print while they are imported must not get between the answers
    imports()
    for line in sys.stdin:
        answers.write(json.dumps(serve(json.loads(line))) + "\n")
        answers.flush()
