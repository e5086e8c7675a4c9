"""eval/augmentation_gain.py run for real on tiny images, and the parts of it that have a right answer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from recipe import load_script

from roentgen import errors
from roentgen.experiments.augmentation import gain as augmentation
from roentgen.experiments.augmentation import runs as gain_runs
from roentgen.experiments.augmentation.arms import ARMS, plan_runs, real_subset, schedule, synthetic_rows
from roentgen.experiments.augmentation.classifier import Recipe, build_net, classic, masked_loss
from roentgen.experiments.augmentation.report import in_words
from roentgen.experiments.augmentation.sources import Source
from roentgen.metrics.adherence.auroc import weighted_auroc
from roentgen.metrics.statistics import Bootstrap

FINDINGS = ("No Finding", "Effusion", "Hernia")
QUICK = ("--size", "32", "--images", "128", "--batch-size", "16", "--validations", "2", "--resamples", "50")
SMALL = ("--seeds", "2", "--sizes", "20,40", "--min-positive", "2", "--jobs", "1", "--device", "cpu")


GAIN = load_script("eval/augmentation_gain.py")


def write_set(folder: Path, splits: dict[str, int], *, seed: int, prefix: str) -> Path:
    """Noise, brighter at the bottom for an effusion and at the top for a hernia; two images a patient."""
    rng = np.random.default_rng(seed)
    rows = []
    (folder / "images").mkdir(parents=True)
    for split, count in splits.items():
        for i in range(count):
            effusion, hernia = i % 3 == 0, i % 7 == 0
            pixels = rng.integers(60, 120, (32, 32), dtype=np.uint8)
            pixels[22:] += np.uint8(80 * effusion)
            pixels[:6] += np.uint8(80 * hernia)
            name = f"images/{split}{i}.png"
            Image.fromarray(pixels).save(folder / name)
            rows.append(
                {
                    **{"image": name, "text": "Chest.", "patient_id": f"{prefix}-{split}-{i // 2}", "split": split},
                    **{"view": "PA" if i % 4 < 2 else "AP", "sex": "F" if i % 2 else "M", "age": 20 + i % 60},
                    **{"No Finding": int(not effusion and not hernia), "Effusion": int(effusion)},
                    **{"Hernia": int(hernia)},
                }
            )
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gain")
    write_set(folder / "real", {"train": 60, "val": 42, "test": 84}, seed=1, prefix="r")
    write_set(folder / "made", {"train": 50}, seed=2, prefix="s")
    return folder


def flags(world: Path, out: Path, *more: str) -> list[str]:
    """The whole command; ``more`` may name a flag again: the last one counts."""
    given = ["--real", str(world / "real/manifest.csv"), "--synthetic", f"made={world / 'made/manifest.csv'}"]
    return [*given, "--out", str(out / "out"), "--work", str(out / "work"), *QUICK, *SMALL, *more]


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert GAIN.main(flags(world, folder, "--arms", "classic:40,synthetic-x1,synthetic-x5,real+x1,pretrain:40")) == 0
    return folder


def source(train: int = 40, *, name: str = "real", splits: tuple[str, ...] = ("train", "val", "test")) -> Source:
    """A set without pixels: two images a patient, every tenth image of the last finding."""
    n = train * len(splits)
    labels = np.zeros((n, 2), np.float32)
    labels[::3, 0], labels[::10, 1] = 1, 1
    patients = np.array([f"{name}{i // 2}" for i in range(n)])
    return Source(name, ("",) * n, labels, patients, np.repeat(splits, train), 32, Path(), "")


# ------------------------------------------------------------------------------------------------------------ arms


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_sees_the_same_number_of_images(name: str) -> None:
    recipe = Recipe(images=6400, batch_size=32)
    steps = sum(count for _, count in schedule(ARMS[name], 10, 30, recipe))
    assert steps == (100 if ARMS[name].share == 0.5 else 200)


def test_mixtures_hold_the_amounts_that_their_names_say() -> None:
    made = source(100, name="made", splits=("train",))
    counts = {name: len(synthetic_rows(made, ARMS[name], 20, seed=0, rare=(1,))) for name in ARMS if "+x" in name}
    assert counts == {
        f"{kind}+x{k}": round(float(k) * 20) for kind in ("real", "classic") for k in ("0.5", "1", "2", "5")
    }


def test_a_mixture_repeats_a_set_that_is_too_small_evenly() -> None:
    rows = synthetic_rows(source(30, splits=("train",)), ARMS["real+x5"], 20, seed=0, rare=())
    assert set(np.bincount(rows, minlength=30)) == {3, 4}


def test_synthetic_images_alone_are_never_repeated() -> None:
    rows = synthetic_rows(source(30, splits=("train",)), ARMS["synthetic-x5"], 20, seed=0, rare=())
    assert sorted(rows) == list(range(30))


def test_the_arm_of_rare_findings_takes_only_images_that_show_one() -> None:
    made = source(100, splits=("train",))
    rows = synthetic_rows(made, ARMS["rare"], 100, seed=0, rare=(1,))
    assert len(rows) == 10 and (made.labels[rows, 1] == 1).all()


def test_pretraining_sees_synthetic_images_first_and_real_ones_last() -> None:
    (first, one), (last, two) = schedule(ARMS["pretrain"], 10, 30, Recipe(images=320, batch_size=32))
    assert (set(first), set(last), one, two) == (set(range(10, 30)), set(range(10)), 5, 5)


def test_no_subset_holds_an_image_of_val_or_test() -> None:
    real = source()
    rows = real_subset(real, 40, seed=3)
    assert set(real.splits[rows]) == {"train"} and not set(real.patients[rows]) & set(
        real.patients[real.splits == "test"]
    )


def test_subsets_are_nested_and_keep_patients_together() -> None:
    real = source()
    small, large = real_subset(real, 10, seed=1), real_subset(real, 30, seed=1)
    assert (large[:10] == small).all() and len(np.unique(real.patients[small])) == 5


def test_seeds_draw_different_subsets() -> None:
    assert set(real_subset(source(), 10, seed=1)) != set(real_subset(source(), 10, seed=2))


def test_a_cut_subset_holds_so_many_positives_of_a_rare_finding() -> None:
    real = source()
    assert (real.labels[real_subset(real, 30, seed=0, rare=(1,), cut=2), 1] == 1).sum() == 2


def test_an_arm_may_name_its_set_and_its_sizes() -> None:
    runs = plan_runs(["real+x1@a:10", "pretrain@b"], {"a": 5, "b": 5}, (10, 20), seeds=1)
    assert [run.key for run in runs] == [
        *("real_n10_seed0", "real_n20_seed0", "real+x1@a_n10_seed0"),
        *("pretrain@b_n10_seed0", "pretrain@b_n20_seed0"),
    ]


def test_an_arm_may_name_a_cut_subset() -> None:
    runs = plan_runs(["rare@a:20-cut3"], {"a": 5}, (10, 20), seeds=1, cut=3, cut_sizes=(20,))
    assert [run.key for run in runs] == ["real_n20-cut3_seed0", "rare@a_n20-cut3_seed0"]


def test_synthetic_arms_of_the_same_images_are_trained_once() -> None:
    runs = plan_runs(["synthetic-x1", "synthetic-x5"], {"a": 100}, (20, 100), seeds=1)
    keys = {(run.arm, run.n): run.key for run in runs}
    assert (
        keys["synthetic-x5", 20] == keys["synthetic-x1", 100] == keys["synthetic-x5", 100] == "synthetic@a_m100_seed0"
    )


# -------------------------------------------------------------------------------------------------------- training


def test_unknown_labels_do_not_count_in_the_loss() -> None:
    logits, labels = torch.tensor([[0.3, 9.0]]), torch.tensor([[1.0, math.nan]])
    assert masked_loss(logits, labels).item() == pytest.approx(math.log1p(math.exp(-0.3)))


def test_classic_augmentation_never_flips() -> None:
    x = -torch.ones(64, 1, 32, 32)
    x[..., 20:28] = 1.0
    moved = classic(x, torch.Generator().manual_seed(0))
    assert (moved[..., 16:].mean((1, 2, 3)) > moved[..., :16].mean((1, 2, 3))).all()


def test_arms_of_a_seed_start_from_the_same_weights() -> None:
    first, second = (build_net(Recipe(), 3, seed=5).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("net", ["small", "densenet121"])
def test_networks_answer_with_a_logit_a_finding(net: str) -> None:
    assert build_net(Recipe(net=net), 3, seed=0).eval()(torch.zeros(2, 1, 64, 64)).shape == (2, 3)


# ------------------------------------------------------------------------------------------------------- statistics


def test_all_pairs_at_once_give_the_same_auroc() -> None:
    rng = np.random.default_rng(0)
    values, labels = rng.integers(0, 20, 200) / 20, (rng.random(200) < 0.2).astype(np.float64)
    weights = rng.multinomial(200, np.full(200, 1 / 200), size=50).astype(np.float64)
    expected = weighted_auroc(values, labels, weights)
    assert augmentation.pairwise_auroc(values, labels, weights) == pytest.approx(expected, abs=1e-12)


def test_two_of_three_seeds_give_the_variance_of_the_mean_of_three() -> None:
    values = np.array([0.1, 0.4, 0.9])
    draws = augmentation.seed_weights(3, 200_000) @ values
    assert draws.mean() == pytest.approx(values.mean(), abs=1e-3)
    assert draws.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.02)


def test_with_equal_seeds_the_interval_is_that_of_the_patients() -> None:
    draws = np.random.default_rng(0).normal(0.02, 0.005, 1000)
    found = augmentation.over_both(np.full(3, 0.02), np.tile(draws, (3, 1)))
    assert found["ci"][1] - 0.02 == pytest.approx(1.96 * draws.std(ddof=1), rel=1e-3)


@pytest.mark.parametrize(("of_seeds", "least"), [(0.3, 0.93), (1.0, 0.87)])
def test_intervals_over_patients_and_seeds_cover(of_seeds: float, least: float) -> None:
    """A true difference of 0; error of patients 1, of each of 3 seeds ``of_seeds`` times sqrt(3)."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(1000):
        patients = rng.normal()
        values = patients + rng.normal(0, of_seeds * math.sqrt(3), 3)
        draws = values[:, None] + rng.normal(0, 1, 200)
        low, high = augmentation.over_both(values, draws)["ci"]
        inside += low < 0 < high
    assert least < inside / 1000 < 0.98


