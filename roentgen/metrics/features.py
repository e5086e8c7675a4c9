"""Features of whole image sets: each image is decoded once, by parallel workers, for all extractors in one pass.

What was extracted is kept on disk by the image file's SHA-256, the extractor's weights and its chain, so that no
result can come from another file that happened to have the same path, and a run that was killed goes on where it was.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from roentgen.cache import Store
from roentgen.devices import ALONE, Process
from roentgen.errors import UserError
from roentgen.files import files_sha256
from roentgen.images import read_image
from roentgen.metrics.distribution.frechet import Moments, MomentsBuilder
from roentgen.metrics.extractor import BATCH, Extractor
from roentgen.metrics.image_set import ImageSet, drop_bad

Floats = NDArray[np.float32]
Given = TypeVar("Given")
Made = TypeVar("Made")
STREAMS = 8
"""Forward passes at a time on a CPU, at most: each holds its own activations."""
CPU_BATCH = 8
"""Images a forward pass on a CPU, at most: of more the activations leave the caches."""
PART = 512  # images between two writes of the cache: what a killed run can lose
READER = "r1"  # part of the cache's key: raise it when roentgen.images decodes differently


@dataclass(frozen=True)
class Features:
    """What the extractors say of each set.

    sets: the sets as measured: those that were given, less the images that could not be decoded (``ImageSet.bad``);
    take tables from here, as the rows of the arrays follow them.
    """

    sets: tuple[ImageSet, ...]
    arrays: Mapping[tuple[str, str, str], Floats]

    def of(self, set_name: str, extractor_name: str, output: str = "features") -> Floats:
        """Output (N, ...) of an extractor for a set, in the row order of ``self.set(set_name).table``."""
        return self.arrays[set_name, extractor_name, output]

    def set(self, name: str) -> ImageSet:
        """The set of this name as measured."""
        return next(images for images in self.sets if images.name == name)


def extract(
    sets: Sequence[ImageSet],
    extractors: Sequence[Extractor],
    *,
    cache: Path,
    workers: int = 2,
    batch_size: int = BATCH,
    skip_bad: bool = False,
    who: Process = ALONE,
    wait: Callable[[], None] = lambda: None,
) -> Features:
    """Outputs of all ``extractors`` for all ``sets``.

    Args:
        sets: of different names. The same image file in two sets is decoded once.
        extractors: of different names; they know their device.
        cache: folder of the feature cache; made if missing, shared by any number of runs and processes.
        workers: threads that read, decode and resize.
        batch_size: images a forward pass (on a CPU at most ``CPU_BATCH``); changes speed and the last bits.
        skip_bad: leave out images that cannot be decoded or give NaN; else they are an error that lists them.
        who, wait: under ``accelerate launch``, each process extracts its share, waits for the others (a barrier), and
            reads the rest from the cache.

    Raises:
        UserError: bad images, or a cache that cannot be written.
    """
    for kind, names in (("sets", [s.name for s in sets]), ("extractors", [e.name for e in extractors])):
        if len(set(names)) != len(names):
            raise ValueError(f"two {kind} have the same name: {names}")
    hashes, path_of = _files(sets, workers)
    how: dict[str, Any] = {"workers": workers, "batch_size": batch_size}
    stores, reasons = _fill(cache, extractors, path_of, who, **how)
    if who.world > 1:  # what is missing when all have done their share is what nobody could decode
        wait()
        stores, reasons = _fill(cache, extractors, path_of, ALONE, **how)

    kept = []
    for images in sets:
        bad = {row: reasons[key] for row, key in enumerate(hashes[images.name]) if key in reasons}
        kept.append(drop_bad(images, bad, skip_bad=skip_bad))
        if len(kept[-1]) == 0:
            raise UserError(f"--{images.name}: no image is left; give images that can be read")
    arrays: dict[tuple[str, str, str], Floats] = {}
    for images in kept:
        good = [key for key in hashes[images.name] if key not in reasons]
        for extractor, store in zip(extractors, stores, strict=True):
            for output, values in store.read(good, extractor.outputs).items():
                arrays[images.name, extractor.name, output] = values
    return Features(tuple(kept), arrays)


def extract_share(
    sets: Sequence[ImageSet],
    extractors: Sequence[Extractor],
    *,
    cache: Path,
    who: Process,
    workers: int = 2,
    batch_size: int = BATCH,
) -> None:
    """Put one process's share into ``cache``, for another that calls ``extract``; bad images are left to that one."""
    _fill(cache, extractors, _files(sets, workers)[1], who, workers=workers, batch_size=batch_size)


