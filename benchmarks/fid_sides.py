"""One side of eval.py: the FID of two folders by one tool, with its own defaults where it has any.

    python benchmarks/fid_sides.py '{"side": ..., "a": FOLDER, "b": FOLDER, "weights": FILE, "workers": 2, "out": FILE}'

Writes the distance, and the seconds without imports and loading, to the JSON file "out".
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Job = dict[str, Any]


def ours(job: Job, resize: str) -> Callable[[], float]:
    from roentgen.devices import keep_freed_memory
    from roentgen.metrics.distribution.frechet import frechet_distance
    from roentgen.metrics.extractors import inception_extractor
    from roentgen.metrics.features import stream_moments
    from roentgen.metrics.image_set import open_set

    keep_freed_memory()  # as the command does
    extractor = inception_extractor(weights=Path(job["weights"]), resize=resize)

    def run() -> float:
        sets = [open_set(Path(job[name]), name=kind) for name, kind in (("a", "synthetic"), ("b", "real"))]
        moments = [stream_moments(images, extractor, workers=job["workers"])[0] for images in sets]
        return frechet_distance(*moments)

    return run


def torch_fidelity(job: Job) -> Callable[[], float]:
    from torch_fidelity import calculate_metrics

    def run() -> float:
        settings = {"fid": True, "cuda": False, "cache": False, "verbose": False}
        weights = {"feature_extractor_weights_path": job["weights"]}
        found = calculate_metrics(input1=job["a"], input2=job["b"], **settings, **weights)
        return float(found["frechet_inception_distance"])

    return run


def clean_fid(job: Job) -> Callable[[], float]:
    import torch
    from cleanfid import fid
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from roentgen.metrics.extractors import nn_sequence

    # Its own file of the same network cannot be made with random weights, so it gets the same layers as they are.
    whole = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=job["weights"])
    layers = nn_sequence(whole)

    def network(batch: torch.Tensor) -> torch.Tensor:
        return layers((batch - 128) / 128).flatten(1)

    def run() -> float:
        settings = {"mode": "clean", "num_workers": job["workers"], "device": torch.device("cpu"), "verbose": False}
        return float(fid.compute_fid(job["a"], job["b"], custom_feat_extractor=network, **settings))

    return run


def roots(job: Job) -> dict[str, float]:
    """Seconds and values of the trace of the root: ours, and scipy.linalg.sqrtm of the product."""
    import numpy as np
    import scipy.linalg

    from roentgen.metrics.distribution.frechet import Moments, trace_root

    def made(seed: int) -> Moments:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(2 * job["dim"], job["dim"])) * np.geomspace(1, 0.05, job["dim"])
        return Moments(len(x), x.mean(axis=0), np.cov(x, rowvar=False) * (len(x) - 1))

    a, b = made(0), made(1)
    trace_root(a, b)  # imports
    times = []
    for _ in range(3):
        start = time.perf_counter()
        value = trace_root(a, b)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    theirs = np.trace(scipy.linalg.sqrtm(a.covariance @ b.covariance)).real
    seconds = time.perf_counter() - start
    return {"roentgen": min(times), "scipy": seconds, "difference": abs(value - theirs) / theirs}


def weights(job: Job) -> dict[str, float]:
    from inception_weights import write_random_inception

    write_random_inception(Path(job["weights"]), seed=0)
    return {}


SIDES: dict[str, Callable[[Job], Callable[[], float]]] = {
    "roentgen": lambda job: ours(job, "tf1"),
    "torch-fidelity": torch_fidelity,
    "roentgen-clean": lambda job: ours(job, "clean"),
    "clean-fid": clean_fid,
}
OTHERS: dict[str, Callable[[Job], dict[str, float]]] = {"roots": roots, "weights": weights}


def main() -> None:
    job = json.loads(sys.argv[1])
    if job["side"] in OTHERS:
        found = OTHERS[job["side"]](job)
    else:
        run = SIDES[job["side"]](job)
        start = time.perf_counter()
        found = {"fid": run(), "seconds": time.perf_counter() - start}
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
