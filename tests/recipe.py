"""Recipes in this process: a run takes about a second, where a new process takes eight."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from forks import Done

from roentgen import errors

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "sample" / "manifest.csv"


def load_script(name: str) -> Any:
    """A script of the repository, such as eval/steps.py, as a module, which finds what stands beside it."""
    known = name.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(f"script_{known}", ROOT / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # settings are read from the module by its name
    beside = str((ROOT / name).parent)
    sys.path.insert(0, beside)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(beside)
    return module


def finetune(*flags: object, cpu: bool = True, name: str = "finetune") -> Done:
    """Run the recipe ``name`` as its command line does, on the CPU unless told otherwise."""
    import torch
    from accelerate.state import AcceleratorState, GradientState

    recipe = importlib.import_module(f"roentgen.recipes.{name}")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ["ACCELERATE_USE_CPU"] = str(cpu).lower()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only get in each other's way in so small a model
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = errors.run(lambda: recipe.main([str(flag) for flag in flags]), prog=f"train/{name}.py")
        finally:
            del os.environ["ACCELERATE_USE_CPU"]
            torch.set_num_threads(threads)
    return Done(code, out.getvalue(), err.getvalue())


def good(*flags: object, cpu: bool = True, name: str = "finetune") -> Done:
    """A run that must end well."""
    result = finetune(*flags, cpu=cpu, name=name)
    assert result.code == 0, result.err[-2000:]
    return result


def refused(*flags: object, name: str = "finetune") -> str:
    """The one sentence with which a run is refused."""
    result = finetune(*flags, name=name)
    assert result.code == 2, (result.code, result.out, result.err)
    lines = [line for line in result.err.splitlines() if line.startswith(f"train/{name}.py: error: ")]
    assert len(lines) == 1, result.err
    return lines[0]


def few_rows(folder: Path, *, train: int = 24, val: int = 8, **columns: Any) -> Path:
    """A manifest of the sample's first images, with absolute paths; ``columns`` replace columns."""
    import pandas as pd

    table = pd.read_csv(SAMPLE, dtype=str, keep_default_na=False)
    table["image"] = [str(SAMPLE.parent / name) for name in table["image"]]
    rows = pd.concat([table[table["split"] == "train"][:train], table[table["split"] == "val"][:val]])
    rows = rows.assign(**columns)
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def part(folder: Path, name: str) -> dict[str, Any]:
    """Weights of one part of a pipeline folder; those of CLIP without the prefix that some versions write."""
    from safetensors.numpy import load_file

    (file,) = (folder / name).glob("*.safetensors")
    return {key.removeprefix("text_model."): value for key, value in load_file(file).items()}


def changed(one: Path, other: Path, name: str) -> set[str]:
    """Names of the weights of a part that differ between two pipeline folders, bit by bit."""
    first, second = part(one, name), part(other, name)
    return {key for key in set(first) | set(second) if key not in first or key not in second
            or not np.array_equal(first[key], second[key])}  # fmt: skip


def same(one: Path, other: Path) -> bool:
    """Whether two pipeline folders have the same weights, bit by bit."""
    return not any(changed(one, other, name) for name in ("unet", "text_encoder", "vae"))
