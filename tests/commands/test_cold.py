"""What a command imports: no more than it needs, so that it starts soon on any machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "diffusers", "transformers", "peft", "accelerate", "torchvision", "torchmetrics", "torchxrayvision", "triton",
    "pandas", "pyarrow", "scipy", "sklearn", "sympy", "matplotlib", "nltk", "skimage", "datasets", "huggingface_hub",
    "requests", "httpx", "httpx2", "fsspec", "jinja2", "yaml", "pydicom", "tensorboard", "torch._dynamo",
    "torch._inductor", "torch.distributed.fsdp",
}  # fmt: skip


def imported(*words: object) -> set[str]:
    """Modules that a command line has imported when it ends well."""
    script = (
        "import json, sys\n"
        "from roentgen.__main__ import main\n"
        f"sys.argv = {['roentgen', *map(str, words)]!r}\n"
        "try:\n    code = main()\nexcept SystemExit as end:\n    code = end.code or 0\n"
        "print(json.dumps([code, sorted(sys.modules)]))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    code, names = json.loads(ran.stdout.splitlines()[-1])
    assert code == 0, ran.stderr[-2000:]
    return set(names)


def test_one_picture_needs_torch_and_no_library_around_it(tmp_path: Path) -> None:
    names = imported("generate", "left pleural effusion", "--out", tmp_path, "--steps", 1, "--guidance", 1)
    assert list(tmp_path.glob("*.png"))
    assert "torch" in names
    assert names & HEAVY == set()


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("models",),
        ("data", "check", "--help"),
        ("export", "--help"),
        ("train", "--list"),
        ("eval", "--help"),
    ],
)
def test_what_computes_nothing_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    allowed = {"models": {"huggingface_hub", "httpx2", "httpx", "yaml"}}.get(words[0], set())
    assert imported(*words) & (HEAVY | {"torch"}) <= allowed


def test_info_reads_an_image_without_torch(tmp_path: Path) -> None:
    import numpy as np

    from roentgen.images import save_image

    save_image(np.zeros((8, 8), np.uint8), tmp_path / "a.png", format="png", provenance={"prompt": "left"})
    assert imported("info", tmp_path / "a.png") & (HEAVY | {"torch"}) == set()
