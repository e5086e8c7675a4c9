"""A server that starts the fine-tuning recipe again and again, and kills it: libraries are imported only once.

Reads one JSON object a line: ``argv`` of the recipe; ``checkpoints``, its folder; ``kill``, when to send SIGKILL, or
null; ``wait``, seconds after that; ``limit``, bytes that a file may have (a full disk), or null. Answers with one:
``rc`` (-9: killed), ``out``, ``err``, ``seconds``. ``kill`` is "start", "held" (the run has its folder), "latents"
(they are being computed, or are there), "checkpoint" (as soon as ``more`` steps of ``every`` images are saved),
"writing" (as soon as one is being written) or "pipeline" (as soon as the result is being written).

Forks, so it must not start threads itself: one thread in torch, no tensor is made here.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

RECIPE = Path(__file__).parents[1] / "train" / "finetune.py"


def imports() -> None:
    """All that a run imports."""
    import diffusers
    import transformers

    for name in ("AutoencoderKL", "DDIMScheduler", "DDPMScheduler", "StableDiffusionPipeline", "UNet2DConditionModel"):
        assert getattr(diffusers, name)
    for name in ("CLIPTextModel", "CLIPTokenizer", "CLIPTokenizerFast"):
        assert getattr(transformers, name)
    runpy.run_path(str(RECIPE), run_name="imported")


def child(job: dict[str, Any], out: int, err: int) -> NoReturn:
    """Run the recipe in this process and leave it."""
    code = 70
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        if job["limit"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))  # Python ignores the signal
        sys.argv = [str(RECIPE), *job["argv"]]
        runpy.run_path(str(RECIPE), run_name="__main__")
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def moment(job: dict[str, Any]) -> Callable[[], bool]:
    """Whether it is time to kill, or to start counting ``wait``."""
    folder = Path(job["checkpoints"])

    def images() -> int:
        return max((int(path.stem[6:]) for path in folder.glob("state-*.pt")), default=0)

    until = images() + job.get("more", 1) * job.get("every", 1)
    return {
        "start": lambda: True,
        "held": lambda: (folder.parent / ".lock").exists(),
        "latents": lambda: (folder.parent / "cache").exists(),
        "checkpoint": lambda: images() >= until,
        "writing": lambda: bool(list(folder.glob(".state-*.tmp"))),
        "pipeline": lambda: bool(list(folder.parent.glob(".pipeline.*.tmp"))),
    }[job["kill"]]


def serve(job: dict[str, Any]) -> dict[str, Any]:
    """One run from fork to end."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(job, out.fileno(), err.fileno())
        due = None if job["kill"] is None else moment(job)
        at = float("inf")
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            now = time.monotonic()
            if due is not None and due():
                due, at = None, now + job["wait"]
            if now >= at:
                os.kill(pid, signal.SIGKILL)
                at = float("inf")
            time.sleep(0.0002 if due is not None or at < float("inf") else 0.01)
        seconds = time.monotonic() - started
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return {"rc": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1], "seconds": seconds}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print while they are imported must not get between the answers
    imports()
    for line in sys.stdin:
        answers.write(json.dumps(serve(json.loads(line))) + "\n")
        answers.flush()