def stream_moments(
    images: ImageSet,
    extractor: Extractor,
    *,
    workers: int = 2,
    batch_size: int = BATCH,
    skip_bad: bool = False,
    who: Process = ALONE,
) -> tuple[Moments, list[str]]:
    """Moments of the "features" of a set, and the bad images: no feature is kept, so memory does not grow with n.

    With several processes each takes its share of the images; ``frechet.merge_across_processes`` joins the moments.
    """
    rows = who.own(len(images))
    builder = MomentsBuilder(extractor.dim)
    reasons: dict[int, str] = {}
    prepared = _prepared([images.paths[row] for row in rows], [(extractor,)] * len(rows), workers=workers)
    for _, places, outputs in _forward(prepared, [(extractor,)] * len(rows), batch_size, reasons):
        found = outputs["features"]
        finite = np.isfinite(found).all(axis=1)
        reasons.update((places[i], f"extractor {extractor.name} gives NaN") for i in np.flatnonzero(~finite))
        builder.add(found[finite])
    left = drop_bad(images, {rows[place]: reason for place, reason in reasons.items()}, skip_bad=skip_bad)
    return builder.finish(), left.bad


def _files(sets: Sequence[ImageSet], workers: int) -> tuple[dict[str, list[str]], dict[str, Path]]:
    """The hash of each file by set, and a file for each hash."""
    hashes = {images.name: files_sha256(images.paths, workers=workers) for images in sets}
    path_of: dict[str, Path] = {}
    for images in sets:
        for key, path in zip(hashes[images.name], images.paths, strict=True):
            path_of.setdefault(key, path)
    return hashes, path_of


def _fill(
    cache: Path,
    extractors: Sequence[Extractor],
    path_of: Mapping[str, Path],
    who: Process,
    *,
    workers: int,
    batch_size: int,
) -> tuple[list[Store], dict[str, str]]:
    """Extract what the cache lacks, this process's share of it.

    Returns:
        The cache by extractor, and why images could not be read (key -> reason).
    """
    from tqdm import tqdm

    stores = [Store(cache / f"{extractor.key}-{READER}", what="features") for extractor in extractors]
    keys = list(path_of)  # shares of all, not of what is missing: that changes while others are at it
    missing = [key for key in map(keys.__getitem__, who.own(len(keys))) if any(key not in store for store in stores)]
    if not missing:
        return stores, {}
    places = {extractor.name: place for place, extractor in enumerate(extractors)}
    wanted = [tuple(e for e, s in zip(extractors, stores, strict=True) if key not in s) for key in missing]
    unwritten: dict[str, list[tuple[list[str], dict[str, Floats]]]] = {extractor.name: [] for extractor in extractors}
    reasons: dict[int, str] = {}

    def write(extractor: Extractor) -> None:
        parts = unwritten[extractor.name]
        keys = [key for part, _ in parts for key in part]
        if keys:
            joined = {name: np.concatenate([values[name] for _, values in parts]) for name in extractor.outputs}
            stores[places[extractor.name]].write(keys, joined)
        parts.clear()

    try:
        paths = [path_of[key] for key in missing]
        steps = _prepared(paths, wanted, workers=workers)
        bar = tqdm(steps, total=len(missing), desc="features", file=sys.stderr, disable=who.rank > 0)
        for extractor, numbers, found in _forward(bar, wanted, batch_size, reasons):
            flat = [values.reshape(len(numbers), -1) for values in found.values()]
            finite = np.all([np.isfinite(values).all(axis=1) for values in flat], axis=0)
            reasons.update((numbers[i], f"extractor {extractor.name} gives NaN") for i in np.flatnonzero(~finite))
            good = [missing[number] for number, is_good in zip(numbers, finite, strict=True) if is_good]
            unwritten[extractor.name].append((good, {name: values[finite] for name, values in found.items()}))
            if sum(len(keys) for keys, _ in unwritten[extractor.name]) >= PART:
                write(extractor)
    finally:  # an interrupted run keeps what it has done
        for extractor in extractors:
            write(extractor)
    return stores, {missing[number]: reason for number, reason in reasons.items()}


