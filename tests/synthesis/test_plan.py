"""Plans: what every row is, that counts and margins hold, and which sentence a bad plan gives."""

from __future__ import annotations

import csv
import itertools
import random
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from roentgen.prompts import FINDINGS, NO_FINDING, Labels, parse, vocabulary
from roentgen.synthesis.describe import describe, unknown_demographics
from roentgen.synthesis.plan import AGE_BANDS, Plan, PlannedRows, Row, absent_beside, shuffled, write_rows
from roentgen.synthesis.plan_file import read_plan
from roentgen.synthesis.sources import DEFAULT_FINDINGS, resolve_plan

ROOT = Path(__file__).parents[2]
NAMES = [name for name in FINDINGS if name != NO_FINDING]
SIDED = [name for name in NAMES if FINDINGS[name].can_have_side]


def random_group(rng: random.Random, number: int) -> dict[str, Any]:
    findings = [NO_FINDING] if rng.random() < 0.2 else rng.sample(NAMES, rng.randint(1, 3))
    sides = {name: rng.choice(("left", "right", "bilateral")) for name in findings if name in SIDED}
    group: dict[str, Any] = {"name": f"g{number}", "findings": findings, "count": rng.randint(1, 40), "sides": sides}
    if rng.random() < 0.4:
        group["view"] = rng.choice(("PA", "AP"))
    if rng.random() < 0.4:
        group["sex"] = rng.choice(("M", "F"))
    if rng.random() < 0.5:
        first = rng.randint(1, 80)
        group["age"] = rng.choice((first, [first, first + rng.randint(0, 20)]))
    return group


def random_plans(n: int = 25) -> list[Plan]:
    """Plans of groups and of per-finding counts, small and uneven."""
    plans = []
    for seed in range(n):
        rng = random.Random(seed)
        demographics = rng.choice(("balanced", "none", "sex,age", ["view"]))
        if rng.random() < 0.3:
            source: dict[str, Any] = {"per_finding": {name: rng.randint(1, 60) for name in rng.sample(NAMES, 5)}}
        else:
            source = {"groups": [random_group(rng, number) for number in range(rng.randint(1, 9))]}
        plans.append(resolve_plan(**source, demographics=demographics, seed=rng.randint(0, 10**9)))
    return plans


def rows_of(plan: Plan) -> list[Row]:
    return [plan.row(slot) for slot in range(len(plan))]


def band(labels: Labels) -> int | None:
    return next((n for n, (first, last) in enumerate(AGE_BANDS) if labels.age and first <= labels.age <= last), None)