def sample(rng: np.random.Generator, n: int = 400) -> augmentation.HeldOut:
    labels = (rng.random((n, 2)) < 0.3).astype(np.float64)
    sex = np.where(np.arange(n) % 2 == 0, "F", "M")
    weights = Bootstrap(300, 0).weights([f"p{i // 2}" for i in range(n)])
    return augmentation.HeldOut(labels, ("Effusion", "Hernia"), weights, {"sex": sex})


def scores(rng: np.random.Generator, labels: np.ndarray, *, signal: float, seeds: int = 3) -> np.ndarray:
    """Seeds agree in part, as networks trained alike do."""
    shared = rng.normal(size=labels.shape)
    noise = [0.9 * shared + 0.45 * rng.normal(size=labels.shape) for _ in range(seeds)]
    return np.stack([signal * labels + each for each in noise])


def gains(signal: float, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    drawn = sample(rng)
    predictions = {
        ("real", "n10"): scores(rng, drawn.labels, signal=0.7),
        ("real+x1", "n10"): scores(rng, drawn.labels, signal=signal),
    }
    return dict(augmentation.analyse(predictions, drawn, baseline="real")[1]["gain"])


def test_a_planted_gain_is_found() -> None:
    found = gains(2.0, seed=0)
    assert found["significant"] and found["ci"][0] > 0.05


def test_no_gain_is_seldom_called_one() -> None:
    assert sum(bool(gains(0.7, seed)["significant"]) for seed in range(20)) <= 3


def test_an_arm_that_equals_the_baseline_gains_exactly_nothing() -> None:
    rng = np.random.default_rng(0)
    drawn = sample(rng)
    same = scores(rng, drawn.labels, signal=1.0)
    entry = augmentation.analyse({("real", "n10"): same, ("twin", "n10"): same}, drawn, baseline="real")[1]
    assert (entry["gain"]["value"], entry["gain"]["ci"], entry["gain"]["p"]) == (0.0, (0.0, 0.0), 1.0)


def test_gaps_between_groups_in_closed_form() -> None:
    """Perfect for women (AUROC 1), useless for men (all scores equal, 0.5): a gap of 0.5, and none for the twin."""
    n = 200
    labels = np.tile([[0.0], [0.0], [1.0], [1.0]], (n // 4, 1))
    sex = np.where(np.arange(n) % 2 == 0, "F", "M")
    drawn = augmentation.HeldOut(labels, ("Effusion",), Bootstrap(50, 0).weights(range(n)), {"sex": sex})
    biased = np.where(sex == "F", labels[:, 0], 0.5)[None, :, None]
    fair = labels[None]
    entry = augmentation.analyse({("real", "n10"): fair, ("arm", "n10"): biased}, drawn, baseline="real")[1]
    found = entry["groups"]["sex"]
    assert {name: group["value"] for name, group in found["groups"].items()} == {"F": 1.0, "M": 0.5}
    assert (found["gap"]["value"], found["change"]["value"]) == (0.5, 0.5)


def test_age_bands_and_unknown_groups() -> None:
    table = pd.DataFrame({"age": [39.0, 40.0, 60.0, np.nan], "sex": ["F", "M", "", "F"], "view": ["PA"] * 4})
    assert list(augmentation.groups_of(table)["age"]) == ["under 40", "40 to 59", "60 and over", ""]


# ------------------------------------------------------------------------------------------------------- the script


def test_the_result_says_what_each_arm_was_trained_on(finished: Path) -> None:
    entries = json.loads((finished / "out/augmentation_gain.json").read_text())["details"]["entries"]
    amounts = {
        (e["arm"], e["subset"]): (e["real"], e["synthetic"], e["synthetic_distinct"], e["images_seen"]) for e in entries
    }
    assert amounts == {
        **{("real", "n20"): (20, 0, 0, 128), ("real", "n40"): (40, 0, 0, 128), ("classic", "n40"): (40, 0, 0, 128)},
        **{("synthetic-x1", "n20"): (0, 20, 20, 128), ("synthetic-x1", "n40"): (0, 40, 40, 128)},
        **{("synthetic-x5", "n20"): (0, 50, 50, 128), ("synthetic-x5", "n40"): (0, 50, 50, 128)},
        **{("real+x1", "n20"): (20, 20, 20, 128), ("real+x1", "n40"): (40, 40, 40, 128)},
        ("pretrain", "n40"): (40, 50, 50, 128),
    }


def test_plots_name_arms_in_words() -> None:
    words = [in_words(name) for name in ARMS]
    assert len(set(words)) == len(words) and not any("x1" in each or "  " in each for each in words)
    assert in_words("real+x1@g4") == "real + 1 × synthetic (g4)" and in_words("real") == "real"
    assert in_words("classic-half") == "real, half the training, classic augmentation"
    assert in_words("classic-synthetic-x5") == "5 × synthetic alone, classic augmentation"


def test_all_arms_are_in_the_table_and_the_plot_is_a_picture(finished: Path) -> None:
    text = (finished / "out/augmentation_gain.md").read_text()
    assert all(f"| {arm} |" in text for arm in ("real", "classic", "synthetic-x5", "real+x1", "pretrain"))
    assert "| synthetic-x5 | 50 | 50 |" in text
    with Image.open(finished / "out/augmentation_gain.png") as image:
        assert image.width > 1000


def test_a_killed_experiment_continues_to_the_same_result(
    finished: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = flags(world, tmp_path, "--arms", "classic:40,synthetic-x1,synthetic-x5,real+x1,pretrain:40")
    done: list[str] = []
    original = gain_runs.execute

    def execute(task: gain_runs.Task) -> None:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(task.run.key)
        original(task)

    monkeypatch.setattr(gain_runs, "execute", execute)
    with pytest.raises(KeyboardInterrupt):
        GAIN.main(command)

    def finish(task: gain_runs.Task) -> None:
        done.append(task.run.key)
        original(task)

    monkeypatch.setattr(gain_runs, "execute", finish)
    assert GAIN.main(command) == 0
    assert len(done) == len(set(done))
    first, second = (json.loads((path / "out/augmentation_gain.json").read_text()) for path in (finished, tmp_path))
    assert first["details"] == second["details"] and first["value"] == second["value"]


def test_other_settings_in_the_same_work_folder_are_refused(finished: Path, world: Path) -> None:
    with pytest.raises(errors.UserError, match=r"--work .* other settings: rate \(0.001 there, 0.01 now\)"):
        GAIN.main(flags(world, finished, "--arms", "real+x1", "--rate", "0.01"))


def test_a_dry_run_trains_nothing(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert GAIN.main(flags(world, tmp_path, "--arms", "real+x1", "--dry-run")) == 0
    assert "real+x1@made_n20_seed0" in capsys.readouterr().out
    assert not (tmp_path / "out").exists() and not (tmp_path / "work/runs").exists()


def test_a_synthetic_set_with_test_patients_is_refused(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "real/manifest.csv")
    stolen = table[table["split"] == "test"].assign(split="train")
    stolen["image"] = [str(world / "real" / name) for name in stolen["image"]]
    stolen.to_csv(tmp_path / "stolen.csv", index=False)
    with pytest.raises(errors.UserError, match=r"--synthetic .*val or test split"):
        GAIN.main(flags(world, tmp_path, "--synthetic", str(tmp_path / "stolen.csv")))


def test_a_synthetic_set_with_test_pictures_under_other_names_is_refused(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "real/manifest.csv")
    stolen = table[table["split"] == "test"].assign(split="train")
    stolen["image"] = [str(world / "real" / name) for name in stolen["image"]]
    stolen["patient_id"] = "nobody"
    stolen.to_csv(tmp_path / "stolen.csv", index=False)
    with pytest.raises(errors.UserError, match=r"--synthetic .*images of --real's val or test split"):
        GAIN.main(flags(world, tmp_path, "--synthetic", str(tmp_path / "stolen.csv")))


def test_a_generator_that_saw_test_patients_is_refused(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "real/manifest.csv").assign(split="train")
    table["image"] = [str(world / "real" / name) for name in table["image"]]
    table.to_csv(tmp_path / "all.csv", index=False)
    with pytest.raises(errors.UserError, match=r"--generator .*val or test split"):
        GAIN.main(flags(world, tmp_path, "--generator", str(tmp_path / "all.csv")))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--arms", "real+x3"), r"--arms real\+x3 does not exist"),
        (("--arms", "real+x1@other"), "no synthetic set other"),
        (("--arms", "real+x1:30"), "30 is not among --sizes"),
        (("--arms", "real"), "none to compare"),
        (("--sizes", "20,many"), "--sizes.*many"),
        (("--sizes", "20,4000"), "--sizes 4000: the train split of --real has 60 images"),
        (("--rare", "Gout"), "--rare Gout: not among"),
        (("--size", "50"), "multiple of 32"),
        (("--net", "small", "--weights", "xrv"), "--weights xrv: --net small takes none"),
        (("--min-positive", "1000"), "no finding has 1000 positive"),
        (("--primary", "pretrain", "--arms", "real+x1"), "--primary pretrain is not among"),
        (("--seeds", "0"), "--seeds"),
        (("--table-only",), "--table-only: .*does not exist"),
    ],
)
def test_bad_input_is_told_in_one_sentence(world: Path, tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    with pytest.raises(errors.UserError, match=said) as caught:
        GAIN.main(flags(world, tmp_path, *more))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_processes_side_by_side_change_nothing(finished: Path, world: Path, tmp_path: Path) -> None:
    command = flags(world, tmp_path, "--arms", "classic:40,synthetic-x1,synthetic-x5,real+x1,pretrain:40")
    assert GAIN.main([*command, "--jobs", "2"]) == 0
    first, second = (json.loads((path / "out/augmentation_gain.json").read_text()) for path in (finished, tmp_path))
    assert first["details"] == second["details"]


def test_tuning_reads_no_test_image_and_is_told_in_the_result(finished: Path, world: Path, tmp_path: Path) -> None:
    shown = pd.read_csv(world / "real/manifest.csv")
    shown["image"] = [str(world / "real" / name) for name in shown["image"]]
    shown.loc[shown["split"] == "test", "image"] = "missing.png"
    shown.to_csv(tmp_path / "manifest.csv", index=False)
    command = ["--real", str(tmp_path / "manifest.csv"), "--out", str(tmp_path / "tuning.json"), "--min-positive", "2"]
    tried = "n=30,size=32,images=64,batch_size=16,validations=1"
    assert load_script("eval/augmentation_tuning.py").main([*command, "--work", str(tmp_path), "--try", tried]) == 0
    found = GAIN.tuning(tmp_path / "tuning.json")
    assert found["test"] == "not read" and found["runs"][0]["setting"]["images"] == 64
