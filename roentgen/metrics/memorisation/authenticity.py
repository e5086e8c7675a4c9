"""AuthPct: generated images that are farther from training than training images are from each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import EvaluationInputs, Result, measure
from roentgen.metrics.memorisation.nearness import rough_if_few
from roentgen.metrics.neighbours import nearest
from roentgen.metrics.noticed import ALL_COPIES, Noticed
from roentgen.metrics.statistics import USUAL, Bootstrap, Floats, Groups, numbered, own_groups, wilson_interval

AUTHENTIC = "authentic"
"""Column of single images."""


def authenticity(
    queries: NDArray[np.floating],
    train: NDArray[np.floating],
    *,
    unseen: NDArray[np.floating] | None = None,
    groups: Groups | None = None,
    train_groups: Groups | None = None,
    bootstrap: Bootstrap = USUAL,
) -> Result:
    """AuthPct as a share: ``queries`` that are farther from their nearest training image than that one from its own.

    Alaa et al. 2022, section 4.3: a sample is authentic if d(query, r) > d(r, nearest other training item), r being
    the query's nearest. Two images of one patient in train make r's own neighbour near and so a copy "authentic";
    with ``train_groups`` (A,) the neighbour is one of another patient. The value rises with the spread of the model
    and falls with the size of train, so it says something only beside ``unseen`` real images' value.
    """
    if len(queries) == 0 or len(train) < 2:
        raise ValueError("authenticity needs a query and two training items")
    own = numbered(own_groups(train_groups, train))

    def shares(items: NDArray[np.floating]) -> Floats:
        closest, distance = nearest(items, train)
        sources, back = np.unique(closest[:, 0], return_inverse=True)
        _, between = nearest(train[sources], train, without=own[sources], pool_groups=own)
        return (distance[:, 0] > between[back, 0]).astype(np.float64)

    found = bootstrap.mean(authentic := shares(queries), groups)
    ceiling = None
    if unseen is not None and len(unseen):
        real = shares(unseen)
        value, ci = float(real.mean()), wilson_interval(int(real.sum()), len(real))
        ceiling = {"value": value, "ci": ci, "n": len(real), "what": "held-out real images"}
    return Result(
        **found,
        ci_method=bootstrap.said("image" if groups is None else "patient"),
        ceiling=ceiling,
        notes=rough_if_few(len(queries), "queries"),
        details={"pool": len(train)},
        per_image={AUTHENTIC: authentic},
    )


@measure(
    "authenticity", "Authentic (AuthPct)", suite="standard", better="higher", unit="share", each_extractor=True,
    reads=("train",), tested={AUTHENTIC: "Authentic share"},
    noticed={"authpct": Noticed("AuthPct (share)", 3, -1, ALL_COPIES)},
)  # fmt: skip
def measure_authenticity(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    groups: dict[str, Any] = {"groups": inputs.bootstrap_groups, "train_groups": inputs.training().patients}
    queries, train, unseen = (inputs.of(name, extractor) for name in ("synthetic", "train", "real"))
    return authenticity(queries, train, unseen=unseen, **groups, bootstrap=inputs.bootstrap)
