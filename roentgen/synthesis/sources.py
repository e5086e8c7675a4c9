"""Where a plan comes from: flags or a plan file's keys, and the lists, manifests and prompts that they name.

Paths are relative to the working folder, in a file as in a flag.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roentgen.data.labels import NIH_14
from roentgen.data.prompt_table import has_labels, read_labelled_prompts, read_prompts
from roentgen.errors import UserError
from roentgen.generators.base import check_seed, check_text
from roentgen.generators.generate import check_settings
from roentgen.prompts import FINDINGS, NO_FINDING, Labels, labels_from_row
from roentgen.synthesis.checks import (
    age_or_range,
    agreed,
    at_least_one,
    attributes_named,
    check_labels,
    demographics_named,
    finding_names,
    flag_of,
)
from roentgen.synthesis.plan import (
    AGE_BANDS,
    MAX_ROWS,
    SEXES,
    VIEWS,
    Drawing,
    Group,
    Plan,
    absent_beside,
    band_text,
    in_order,
    name_of,
    shuffled,
)
from roentgen.synthesis.plan_file import GROUP_TYPES, Asked, typed

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_FINDINGS = tuple(name for name in FINDINGS if name in {NO_FINDING, *NIH_14} - {"Hernia"})
"""The findings of NIH that `mini` draws and the classifier beside it judges. Not hernia: with 20 images to learn from,
neither knows it; ask for it by name."""
SOURCES = ("per_finding", "prompts", "like", "balance", "groups")
OPTIONS: dict[str, tuple[str, ...]] = {
    "findings": ("per_finding", "balance"),
    "num_images": ("prompts",),
    "split": ("like", "balance"),
    "count": ("like",),
    "target": ("balance",),
    "by": ("balance",),
    "demographics": ("per_finding", "balance", "groups"),
}
"""Setting -> the sources that it belongs to."""
_CHUNK = 10_000  # manifest rows that are Python objects at a time


def resolve_plan(**settings: Any) -> Plan:
    """The plan of exactly one source; ``settings`` are those of ``Asked``.

    Raises:
        UserError: on a contradiction, a value out of range, or a source that asks for nothing.
    """
    asked = Asked(**settings)
    settings = vars(asked)
    kind = _one_source(settings)
    sampling = ("steps", "guidance", "sampler", "guided_share")
    check_settings(num_images=asked.num_images, seed=asked.seed, **{key: settings[key] for key in sampling})
    for key in ("max_tries", "shard_size", "count", "target"):
        if settings[key] is not None:
            at_least_one(settings[key], flag_of(key))
    if not asked.name.strip() or re.search(r"[/\\\x00-\x1f]", asked.name):
        raise UserError(f"--name {asked.name!r}: write a name without slashes or line breaks")
    cycled = demographics_named(asked.demographics)
    made, columns, about = _read_source(kind, settings, cycled)
    if columns is None:
        columns = in_order({name for group in made for name in group.labels.findings})
        made = _with_absent(made, columns)
    rows = sum(group.count for group in made)
    if rows > MAX_ROWS:
        raise UserError(f"{flag_of(kind)} asks for {rows:,} images; ask for at most {MAX_ROWS:,}")
    check_seed(asked.seed, rows * asked.max_tries)
    drawing = {each.name: settings[each.name] for each in fields(Drawing)} | {"name": asked.name.strip()}
    for key in ("guidance", "guided_share"):
        drawing[key] = None if drawing[key] is None else float(drawing[key])
    return Plan(**drawing, findings=tuple(columns), source={"kind": kind, **about}, groups=tuple(made))


def _one_source(settings: Mapping[str, Any]) -> str:
    given = [key for key in SOURCES if settings[key] is not None]
    if len(given) != 1:
        flags = ", ".join(flag_of(key) for key in SOURCES[:-1])
        said = f"{' and '.join(map(flag_of, given))} cannot be combined" if given else "nothing says what to make"
        raise UserError(f"{said}; give exactly one of {flags}, or --plan with 'groups'")
    for key, owners in OPTIONS.items():
        is_given = settings[key] is not None and (key, settings[key]) != ("num_images", 1)
        if is_given and given[0] not in owners:
            raise UserError(
                f"{flag_of(key)} belongs to {' or '.join(map(flag_of, owners))}, not {flag_of(given[0])}; drop it"
            )
    return given[0]


# ------------------------------------------------------------------------------------------- sources


def _read_source(
    kind: str, settings: Mapping[str, Any], cycled: tuple[str, ...]
) -> tuple[list[Group], list[str] | None, dict[str, Any]]:
    """Groups of the source ``kind`` of SOURCES, the columns of its table if it has one, and what to say about it."""
    value, split, seed = settings[kind], settings["split"] or "train", settings["seed"]
    named = settings["findings"]
    chosen = None if named is None else in_order(finding_names(named, "--findings"))
    if kind == "per_finding":
        return _per_finding(value, chosen, cycled), None, {}
    if kind == "groups":
        return _from_groups(value, cycled), None, {}
    path = Path(value)
    if kind == "prompts":
        made = _from_prompts(path, settings["num_images"])
        return made, None, {"file": path.name, "prompts": len(made), "images_of_each": settings["num_images"]}
    if kind == "like":
        made, columns = _like(path, split, settings["count"], seed=seed)
        return made, columns, {"file": path.name, "split": split, "rows": len(made)}
    by = () if settings["by"] is None else attributes_named(settings["by"], "--by")
    made, about = _balance(path, split, findings=chosen, target=settings["target"], by=by, cycled=cycled)
    return made, None, {"file": path.name, "split": split, **about}


def _per_finding(counts: int | Mapping[str, int], chosen: list[str] | None, cycled: tuple[str, ...]) -> list[Group]:
    if isinstance(counts, Mapping):
        if chosen is not None:
            raise UserError("--findings: per_finding already names its findings; drop one of the two")
        finding_names(list(counts), "--per-finding")
    else:
        counts = dict.fromkeys(DEFAULT_FINDINGS if chosen is None else chosen, at_least_one(counts, "--per-finding"))
    return [
        Group(name, at_least_one(counts[name], f"--per-finding, {name}:"), Labels((name,)), balanced=cycled)
        for name in in_order(counts)
    ]


def _from_prompts(path: Path, num_images: int) -> list[Group]:
    records = read_prompts(path)
    given = _given_labels(path)
    made = []
    for record in records:
        where = f"--prompts {path}, id {record.id}"
        if record.seed is not None:
            raise UserError(
                f"{where}: it has a seed of its own, but a set numbers its seeds so that no two images share one; "
                "clear the column 'seed', or use `roentgen generate`"
            )
        check_text(record.prompt, f"{where}: prompt")
        labels = agreed(record.prompt, given.get(record.id, Labels()), where)
        made.append(Group(name_of(labels.findings), num_images, labels, prompt=record.prompt))
    return made


def _given_labels(path: Path) -> dict[str, Labels]:
    """Id -> labels, of a CSV with a column of that name; else nothing."""
    if not has_labels(path):
        return {}
    prompts = read_labelled_prompts(path)
    for prompt in prompts:
        check_labels(prompt.labels, f"--prompts {path}, id {prompt.id}")
    return {prompt.id: prompt.labels for prompt in prompts}


def _like(path: Path, split: str, count: int | None, *, seed: int) -> tuple[list[Group], list[str]]:
    """One group a real row. Each gives ``count // rows`` images; who gives the rest of them is drawn."""
    table, columns = _read(path, split, "--like")
    times, rest = divmod(len(table) if count is None else count, len(table))
    extra = {shuffled(place, len(table), key=f"{seed}/like") for place in range(rest)}
    same: dict[frozenset[str], frozenset[str]] = {}  # most rows deny the same findings
    made = []
    for number, row in enumerate(_rows(table)):
        labels = labels_from_row(row)
        sides = {name: side for name, side in labels.sides.items() if FINDINGS[name].can_have_side}
        # Whole years, as the text says them.
        age = None if labels.age is None else float(int(labels.age))
        labels = Labels(labels.findings, sides, labels.view, labels.sex, age)
        absent = frozenset(name for name in columns if row[name] == 0)
        made.append(Group(name_of(labels.findings), times + (number in extra), labels, same.setdefault(absent, absent)))
    return made, columns