def spread(values: list[Any], choices: tuple[Any, ...]) -> int:
    """How far the counts of the choices are apart; every value is one of them."""
    counts = Counter(values)
    assert set(counts) <= set(choices)
    return max(counts[choice] for choice in choices) - min(counts[choice] for choice in choices)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 train rows with uneven labels, and a test row that must not count; no image file exists."""
    rng = random.Random(5)
    path = tmp_path_factory.mktemp("real") / "m.csv"
    findings = ("Effusion", "Nodule", "Edema", "Hernia")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "image",
                "text",
                "patient_id",
                "split",
                "view",
                "sex",
                "age",
                NO_FINDING,
                *findings,
                "Effusion_side",
                "Mass",
            ]
        )
        for number in range(300):
            flags = [int(rng.random() < rate) for rate in (0.4, 0.15, 0.05, 0.0)]
            side = rng.choice(("left", "right", "bilateral", "")) if flags[0] else ""
            cells = [
                rng.choice(("PA", "PA", "AP", "")),
                rng.choice(("M", "F", "F")),
                rng.choice((0.4, 7, 25, 39.5, 85, "")),
            ]
            normal = "" if rng.random() < 0.1 else int(not any(flags))
            nodule = "" if rng.random() < 0.3 and not flags[1] else flags[1]
            writer.writerow(
                [f"{number}.png", "", number, "train", *cells, normal, flags[0], nodule, *flags[2:], side, ""]
            )
        writer.writerow(["x.png", "", "x", "test", "AP", "M", 50, 0, 1, 1, 1, 1, "left", 1])
    return path


def real_rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == "train"]


# --- rows ------------------------------------------------------------------------------------------------


def test_a_row_is_the_same_whatever_was_asked_before() -> None:
    for plan, again in zip(random_plans(10), random_plans(10), strict=True):
        forwards = rows_of(plan)
        order = list(range(len(plan)))
        random.Random(1).shuffle(order)
        assert all(again.row(slot) == forwards[slot] for slot in order)
        assert [row.slot for row in forwards] == list(range(len(plan)))


def test_counts_by_group_are_those_asked_for() -> None:
    for plan in random_plans():
        rows = rows_of(plan)
        assert Counter(row.group for row in rows) == plan.counts()
        assert sum(plan.counts().values()) == len(plan) == len(rows)
        found = Counter(name for row in rows for name in row.labels.findings)
        assert {name: found[name] for name in plan.findings} == plan.finding_counts()
        assert set(found) == set(plan.findings)
        for slot in (-1, len(plan)):
            with pytest.raises(IndexError):
                plan.row(slot)


def test_every_beginning_of_the_set_has_the_groups_evenly() -> None:
    for plan in random_plans(10):
        seen: Counter[str] = Counter()
        for row in rows_of(plan):
            seen[row.group] += 1
            # A group may be behind another only where it has no more rows to give.
            behind = [name for name, count in plan.counts().items() if seen[name] < min(count, max(seen.values()) - 1)]
            assert not behind


def test_prompts_say_the_labels() -> None:
    texts = set()
    for plan in random_plans():
        for row in rows_of(plan):
            read = parse(row.prompt)
            assert set(read.findings) == set(row.labels.findings), row.prompt
            assert (read.sides, read.view, read.sex, read.age) == (
                row.labels.sides,
                row.labels.view,
                row.labels.sex,
                row.labels.age,
            ), row.prompt
            assert not row.absent & set(row.labels.findings)
            texts.add(row.prompt)
    assert len(texts) > 1000  # composed for each row anew


def test_sex_view_and_age_are_within_one_of_even_in_each_group_at_any_count() -> None:
    plan = resolve_plan(per_finding={"Effusion": 37, "Edema": 8, "Nodule": 25})
    for finding, count in plan.counts().items():
        labels = [row.labels for row in rows_of(plan) if row.group == finding]
        for n in range(1, count + 1):
            part = labels[:n]
            assert spread([one.sex for one in part], ("M", "F")) <= 1
            assert spread([one.view for one in part], ("PA", "AP")) <= 1
            assert spread([band(one) for one in part], (0, 1, 2)) <= 1
        cells = [(one.sex, one.view, band(one)) for one in labels]
        assert spread(cells, tuple(itertools.product("MF", ("PA", "AP"), range(3)))) <= 1


@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_images_of_many_findings_are_balanced_as_a_whole(count: int) -> None:
    labels = [row.labels for row in rows_of(resolve_plan(per_finding=count))]
    assert spread([one.sex for one in labels], ("M", "F")) <= 1
    assert spread([one.view for one in labels], ("PA", "AP")) <= 1
    assert spread([band(one) for one in labels], (0, 1, 2)) <= 1


def test_ages_fill_their_range_and_fixed_attributes_stay() -> None:
    group = {"findings": ["Effusion"], "age": [40, 43], "sex": "F", "count": 400}
    labels = [row.labels for row in rows_of(resolve_plan(groups=[group]))]
    ages = Counter(one.age for one in labels)
    assert set(ages) == {40, 41, 42, 43} and min(ages.values()) > 60
    assert {one.sex for one in labels} == {"F"} and spread([one.view for one in labels], ("PA", "AP")) == 0
    newborn = resolve_plan(groups=[{"findings": "Effusion", "age": 0, "count": 3}])
    assert {row.labels.age for row in rows_of(newborn)} == {0}
    assert {row.labels.sex for row in rows_of(newborn)} == {"M", "F"}


def test_none_leaves_the_patient_out() -> None:
    plan = resolve_plan(per_finding=5, demographics="none")
    assert all((row.labels.sex, row.labels.view, row.labels.age) == (None,) * 3 for row in rows_of(plan))
    assert all(parse(row.prompt).age is None for row in rows_of(plan))


def test_the_default_findings_are_those_of_nih_that_the_shipped_classifier_judges() -> None:
    import json

    judged = json.loads((ROOT / "roentgen/models/classifier/config.json").read_text())["findings"]
    assert set(DEFAULT_FINDINGS) <= set(judged) and len(DEFAULT_FINDINGS) == 14
    assert resolve_plan(per_finding=2).findings == DEFAULT_FINDINGS


def test_what_a_finding_may_include_stays_unknown() -> None:
    plan = resolve_plan(per_finding={"Effusion": 1, "COVID-19": 1, "Pneumonia": 1, "Lung Opacity": 1, NO_FINDING: 1})
    absent = {row.group: row.absent for row in rows_of(plan)}
    assert absent["Effusion"] == set(plan.findings) - {"Effusion"}
    assert absent["COVID-19"] == {"Effusion", NO_FINDING}  # it is a pneumonia and an opacity
    assert absent["Pneumonia"] == {"Effusion", NO_FINDING}
    assert absent["Lung Opacity"] == {"Effusion", NO_FINDING}
    assert absent[NO_FINDING] == set(plan.findings) - {NO_FINDING}
    assert absent_beside(["Bacterial Pneumonia"], ["Viral Pneumonia", "Pneumonia"]) == {"Viral Pneumonia"}


def test_seeds_never_collide() -> None:
    for tries, seed in ((1, 0), (3, 17), (7, 10**12)):
        plan = resolve_plan(per_finding=9, seed=seed, max_tries=tries)
        seeds = [plan.seed_of(slot, attempt) for slot in range(len(plan)) for attempt in range(tries)]
        assert seeds == list(range(seed, seed + len(plan) * tries))
        with pytest.raises(ValueError):
            plan.seed_of(0, tries)


class CallCount:
    """A profiler that counts calls: what tells work from work on any machine."""

    count = 0

    def __call__(self, frame: object, event: str, argument: object) -> None:
        self.count += event in ("call", "c_call")


def test_a_million_rows_cost_neither_time_nor_memory() -> None:
    tracemalloc.start()
    calls = CallCount()
    sys.setprofile(calls)
    plan = resolve_plan(per_finding={"Effusion": 400_000, "Edema": 600_000, "Nodule": 1})
    row = plan.row(999_999)
    for slot in range(0, len(plan), 10_000):
        plan.row(slot)
    sys.setprofile(None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(plan) == 1_000_001 and row.labels.findings == ("Edema",)
    assert calls.count < 200_000 and peak < 3e6, (calls.count, peak)  # a call a row would be a million


@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 100, 1000])
def test_shuffled_is_a_permutation_that_the_key_changes(size: int) -> None:
    orders = {tuple(shuffled(place, size, key=str(key)) for place in range(size)) for key in range(20)}
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert size < 15 or len(orders) == 20


def test_the_table_has_the_rows_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    for number, plan in enumerate(random_plans(8)):
        for name in ("one", "two"):
            write_rows(plan, tmp_path / name)
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
        table = pd.read_parquet(tmp_path / "one")
        assert list(table["prompt"]) == [row.prompt for row in rows_of(plan)]
        assert list(table["seed"]) == [plan.seed_of(slot, 0) for slot in range(len(plan))]
        read = PlannedRows(tmp_path / "one")
        shards = [read.shard(shard) for shard in range(-(-len(plan) // plan.shard_size))]
        assert [row for shard in shards for row in shard.values()] == rows_of(plan), number
        assert all(slot // plan.shard_size == shard for shard, rows in enumerate(shards) for slot in rows)


def test_memory_does_not_grow_with_the_rows_of_a_table(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        plan = resolve_plan(per_finding={"Effusion": rows}, shard_size=100)
        tracemalloc.start()
        write_rows(plan, tmp_path / str(rows))
        read = PlannedRows(tmp_path / str(rows))
        assert sum(len(read.shard(shard)) for shard in range(rows // 100)) == rows
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)
    few, many = peak(500), peak(5000)
    assert many < few + 200_000, (few, many)


# --- sources ---------------------------------------------------------------------------------------------


def cells(row: dict[str, str]) -> tuple[Any, ...]:
    """Findings, side, view, sex and whole years of a raw manifest row."""
    names = tuple(name for name in (NO_FINDING, "Effusion", "Nodule", "Edema", "Hernia") if row[name] == "1")
    age = int(float(row["age"])) if row["age"] else None
    return frozenset(names), row["Effusion_side"], row["view"] or None, row["sex"] or None, age


def as_cells(labels: Labels) -> tuple[Any, ...]:
    return frozenset(labels.findings), labels.sides.get("Effusion", ""), labels.view, labels.sex, labels.age


def test_like_has_the_real_distribution_exactly_at_multiples(manifest: Path) -> None:
    real = Counter(cells(row) for row in real_rows(manifest))
    plan = resolve_plan(like=manifest, count=700)
    made = [plan.row(slot) for slot in range(700)]
    for start in (0, 300):
        assert Counter(as_cells(row.labels) for row in made[start : start + 300]) == real
    first, second = ([row.labels for row in made[start : start + 300]] for start in (0, 300))
    assert first != second  # another order each round
    rest = Counter(as_cells(row.labels) for row in made[600:])
    assert rest <= real and sum(rest.values()) == 100
    assert plan.findings == (NO_FINDING, "Effusion", "Edema", "Hernia", "Nodule")  # Mass is blank in this split
    assert len(resolve_plan(like=manifest)) == 300


@pytest.mark.parametrize("count", [None, 50], ids=["beginning", "small set"])
def test_a_part_of_like_is_nearly_the_real_distribution(manifest: Path, count: int | None) -> None:
    real = real_rows(manifest)
    share = sum(row["Effusion"] == "1" for row in real) / 300
    means = []
    for seed in range(25):
        plan = resolve_plan(like=manifest, count=count, seed=seed)
        means.append(sum("Effusion" in plan.row(slot).labels.findings for slot in range(50)) / 50)
    sd = (share * (1 - share) / 50 * (250 / 299)) ** 0.5  # drawn without replacement
    assert max(abs(mean - share) for mean in means) < 4 * sd
    assert abs(sum(means) / 25 - share) < 4 * sd / 25**0.5
    assert len(set(means)) > 5


def test_like_denies_what_the_real_row_denies_and_says_the_rest(manifest: Path) -> None:
    plan = resolve_plan(like=manifest)
    names = (NO_FINDING, "Effusion", "Nodule", "Edema", "Hernia")
    expected = Counter((cells(row), frozenset(n for n in names if row[n] == "0")) for row in real_rows(manifest))
    assert Counter((as_cells(row.labels), row.absent) for row in rows_of(plan)) == expected
    for row in rows_of(plan):
        read = parse(row.prompt)
        assert set(read.findings) == set(row.labels.findings) and read.view == row.labels.view, row.prompt
        assert read.age == row.labels.age or row.labels.age == 0, row.prompt  # "infant"


def test_balance_and_the_real_set_are_level(manifest: Path) -> None:
    real = Counter(name for row in real_rows(manifest) for name in FINDINGS if row.get(name) == "1")
    plan = resolve_plan(balance=manifest)
    made = Counter(row.group for row in rows_of(plan))
    assert set(plan.counts()) == {NO_FINDING, "Effusion", "Nodule", "Edema"}  # nobody has a hernia there
    assert {real[name] + made[name] for name in ("Nodule", "Edema", "Effusion")} == {real["Effusion"]}
    assert made[NO_FINDING] == max(0, real["Effusion"] - real[NO_FINDING])
    more = resolve_plan(balance=manifest, target=250, findings=["Hernia", "Effusion"])
    assert more.counts() == {"Effusion": 250 - real["Effusion"], "Hernia": 250}
    line = next(line for line in describe(more) if line.startswith("Effusion")).split()
    assert line == ["Effusion", str(real["Effusion"]), str(250 - real["Effusion"]), "250"]


def test_balance_by_sex_and_age_levels_each_cell(manifest: Path) -> None:
    rows = real_rows(manifest)
    plan = resolve_plan(balance=manifest, by=["age", "sex"], findings="Effusion,Nodule")
    made = [row.labels for row in rows_of(plan)]
    total: Counter[tuple[str, str, int]] = Counter()
    for row in rows:
        age = float(row["age"] or -1)
        for number, (first, last) in enumerate(AGE_BANDS):
            for name in ("Effusion", "Nodule"):
                total[name, row["sex"], number] += row[name] == "1" and first <= age < last + 1
    wanted = max(total.values())
    total += Counter((one.findings[0], one.sex or "", band(one) or 0) for one in made)
    assert len(total) == 2 * 2 * 3 and set(total.values()) == {wanted}
    assert spread([one.view for one in made], ("PA", "AP")) <= len(plan.groups)


def test_prompts_keep_their_text_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(
        "id,prompt,labels,view,sex,age\n"
        "a,PA view of a 50 year old man with left effusion,Effusion:left,PA,M,50\n"
        "b,meniscus sign at the left base,Effusion,,,\n"
        "c,Normal chest. AP view,No Finding,,,\n"
    )
    plan = resolve_plan(prompts=path, num_images=3)
    rows = rows_of(plan)
    assert set(Counter(row.prompt for row in rows).values()) == {3}
    found = {row.prompt.split()[0]: (row.labels, row.absent) for row in rows}
    assert found == {
        "PA": (Labels(("Effusion",), {"Effusion": "left"}, "PA", "M", 50), {NO_FINDING}),
        "meniscus": (Labels(("Effusion",)), {NO_FINDING}),
        "Normal": (Labels((NO_FINDING,), {}, "AP"), {"Effusion"}),
    }
    text = tmp_path / "p.txt"
    text.write_text("right pneumothorax\nsomething about an X-ray\n")
    rows = rows_of(resolve_plan(prompts=text))
    assert {row.group for row in rows} == {"Pneumothorax", "without a finding"}


@pytest.mark.parametrize("path", sorted((ROOT / "prompts").glob("*.csv")), ids=lambda path: path.stem)
def test_the_prompt_lists_are_plans(path: Path) -> None:
    with path.open(newline="") as file:
        assert len(resolve_plan(prompts=path)) == sum(1 for _ in csv.DictReader(file))


# --- plan files, hash, screen ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["balanced", "sides"])
def test_the_example_plans_are_good(name: str) -> None:
    plan = resolve_plan(**read_plan(ROOT / "examples" / "plans" / f"{name}.yaml"))
    lines = describe(plan)
    assert plan.name == name and plan.hash in lines[0]
    assert lines[-1].split() == ["all", str(len(plan))]
    assert Counter(row.group for row in rows_of(plan)) == plan.counts()


def test_the_hash_changes_with_every_setting_and_not_with_the_order_of_keys(tmp_path: Path, manifest: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("left effusion\nnodule\n")
    base: dict[str, Any] = {"per_finding": {"Effusion": 3, "Edema": 4}}
    changed: list[dict[str, Any]] = [
        base,
        {"per_finding": {"Effusion": 4, "Edema": 3}},
        {"per_finding": 3},
        {"per_finding": 3, "findings": ["Edema"]},
        *({**base, "demographics": value} for value in ("none", "sex", ["sex", "age"])),
        {**base, "model": "sd-1.5"},
        {**base, "seed": 1},
        {**base, "steps": 20},
        {**base, "guidance": 4.0},
        {**base, "sampler": "ddim"},
        {**base, "max_tries": 5},
        {**base, "shard_size": 10},
        {**base, "name": "other"},
        {"prompts": text},
        {"prompts": text, "num_images": 2},
        {"like": manifest},
        {"like": manifest, "count": 299},
        {"like": manifest, "count": 299, "seed": 1},
        {"balance": manifest},
        {"balance": manifest, "target": 290},
        {"balance": manifest, "by": "sex"},
        {"groups": [{"findings": ["Effusion"], "count": 3}]},
        {"groups": [{"findings": ["Effusion"], "count": 3, "age": [40, 50]}]},
        {"groups": [{"findings": ["Effusion"], "count": 3, "sides": {"Effusion": "left"}}]},
        {"groups": [{"prompt": "effusion", "count": 3}]},
    ]
    hashes = [resolve_plan(**settings).hash for settings in changed]
    assert len(set(hashes)) == len(hashes) and all(len(one) == 16 for one in hashes)
    assert [resolve_plan(**settings).hash for settings in changed] == hashes
    turned = resolve_plan(per_finding={"Edema": 4, "Effusion": 3})
    assert turned.hash == hashes[0] and rows_of(turned) == rows_of(resolve_plan(**base))
    text.write_text("effusion on the left\nnodule\n")
    assert resolve_plan(prompts=text).hash not in hashes


def test_a_plan_file_and_flags_give_the_same_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("per_finding: 7\nfindings: [Edema, Effusion]\nguidance: 4\nsteps:\n")
    plan = resolve_plan(**read_plan(path))
    assert plan.hash == resolve_plan(per_finding=7, findings="Effusion, Edema", guidance=4.0).hash
    assert plan.guidance == 4 and plan.steps is None


def test_unknown_demographics_are_named() -> None:
    plan = resolve_plan(groups=[{"findings": ["Edema"], "sex": "M", "age": [16, 19], "view": "PA", "count": 1}])
    assert unknown_demographics(plan, None) == [] == unknown_demographics(plan, vocabulary())
    assert unknown_demographics(plan, vocabulary() - {"boy", "16", "17", "19", "upright"}) == [
        "view: upright",
        "sex: boy",
        "age: 16-17, 19",
    ]
    no_numbers = frozenset(word for word in vocabulary() if not word.isdigit())  # as Info.vocabulary
    assert unknown_demographics(plan, no_numbers) == []
    balanced = resolve_plan(per_finding=1)
    assert unknown_demographics(balanced, vocabulary() - {"boy", "girl", "woman", "17", "80"}) == ["sex: woman"]
    assert unknown_demographics(resolve_plan(per_finding=1, demographics="none"), frozenset({"1"})) == []
