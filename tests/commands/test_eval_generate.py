"""`roentgen eval --generate`: which prompts are drawn, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from roentgen.synthesis import folder

Run = Callable[..., tuple[int, str, str]]
PROMPTS = [f"{side} pleural effusion{end}" for side in ("left", "right", "small", "large") for end in ("", " pa view")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_pipeline: Callable[..., Path]) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("model") / "tiny", window=64)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


def generate(out: Path, prompts: Path, model: Path, **changes: Any) -> pd.DataFrame:
    """The manifest of what ``--generate`` made."""
    settings: dict[str, Any] = {
        "name": str(model),
        "num_images": 1,
        "num_prompts": None,
        "seed": 5,
        "split": "test",
        "limit": None,
        "sampling": (1, None, None),
        "device": "cpu",
        "dtype": "float32",
        "batch_size": 8,
    }
    made, _ = folder.generate_set(out, prompts, **(settings | changes))
    return pd.read_csv(made)


def test_num_prompts_draws_so_many_in_the_order_of_the_file(tmp_path: Path, prompts: Path, model: Path) -> None:
    drawn = generate(tmp_path / "out", prompts, model, num_prompts=3, num_images=2)
    texts = drawn["text"].tolist()
    assert len(drawn) == 6 and drawn["seed"].tolist() == [5, 6, 7, 8, 9, 10]
    assert texts[::2] == texts[1::2] and len(set(texts)) == 3
    assert [PROMPTS.index(text) for text in texts[::2]] == sorted(PROMPTS.index(text) for text in texts[::2])
    about = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert about["prompts_used"] == 3 and about["num_images"] == 2


def test_the_same_seed_draws_the_same_prompts_and_another_others(tmp_path: Path, prompts: Path, model: Path) -> None:
    draws = [
        generate(tmp_path / name, prompts, model, num_prompts=3, seed=seed)["text"].tolist()
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    ]
    assert draws[0] == draws[1] != draws[2]


def test_more_prompts_than_there_are_is_all_of_them(tmp_path: Path, prompts: Path, model: Path) -> None:
    assert generate(tmp_path / "out", prompts, model, num_prompts=99)["text"].tolist() == PROMPTS


def test_the_smaller_of_limit_and_num_prompts_counts(tmp_path: Path, prompts: Path, model: Path) -> None:
    drawn = generate(tmp_path / "out", prompts, model, num_prompts=3, num_images=2, limit=4)
    assert len(drawn) == 4  # two prompts: the images of a third would be left out


def test_another_number_of_prompts_into_the_same_folder_is_refused(tmp_path: Path, prompts: Path, model: Path) -> None:
    from roentgen.errors import UserError

    generate(tmp_path / "out", prompts, model, num_prompts=3)
    with pytest.raises(UserError, match="choose another folder"):
        generate(tmp_path / "out", prompts, model, num_prompts=4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--generate", "mini", "--prompts", "p.txt", "--num-prompts", "0"], "--num-prompts 0: must be at least 1"),
        (["--synthetic", "folder", "--num-prompts", "3"], "--num-prompts is for --generate"),
    ],
)
def test_num_prompts_that_make_no_sense_are_one_sentence(
    run_cli: Run, tmp_path: Path, flags: list[str], said: str
) -> None:
    code, _, printed = run_cli("eval", "--real", "real.csv", "--out", tmp_path / "out", *flags)
    assert code == 2 and said in printed and "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_list_of_many_measures_is_longer_than_the_name_of_any_file() -> None:
    from roentgen.commands.evaluate import Evaluation, _settings

    many = ",".join(["near_duplicates"] * 40)
    assert _settings(Evaluation(metrics=many))["metrics"] == many