def _balance(
    path: Path,
    split: str,
    *,
    findings: list[str] | None,
    target: int | None,
    by: tuple[str, ...],
    cycled: tuple[str, ...],
) -> tuple[list[Group], dict[str, Any]]:
    """A group for each finding in each cell of ``by``, also where nothing is missing; and what to say about them."""
    import pandas as pd

    table, known = _read(path, split, "--balance")
    names = [name for name in known if (table[name] == 1).any()] if findings is None else findings
    if not names:
        raise UserError(f"--balance {path}: no finding is 1 in split {split}; choose another split or fill its columns")
    choices: dict[str, list[Any]] = {
        "sex": list(SEXES) if "sex" in by else [None],
        "view": list(VIEWS) if "view" in by else [None],
        "age": list(AGE_BANDS) if "age" in by else [None],
    }
    made = []
    nowhere = pd.Series(False, index=table.index)
    placed = nowhere
    for name in names:
        has = table[name] == 1 if name in table.columns else nowhere
        for sex, view, ages in itertools.product(*choices.values()):
            inside = has
            if sex:
                inside = inside & (table["sex"] == sex)
            if view:
                inside = inside & (table["view"] == view)
            if ages:  # below the next birthday: someone of 39.5 years is 39
                inside = inside & (table["age"] >= ages[0]) & (table["age"] < ages[1] + 1)
            placed = placed | inside
            made.append(
                Group(
                    ", ".join([name, *filter(None, (sex, view, ages and band_text(ages)))]),
                    0,
                    Labels((name,), {}, view, sex),
                    ages=ages,
                    balanced=tuple(attribute for attribute in cycled if attribute not in by),
                    real=int(inside.sum()),
                )
            )
    abnormal = [group.real or 0 for group in made if group.labels.findings != (NO_FINDING,)]
    if target is None and not abnormal:
        raise UserError("--balance: No Finding alone has nothing to be level with; add findings or give --target")
    wanted = max(abnormal) if target is None else target
    made = [replace(group, count=max(0, wanted - (group.real or 0))) for group in made]
    if not any(group.count for group in made):
        raise UserError(
            f"--balance {path}: nothing is missing, everything has at least {wanted:,} images; give a larger --target"
        )
    about = {"rows": len(table), "rows_in_no_group": int((~placed).sum()), "target": wanted}
    return made, about | ({"by": list(by)} if by else {})


