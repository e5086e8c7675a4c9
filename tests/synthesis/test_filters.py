"""roentgen.synthesis.filters: what is kept, what is not, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from roentgen.data.manifest import read_manifest
from roentgen.data.near import differing_bits
from roentgen.errors import UserError
from roentgen.images import read_image, resize_center_crop
from roentgen.metrics.memorisation import damage
from roentgen.metrics.neighbours import thumbnails
from roentgen.models.classifier import inside_part
from roentgen.prompts import Labels, labels_from_row
from roentgen.synthesis.filters import Filter, load_filter, load_repeats
from roentgen.synthesis.filters.appearance import MEASURES, fit_appearance, texture
from roentgen.synthesis.filters.copies import Copies, copies_rule, nearest_view, thumbnail_views
from roentgen.synthesis.filters.demographics import Age, Choice, heads, ridge
from roentgen.synthesis.filters.prompt import Prompt, prompt_rules
from roentgen.synthesis.filters.real import Real, real_rule
from roentgen.synthesis.filters.repeats import BITS, LEAST_BITS, Repeats, most_bits, pair_counts

SAMPLE = Path(__file__).parents[2] / "data" / "sample" / "manifest.csv"
EVERYTHING = ("prompt", "view", "sex", "age", "real", "copies")


class Seen:
    """Filter inputs of which each output is given."""

    def __init__(self, **given: np.ndarray) -> None:
        self.__dict__.update(given)


@pytest.fixture(scope="module")
def real() -> tuple[np.ndarray, list[Labels]]:
    """Images of the sample (40, 128, 128) with their labels."""
    table = read_manifest(SAMPLE, allow_empty_text=True).iloc[:40]
    images = np.stack([resize_center_crop(read_image(path), 128) for path in table["image"]])
    return images, [labels_from_row(row) for row in table.to_dict("records")]


@pytest.fixture(scope="module")
def everything() -> Filter:
    return load_filter(EVERYTHING)


def stages_of(filter: Filter, images: Sequence[np.ndarray], labels: Sequence[Labels] | None = None) -> list[str]:
    asked = [Labels()] * len(images) if labels is None else labels
    return [verdict.stage for verdict in filter.judge(np.stack(images), asked)]


# ---------------------------------------------------------------------------------------------- the filter


def test_a_black_or_grey_image_never_passes_whatever_the_stages() -> None:
    images = np.stack([np.zeros((32, 32)), np.full((32, 32), 200), np.arange(1024).reshape(32, 32) % 256])
    assert stages_of(load_filter(()), list(images.astype(np.uint8))) == ["broken", "broken", ""]


def test_stages_look_in_their_own_order_whatever_the_callers() -> None:
    assert load_filter(("copies", "repeats", "prompt", "real")).stages == ("broken", "prompt", "real", "copies")


def test_an_unknown_stage_is_one_sentence_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"--filter beauty: unknown stage; choose from prompt, .* repeats"):
        load_filter(("real", "beauty"))


def test_most_real_images_pass_every_stage(everything: Filter, real: tuple[np.ndarray, list[Labels]]) -> None:
    stages = stages_of(load_filter(("real",)), list(real[0]))
    assert stages.count("") >= 38
    verdicts = everything.judge(*real)
    assert {name for verdict in verdicts for name in verdict.scores} == set(EVERYTHING)


def test_noise_does_not_look_like_a_chest_radiograph() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (128, 128)).astype(np.uint8) for _ in range(4)]
    assert stages_of(load_filter(("real",)), images) == ["real"] * 4


def test_later_stages_do_not_look_at_what_is_rejected() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 128, 128)).astype(np.uint8)
    (verdict,) = load_filter(("real", "copies")).judge(noise, [Labels()])
    assert verdict.stage == "real" and set(verdict.scores) == {"real"}


def test_a_verdict_does_not_depend_on_what_is_judged_with_it(
    everything: Filter, real: tuple[np.ndarray, list[Labels]]
) -> None:
    images, labels = real[0][:12], real[1][:12]
    together = everything.judge(images, labels)
    apart = [everything.judge(images[i : i + 1], labels[i : i + 1])[0] for i in range(12)]
    assert together == apart
    backwards = everything.judge(images[::-1], labels[::-1])
    assert together == backwards[::-1]


def test_images_of_another_size_are_judged_too(everything: Filter, real: tuple[np.ndarray, list[Labels]]) -> None:
    large = np.repeat(np.repeat(real[0][:4], 2, axis=1), 2, axis=2)
    for a, b in zip(everything.judge(real[0][:4], real[1][:4]), everything.judge(large, real[1][:4]), strict=True):
        shared = a.scores.keys() & b.scores.keys()  # a score at its threshold may end the one sooner than the other
        assert {"prompt", "view", "sex"} <= shared
        assert all(b.scores[name] == pytest.approx(a.scores[name], rel=0.05, abs=0.1) for name in shared)


def test_the_hash_changes_with_stages_and_with_a_threshold(everything: Filter) -> None:
    assert load_filter(EVERYTHING).hash == everything.hash
    assert load_filter(EVERYTHING[:-1]).hash != everything.hash
    assert load_filter(("repeats",)).hash != load_filter(()).hash  # its threshold is of the reference, too
    rule = {"quantile": 0.01, "least": everything.looking["copies"].rule["least"] + 1}
    other = {**everything.looking, "copies": replace(everything.looking["copies"], rule=rule)}
    assert replace(everything, looking=other).hash != everything.hash


# ---------------------------------------------------------------------------------------------- the stages


RULES = {
    "Effusion": {"judged": True, "threshold": 0.5, "most_if_normal": 0.8, "sides": {"judged": True, "least": 0.0}},
    "Mass": {"judged": False, "why": "AUROC 0.5"},
    "No Finding": {"judged": True, "threshold": 0.5},
}


@pytest.mark.parametrize(
    ("labels", "probabilities", "sides", "kept"),
    [
        (Labels(("Effusion",)), (0.6, 0, 0), (0.5, 0.5), True),
        (Labels(("Effusion",)), (0.4, 0, 0), (0.5, 0.5), False),
        (Labels(("Effusion",), {"Effusion": "left"}), (0.6, 0, 0), (0.2, 0.7), True),
        (Labels(("Effusion",), {"Effusion": "left"}), (0.6, 0, 0), (0.7, 0.2), False),
        (Labels(("Effusion",), {"Effusion": "right"}), (0.6, 0, 0), (0.7, 0.2), True),
        (Labels(("Effusion",), {"Effusion": "bilateral"}), (0.6, 0, 0), (0.7, 0.2), True),
        (Labels(("Mass",)), (0, 0, 0), (0.5, 0.5), True),  # not judged
        (Labels(("Effusion", "Mass")), (0.4, 0.9, 0), (0.5, 0.5), False),
        (Labels(("No Finding",)), (0.7, 0, 0.6), (0.5, 0.5), True),
        (Labels(("No Finding",)), (0.9, 0, 0.6), (0.5, 0.5), False),  # normal, and an effusion above its highest
        (Labels(("No Finding",)), (0.1, 0, 0.4), (0.5, 0.5), False),
        (Labels(), (0, 0, 0), (0.5, 0.5), True),
    ],
)
def test_the_prompt_stage_asks_whether_the_classifier_agrees(
    labels: Labels, probabilities: tuple[float, ...], sides: tuple[float, float], kept: bool
) -> None:
    stage = Prompt(RULES, ["Effusion", "Mass", "No Finding"], 0.85)
    inputs = Seen(outputs={"probabilities": np.array([probabilities]), "sides": np.array([[sides] * 3])})
    assert stage.keeps(stage.scores(inputs, [labels])).tolist() == [kept]  # type: ignore[arg-type]


def test_the_view_stage_accepts_by_the_value_asked_for() -> None:
    stage = Choice("view", ("PA", "AP"), np.array([1.0, 0.0]), {"threshold": {"PA": -0.5, "AP": 0.5}})
    inputs = Seen(coordinates=np.array([[-1.0], [0.0], [1.0]]))

    def kept(view: str | None) -> list[bool]:
        return stage.keeps(stage.scores(inputs, [Labels(view=view)] * 3)).tolist()  # type: ignore[arg-type]

    assert kept("PA") == [True, False, False]
    assert kept("AP") == [False, False, True]
    assert kept(None) == [True, True, True]


def test_the_age_stage_rejects_what_is_too_far_from_the_age_asked_for() -> None:
    stage = Age(np.array([10.0, 50.0]), {"most_years": 20.0})
    inputs = Seen(coordinates=np.array([[0.0], [3.0], [3.0]]))
    asked = [Labels(age=60), Labels(age=50), Labels()]
    assert stage.keeps(stage.scores(inputs, asked)).tolist() == [True, False, True]  # type: ignore[arg-type]


def test_one_distance_beyond_its_threshold_is_enough_not_to_look_real() -> None:
    stage = Real({"quantile": 0.995, "most": dict.fromkeys(MEASURES, 2.0)})
    near = np.array([1.0, 1.0])
    inputs = Seen(measures={**dict.fromkeys(MEASURES, near), "texture": np.array([1.0, 2.1])})
    assert stage.keeps(stage.scores(inputs, [Labels()] * 2)).tolist() == [True, False]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(real: tuple[np.ndarray, list[Labels]]) -> Copies:
    """The stage of the first 20 images; the others are of other patients."""
    views = thumbnail_views(np.rint(thumbnails(real[0][:20]) * 255).astype(np.uint8))
    return Copies(views, copies_rule(nearest_view(real[0][20:], views), 0.05))


COPIES = {
    "exact": lambda image: image,
    "cropped": lambda image: damage.crop(image, 0.9),
    "blurred": lambda image: damage.blur(image, 2.0),
    "brighter": lambda image: damage.brightness(image, 20),
    "mirrored": damage.flip,
}


@pytest.mark.parametrize("kind", COPIES)
def test_planted_copies_are_rejected(trained: Copies, real: tuple[np.ndarray, list[Labels]], kind: str) -> None:
    copies = np.stack([COPIES[kind](image) for image in real[0][:20]])
    kept = trained.keeps(trained.scores(Seen(pixels=copies), [Labels()] * 20))  # type: ignore[arg-type]
    assert kept.sum() <= 1


def test_unseen_images_are_no_copies(trained: Copies, real: tuple[np.ndarray, list[Labels]]) -> None:
    kept = trained.keeps(trained.scores(Seen(pixels=real[0][20:]), [Labels()] * 20))  # type: ignore[arg-type]
    assert kept.sum() == 19  # the threshold is their 5 % quantile


def test_the_nearest_view_does_not_depend_on_the_block(real: tuple[np.ndarray, list[Labels]]) -> None:
    views = thumbnail_views(np.rint(thumbnails(real[0][:20]) * 255).astype(np.uint8))
    whole = nearest_view(real[0][20:], views)
    np.testing.assert_allclose(nearest_view(real[0][20:], views, block=7), whole, rtol=1e-12)


# ---------------------------------------------------------------------------------------------- calibration


def uniform_table() -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """100 images with scores 0.505 ... 0.995 if positive, half as much if negative; the left ones lean to the left."""
    truth = np.arange(100) % 2
    scores = np.where(truth == 1, 0.5, 0.25) * (1 + np.arange(100) / 100)
    side = np.where(np.arange(100) % 4 == 1, "left", "right")
    table = pd.DataFrame({"Effusion": truth, "Effusion_side": np.where(truth == 1, side, ""), "No Finding": 1 - truth})
    sides = np.where(side[:, None] == "left", [[0.2, 0.8]], [[0.8, 0.2]])
    return table, {
        "probabilities": np.stack([scores, 1 - scores], axis=1).astype(np.float32),
        "sides": np.stack([sides, sides], axis=1).astype(np.float32),
    }


def rules_of(table: pd.DataFrame, outputs: dict[str, np.ndarray], **changed: float) -> dict[str, dict]:
    usual = {"sensitivity": 0.8, "specificity": 0.9, "least_auroc": 0.65, "least_cases": 10, **changed}
    return prompt_rules(table, outputs, ["Effusion", "No Finding"], **usual)["findings"]  # type: ignore[arg-type]


def test_prompt_thresholds_are_the_quantiles_of_those_that_have_it() -> None:
    table, outputs = uniform_table()
    rule = rules_of(table, outputs)["Effusion"]
    positive = outputs["probabilities"][table["Effusion"] == 1, 0].astype(np.float64)
    assert rule["judged"] and rule["auroc"] == 1.0
    assert rule["threshold"] == pytest.approx(np.quantile(positive, 0.2))
    assert (positive >= rule["threshold"]).mean() == pytest.approx(0.8)
    normal = outputs["probabilities"][table["No Finding"] == 1, 0].astype(np.float64)
    assert rule["most_if_normal"] == pytest.approx(np.quantile(normal, 0.9))
    assert rule["sides"] == {"judged": True, "images": 50, "accuracy": 1.0, "least": 0.0}


def test_a_finding_that_the_classifier_cannot_tell_is_not_judged() -> None:
    table, outputs = uniform_table()
    few = rules_of(table, outputs, least_cases=51)["Effusion"]
    assert not few["judged"] and few["why"] == "only 50 real images with it and 50 without"
    outputs["probabilities"][:, 0] = 0.5
    blind = rules_of(table, outputs)["Effusion"]
    assert not blind["judged"] and "AUROC 0.50" in blind["why"]


def test_sides_that_are_guessed_are_not_judged() -> None:
    table, outputs = uniform_table()
    outputs["sides"][::8] = outputs["sides"][::8][..., ::-1]
    outputs["sides"][1::8] = outputs["sides"][1::8][..., ::-1]
    assert not rules_of(table, outputs)["Effusion"]["sides"]["judged"]


def test_a_finding_whose_negatives_are_of_other_sources_is_told() -> None:
    table, outputs = uniform_table()
    table["source"] = np.where(table["Effusion"] == 1, "one", "other")
    assert rules_of(table, outputs)["Effusion"]["other_sources"]
    table["source"] = "one"
    assert "other_sources" not in rules_of(table, outputs)["Effusion"]


def test_real_and_copies_thresholds_are_quantiles() -> None:
    values = np.arange(1001.0)
    rule = real_rule(dict.fromkeys(MEASURES, values), 0.98)
    assert rule["most"] == pytest.approx(dict.fromkeys(MEASURES, 995.0))  # 2 % shared among four measures
    assert copies_rule(values, 0.01)["least"] == pytest.approx(10.0)


def test_a_part_of_the_patients_is_a_share_by_hash() -> None:
    names = [f"p{number}" for number in range(2000)]
    inside = inside_part(names, "0.4-1", "--part")
    assert 0.56 < inside.mean() < 0.64
    assert inside_part(names, "0-1", "--part").all()
    assert (inside ^ inside_part(names, "0-0.4", "--part")).all()
    for wrong in ("half", "0.5-0.2", "0-2"):
        with pytest.raises(UserError, match="--part"):
            inside_part(names, wrong, "--part")


def test_a_predictor_that_is_no_good_is_not_used() -> None:
    rng = np.random.default_rng(0)
    x, held = rng.normal(size=(400, 5)), rng.normal(size=(400, 5))

    def table(points: np.ndarray) -> pd.DataFrame:
        sex = np.where(rng.random(400) < 0.5, "M", "F")
        return pd.DataFrame({"view": np.where(points[:, 0] > 0, "AP", "PA"), "sex": sex, "age": 50 + 10 * points[:, 1]})

    arrays, rules = heads(x, table(x), held, table(held), sensitivity=0.9, least_cases=20)
    assert set(arrays) == {"head_view", "head_age"}
    assert "why" in rules["sex"] and rules["view"]["auroc"] > 0.95 and rules["age"]["correlation"] > 0.95


def test_ridge_without_penalty_is_least_squares() -> None:
    x = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_allclose(ridge(x, x @ [1.0, 2.0, 3.0] + 4, 0.0), [1, 2, 3, 4], atol=1e-9)


def test_texture_has_the_energy_of_a_checkerboard_at_its_own_scale() -> None:
    fine = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    coarse = np.repeat(np.repeat(fine[:32, :32], 2, axis=0), 2, axis=1)
    a, b = texture(np.stack([fine, coarse]))
    assert a[2] == pytest.approx(np.log10(0.25 + 1e-6)) and a[3] == pytest.approx(-6)
    assert b[2] == pytest.approx(-6) and b[3] == pytest.approx(np.log10(0.25 + 1e-6))


def test_an_outlier_is_farther_than_what_was_fitted(real: tuple[np.ndarray, list[Labels]]) -> None:
    features = np.random.default_rng(0).normal(size=(40, 12))
    found = fit_appearance(features, real[0])
    usual = found.measure(features, real[0])
    odd = found.measure(features[:1] + 20, 255 - real[0][:1, ::-1])
    assert all(odd[name][0] > np.median(usual[name]) for name in MEASURES)
    assert odd["features"][0] > 2 * usual["features"].max()


# ------------------------------------------------------------------------------------------------- repeats


def hashes(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, BITS // 8)).astype(np.uint8)


def changed(packed: np.ndarray, bits: int) -> np.ndarray:
    """The first ``bits`` bits turned over."""
    turned = np.unpackbits(packed)
    turned[:bits] ^= 1
    return np.packbits(turned)


def brute_force(packed: np.ndarray, most: int) -> set[int]:
    bits, kept, found = np.unpackbits(packed, axis=1), [], set()
    for row in range(len(bits)):
        if any((bits[row] != bits[earlier]).sum() <= most for earlier in kept):
            found.add(row)
        else:
            kept.append(row)
    return found


def in_blocks(packed: np.ndarray, size: int) -> list[tuple[list[int], np.ndarray]]:
    return [(list(range(a, min(a + size, len(packed)))), packed[a : a + size]) for a in range(0, len(packed), size)]


@pytest.mark.parametrize("size", [1, 7, 64, 300])
def test_repeats_are_those_of_a_search_by_hand_in_blocks_of_any_size(size: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = hashes(60)
    packed = np.stack([changed(base[rng.integers(60)], int(rng.integers(0, 12))) for _ in range(300)])
    wanted = brute_force(packed, 5)
    assert 50 < len(wanted) < 250
    assert Repeats(5, 300)(in_blocks(packed, size), tmp_path) == wanted


def test_in_a_chain_only_what_is_near_a_kept_one_goes(tmp_path: Path) -> None:
    first = hashes(1)[0]
    chain = np.stack([changed(first, bits) for bits in (0, 4, 8, 12)])
    assert Repeats(4, 4)(in_blocks(chain, 4), tmp_path) == {1, 3}
    assert Repeats(4, 4)(in_blocks(chain, 1), tmp_path) == {1, 3}


def test_repeats_are_named_by_their_slots(tmp_path: Path) -> None:
    first = hashes(1)
    assert Repeats(0, 9)([([3, 8], np.concatenate([hashes(1, 5), first])), ([11], first)], tmp_path) == {11}


def test_repeats_leave_nothing_in_the_scratch_folder(tmp_path: Path) -> None:
    Repeats(5, 10)(in_blocks(hashes(10), 5), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_memory_of_the_search_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    import tracemalloc

    def peak(blocks: int) -> int:
        tracemalloc.start()
        Repeats(19, blocks * 200)(((range(i * 200, i * 200 + 200), hashes(200, i)) for i in range(blocks)), tmp_path)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    # 4,096 kept hashes are compared at once: from there on nothing grows.
    assert peak(60) < 1.2 * peak(24)


def test_differing_bits_are_counted() -> None:
    a, b = hashes(5), hashes(7, 1)
    wanted = (np.unpackbits(a, axis=1)[:, None] != np.unpackbits(b, axis=1)).sum(axis=2)
    assert (differing_bits(a, b) == wanted).all()


def test_pairs_of_one_patient_do_not_count() -> None:
    packed = np.concatenate([hashes(3), hashes(3)[:1]])
    assert pair_counts(packed, list("abcd")).sum() == 6
    assert pair_counts(packed, list("abcd"))[0] == 1
    assert pair_counts(packed, list("abca"))[0] == 0


def test_the_threshold_of_repeats_falls_with_the_rows() -> None:
    counts = np.zeros(BITS + 1, dtype=np.int64)
    counts[10], counts[20], counts[128] = 1, 9, 9990  # of 10,000 pairs
    # 11 rows: 10 chances each, so at most 1 % / 10 of the pairs = 10 of them may be as near.
    assert most_bits(counts, plan_rows=11) == 127
    assert most_bits(counts, plan_rows=12) == 19
    assert most_bits(counts, plan_rows=101) == 19
    assert most_bits(counts, plan_rows=102) == 9
    assert most_bits(counts, plan_rows=10**9) == 9
    counts[0] = 1
    assert most_bits(counts, plan_rows=10**9) == LEAST_BITS


def test_the_filter_that_ships_gives_a_threshold_of_repeats() -> None:
    loaded = load_filter(("repeats",))
    small, large = (load_repeats(loaded, plan_rows=rows).most_bits for rows in (20, 100_000))
    assert LEAST_BITS < large < small < 64
    with pytest.raises(ValueError, match="repeats"):
        load_repeats(load_filter(()), plan_rows=20)
