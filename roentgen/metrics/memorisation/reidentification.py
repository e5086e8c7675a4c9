"""Re-identification: does a network that tells patients apart take generated images for training patients?

The network is not ours: any siamese model that scores pairs, high for "same patient". It is measured on real pairs
first, as one that cannot tell real patients apart says nothing about generated ones.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.files import sha256
from roentgen.images import read_image
from roentgen.metrics.adherence.auroc import weighted_auroc
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import EvaluationInputs, Result, Unavailable, measure
from roentgen.metrics.neighbours import Ints, nearest
from roentgen.metrics.statistics import USUAL, Bootstrap, Drawn, Floats, Groups, estimate

Grey = NDArray[np.uint8]
Images = Callable[[int], Grey]
"""The image of this number."""
Siamese = Callable[[Sequence[Grey], Sequence[Grey]], NDArray[np.floating]]
"""Scores (n,) of n pairs of grey uint8 images, higher for "same patient"; any scale."""
POWER = 0.8
"""A siamese model below this AUROC on real pairs is too weak to find anything."""
FALSE_ALARMS = 0.01


def patient_pairs(patients: Groups, *, count: int, seed: int = 0) -> tuple[Ints, Ints]:
    """Numbers (P, 2) of pairs of images of the same patient and of different patients, at most ``count`` of each.

    One pair a patient at a time, so that patients with many images are not most of the pairs. A set in which no
    patient has two images gives no same-patient pair, (0, 2).
    """
    rng = np.random.default_rng(seed)
    of: dict[str, list[int]] = defaultdict(list)
    for number, patient in enumerate(patients):
        of[str(patient)].append(number)
    queues = []
    for numbers in of.values():
        pairs = [(a, b) for place, a in enumerate(numbers) for b in numbers[place + 1 :]]
        queues.append([pairs[place] for place in rng.permutation(len(pairs))])
    same: list[tuple[int, int]] = []
    turn = 0
    while len(same) < count and any(len(queue) > turn for queue in queues):
        round_of = [queue[turn] for queue in queues if len(queue) > turn]
        same += [round_of[place] for place in rng.permutation(len(round_of))]
        turn += 1
    names = [str(patient) for patient in patients]
    different: set[tuple[int, int]] = set()
    possible = len(names) * (len(names) - 1) // 2 - sum(len(queue) for queue in queues)
    while len(different) < min(count, possible):
        a, b = sorted(int(number) for number in rng.integers(len(names), size=2))
        if names[a] != names[b]:
            different.add((a, b))
    return (
        np.array(same[:count], dtype=np.int64).reshape(-1, 2),
        np.array(sorted(different), dtype=np.int64).reshape(-1, 2),
    )


def scores(
    siamese: Siamese, first: Images, second: Images, pairs: NDArray[np.integer], *, batch_size: int = 32
) -> Floats:
    """Scores (P,) of ``pairs`` (P, 2), numbers in ``first`` and ``second``; ValueError if the model gives others."""
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), batch_size):
        part = pairs[start : start + batch_size].tolist()
        given = np.asarray(siamese([first(a) for a, _ in part], [second(b) for _, b in part]), dtype=np.float64)
        if given.shape != (len(part),) or not np.isfinite(given).all():
            raise ValueError(f"the siamese model must give one finite score a pair: {len(part)} pairs, {given.shape}")
        found[start : start + batch_size] = given
    return found


def reidentification(
    generated: NDArray[np.floating],
    same: NDArray[np.floating],
    different: NDArray[np.floating],
    *,
    groups: Groups | None = None,
    same_groups: Groups | None = None,
    different_groups: Groups | None = None,
    bootstrap: Bootstrap = USUAL,
) -> Result:
    """How like a training patient generated images score, between different (0.5) and same patients (the ceiling).

    Args:
        generated: scores (G,) of generated images, each with its nearest training image.
        same: scores (S,) of pairs of real images of one patient.
        different: scores (D,) of pairs of real images of two patients, chosen as the generated pairs were: unseen
            real images, each with its nearest training image.
        groups, same_groups, different_groups: the cluster of each pair for the bootstrap, as a rule the training
            patient; None: each pair its own.

    Returns:
        AUROC of generated against different pairs (0.5: no more like the training patient than strangers
        are; 1: all more like). ``details``: ``power``, AUROC of same against different (the siamese itself);
        ``against_same``, AUROC of same against generated pairs (0.5: generated pairs look like one patient);
        ``reidentified``, share of generated pairs above the 99 % quantile of different ones, expected 1 %.
    """
    g, s, d = (np.asarray(part, dtype=np.float64) for part in (generated, same, different))
    if min(len(g), len(s), len(d)) == 0:
        raise ValueError("scores of generated, same-patient and different-patient pairs are all needed")
    parts = ((g, groups), (s, same_groups), (d, different_groups))
    weights = [bootstrap.apart(place).weights(of, part) for place, (part, of) in enumerate(parts)]

    def compare(high: int, low: int) -> dict[str, Any]:
        both = (g, s, d)[high], (g, s, d)[low]
        values = np.concatenate(both)
        labels = np.concatenate([np.ones(len(both[0])), np.zeros(len(both[1]))])
        draws = weighted_auroc(values, labels, np.concatenate([weights[high], weights[low]], axis=1))
        whole = weighted_auroc(values, labels, np.ones((1, len(values))))
        return Drawn(float(whole[0]), draws).entry

    power = compare(1, 2)
    alarm = float(np.quantile(d, 1 - FALSE_ALARMS))
    hits = (g > alarm).astype(np.float64)
    notes = []
    if power["value"] < POWER:
        notes.append(
            f"the siamese model tells real patients apart with AUROC {power['value']:.2f} only: that it finds nothing "
            "means nothing"
        )
    if len(d) * FALSE_ALARMS < 1:
        notes.append(f"{len(d)} different-patient pairs cannot tell the {1 - FALSE_ALARMS:.0%} quantile")
    return Result(
        **compare(0, 2),
        ci_method=bootstrap.said("pair" if groups is None else "patient"),
        n=len(g),
        floor={"value": 0.5, "what": "no more like training patients than unseen images are"},
        ceiling={**power, "n": len(s), "what": "real pairs of one patient"},
        notes=notes,
        details={
            "power": power,
            "against_same": compare(1, 0),
            "reidentified": {**estimate(hits, weights[0]), "expected": FALSE_ALARMS, "threshold": alarm},
            "same_pairs": len(s),
            "different_pairs": len(d),
        },
    )


@dataclass(frozen=True)
class LoadedSiamese:
    """``compare`` scores two lists of grey uint8 images; ``name`` as it was given, ``hash`` of the file with it."""

    name: str
    hash: str
    compare: Siamese


@lru_cache(maxsize=1)
def load_siamese(name: str) -> LoadedSiamese:
    """The function that ``name`` names, "FILE.py:FUNCTION" or "package.module:FUNCTION".

    It takes two lists of n grey uint8 images (H, W) and gives n scores, higher for "same patient"; where it keeps its
    weights is its own affair. The code is run, so name only what you trust.

    Raises:
        UserError: no such file, module or function, or one that cannot be imported.
    """
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function.isidentifier():
        raise UserError(f"--siamese {name}: write FILE.py:FUNCTION or package.module:FUNCTION")
    module = _imported(place, name)
    compare = vars(module).get(function)
    if not callable(compare):
        raise UserError(f"--siamese {name}: {place} has no function {function}; check the name after the colon")
    file = Path(module.__file__) if module.__file__ else None
    digest = sha256(file.read_bytes())[:16] if file else "unknown"
    short = Path(place).name if place.endswith(".py") else place
    return LoadedSiamese(f"{short}:{function}", digest, compare)


def _imported(place: str, name: str) -> ModuleType:
    file = Path(place) if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise UserError(f"--siamese {name}: there is no file {file}; check the path")
    try:
        if file is None:
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location("roentgen_siamese", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses in it look themselves up
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # somebody else's code
        fix = "name a .py file or install it" if file is None else "fix the file"
        raise UserError(f"--siamese {name} cannot be imported ({type(error).__name__}: {error}); {fix}") from error


SIAMESE_PAIRS = 500
"""Pairs of each kind that the siamese model sees, at most."""


def by_siamese(inputs: EvaluationInputs) -> tuple[str, str]:
    siamese = _siamese(inputs)
    return f"siamese {siamese.name}, sha256 {siamese.hash}", "grey uint8 images as they are; the function's own chain"


def _siamese(inputs: EvaluationInputs) -> LoadedSiamese:
    if inputs.siamese is None:
        raise Unavailable("no model that tells patients apart was given (--siamese FILE.py:FUNCTION)")
    return load_siamese(inputs.siamese)


@measure(
    "reidentification", "Re-identification, AUROC", suite="full", better="near floor", reads=("train",),
    judge=by_siamese,
)  # fmt: skip
def measure_reidentification(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Do generated images, each with its nearest training image, look like one patient to a siamese model?"""
    train, siamese = inputs.training(), _siamese(inputs)
    pool = inputs.of("train", extractor)
    same, _ = patient_pairs(train.patients, count=SIAMESE_PAIRS, seed=inputs.seed)
    if not len(same):
        raise Unavailable(
            "no patient of --train has two images, so the siamese model cannot be measured", bad_input=True
        )
    groups = inputs.bootstrap_groups

    def scored(first: ImageSet, pairs: NDArray[np.integer]) -> Floats:
        """Scores (P,) of rows of a set and of training images, read as they are needed."""
        images, others = first.paths, train.paths
        try:
            return scores(siamese.compare, lambda a: read_image(images[a]), lambda b: read_image(others[b]), pairs)
        except UserError:
            raise
        except Exception as error:  # somebody else's code
            raise UserError(
                f"--siamese {siamese.name} failed on two lists of grey uint8 images ({type(error).__name__}: {error}); "
                "it must give one score a pair, higher for the same patient"
            ) from error

    def with_nearest(images: ImageSet) -> tuple[Floats, NDArray[np.int64]]:
        """Scores of images, each with its nearest training image: likelier "same" than random pairs."""
        rows = np.sort(np.random.default_rng(inputs.seed).permutation(len(images))[:SIAMESE_PAIRS])
        near = nearest(inputs.of(images.name, extractor)[rows], pool)[0][:, 0]
        return scored(images, np.column_stack([rows, near])), rows

    generated, rows = with_nearest(inputs.synthetic)
    strangers, unseen = with_nearest(inputs.real)
    return reidentification(
        generated,
        scored(train, same),
        strangers,
        groups=[groups[row] for row in rows],
        same_groups=[train.patients[first] for first, _ in same],
        different_groups=[inputs.real.patients[row] for row in unseen],
        bootstrap=inputs.bootstrap,
    )