def _from_groups(entries: Sequence[Mapping[str, Any]], cycled: tuple[str, ...]) -> list[Group]:
    made: list[Group] = []
    places: dict[str, int] = {}
    for number, entry in enumerate(entries, 1):
        where = f"groups, entry {number}"
        if not isinstance(entry, Mapping):
            raise UserError(f"{where}: expected keys such as 'findings' and 'count', got {entry!r}")
        group = _group(typed(entry, GROUP_TYPES, where), cycled, where)
        if group.name in places:
            raise UserError(
                f"{where} is {group.name!r}, as entry {places[group.name]} is; give each a name of its own, or one "
                "entry the count of both"
            )
        places[group.name] = number
        made.append(group)
    if not made:
        raise UserError("groups is empty; write at least one entry with 'findings' and 'count'")
    return made


def _group(entry: Mapping[str, Any], cycled: tuple[str, ...], where: str) -> Group:
    if "count" not in entry:
        raise UserError(f"{where}: 'count' is missing; say how many images")
    count = at_least_one(entry["count"], f"{where}, key 'count':")
    prompt = entry.get("prompt")
    names = finding_names(entry["findings"], where) if "findings" in entry else []
    age, ages = age_or_range(entry.get("age"), where)
    labels = Labels(tuple(in_order(names)), dict(entry.get("sides", {})), entry.get("view"), entry.get("sex"), age)
    check_labels(labels, where)
    if prompt is not None:
        if ages is not None:
            raise UserError(f"{where}: one 'prompt' cannot have ages from {band_text(ages)}; give one age or none")
        check_text(prompt, f"{where}, key 'prompt':")
        labels, cycled = agreed(prompt, labels, where), ()
    elif not names:
        raise UserError(f"{where}: 'findings' is missing; name at least one, or {NO_FINDING!r}")
    fixed = {"sex": labels.sex, "view": labels.view, "age": ages if labels.age is None else labels.age}
    return Group(
        str(entry.get("name") or _group_name(labels, ages)),
        count,
        labels,
        ages=ages,
        balanced=tuple(attribute for attribute in cycled if fixed[attribute] is None),
        prompt=prompt,
    )


def _group_name(labels: Labels, ages: tuple[int, int] | None) -> str:
    """ "left Effusion + Edema, PA, 40-60" """
    named = [f"{labels.sides.get(name, '')} {name}".strip() for name in in_order(labels.findings)]
    age = band_text(ages) if ages else "" if labels.age is None else f"{labels.age:g}"
    return ", ".join(filter(None, (" + ".join(named) or name_of(()), labels.sex, labels.view, age)))


def _with_absent(made: Sequence[Group], columns: Collection[str]) -> list[Group]:
    """The groups with what their findings deny among the columns.

    A composed prompt says everything. One of the user's may say more than is read from it, so beside its findings
    only ``No Finding`` is absent; but in a chest that it calls normal all others are.
    """
    told = frozenset({NO_FINDING} & set(columns))
    cache: dict[tuple[str, ...], frozenset[str]] = {}
    result = []
    for group in made:
        findings = group.labels.findings
        if not findings:
            absent: frozenset[str] = frozenset()
        elif group.prompt is None or findings == (NO_FINDING,):
            absent = cache.setdefault(findings, absent_beside(findings, columns))
        else:
            absent = told
        result.append(replace(group, absent=absent))
    return result


def _read(path: Path, split: str, flag: str) -> tuple[pd.DataFrame, list[str]]:
    """The rows of a manifest's split, and the finding columns that are not blank there."""
    from roentgen.data.manifest import SPLITS, finding_columns, read_manifest

    if split not in SPLITS:
        raise UserError(f"--split {split}: no such split; choose one of {', '.join(SPLITS)}")
    table = read_manifest(path, splits=(split,), allow_empty_text=True, check_files=False)
    columns = [name for name in finding_columns(table) if table[name].notna().any()]
    if not columns:
        raise UserError(f"{flag} {path} has no label of any finding in split {split}; fill its finding columns")
    return table, columns


def _rows(table: pd.DataFrame) -> Iterator[dict[Any, Any]]:
    needed = {"view", "sex", "age", *FINDINGS, *(f"{name}_side" for name in FINDINGS)}
    table = table[[column for column in table.columns if column in needed]]
    for start in range(0, len(table), _CHUNK):
        yield from table.iloc[start : start + _CHUNK].to_dict("records")