def _prepared(
    paths: Sequence[Path], extractors: Sequence[tuple[Extractor, ...]], *, workers: int
) -> Iterator[tuple[int, list[Floats] | str]]:
    """In order: number, and the image prepared for each of its extractors, or why it could not be read.

    Threads, not processes: decoding, resizing and reading leave Python's lock alone. Only a few images a worker are
    ahead of the network, so memory does not grow with their number.
    """

    def one(number: int) -> list[Floats] | str:
        try:
            image = read_image(paths[number])
        except UserError as error:
            return str(error).removeprefix(f"{paths[number]}: ")
        return [extractor.prepare(image) for extractor in extractors[number]]

    with ThreadPoolExecutor(max(1, workers)) as pool:
        yield from enumerate(_in_order(pool, one, range(len(paths)), ahead=2 * BATCH))


Batch = tuple[Extractor, list[int], list[Floats]]
Output = tuple[Extractor, list[int], dict[str, Floats]]


def _forward(
    prepared: Iterable[tuple[int, list[Floats] | str]],
    extractors: Sequence[tuple[Extractor, ...]],
    batch_size: int,
    reasons: dict[int, str],
) -> Iterator[Output]:
    """Outputs of ``prepared`` images by batches: extractor, numbers of the images, outputs; ``reasons`` gets the
    unreadable ones.

    On a CPU several batches run at a time, each on one or a few threads of its own, in place of all threads on one
    batch: those wait for one another after each layer, and all of them when one is busy with decoding.
    """
    on_cpu = all(extractor.device == "cpu" for each in extractors for extractor in each)
    size = min(batch_size, CPU_BATCH) if on_cpu else batch_size

    def batches() -> Iterator[Batch]:
        waiting: dict[str, Batch] = {}
        for number, images in prepared:
            if isinstance(images, str):
                reasons[number] = images
                continue
            for extractor, image in zip(extractors[number], images, strict=True):
                _, numbers, batch = waiting.setdefault(extractor.name, (extractor, [], []))
                numbers.append(number)
                batch.append(image)
                if len(numbers) == size:
                    yield waiting.pop(extractor.name)
        yield from waiting.values()

    def run(batch: Batch) -> Output:
        extractor, numbers, images = batch
        return extractor, numbers, extractor.run(images)

    threads = torch.get_num_threads()
    streams = min(threads, STREAMS) if on_cpu else 1
    if streams == 1:
        yield from map(run, batches())
        return
    try:
        with ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(threads // streams,)) as pool:
            yield from _in_order(pool, run, batches(), ahead=streams)
    finally:
        torch.set_num_threads(threads)  # what later threads begin with


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[Given], Made], items: Iterable[Given], *, ahead: int
) -> Iterator[Made]:
    """``function`` of each of ``items`` by the threads of ``pool``, in order, at most ``ahead`` not yet taken.

    Where ``items`` breaks off with an error, what is under way is finished and given first.
    """
    queue: deque[Future[Made]] = deque()
    source = iter(items)
    failure: BaseException | None = None
    try:
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except BaseException as error:
                failure = error
                break
            queue.append(pool.submit(function, item))
            if len(queue) > ahead:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
        if failure is not None:
            raise failure
    finally:
        for future in queue:
            future.cancel()
