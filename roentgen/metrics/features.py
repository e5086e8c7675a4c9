"""Features of whole image sets: each image is decoded once, by parallel workers, for all extractors in one pass.

What was extracted is kept on disk by the image file's SHA-256, the extractor's weights and its chain, so that no
result can come from another file that happened to have the same path, and a run that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import io
import sys
import uuid
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.images import read_image, write_atomic
from roentgen.metrics.extractors import BATCH, Extractor
from roentgen.metrics.frechet import Moments, MomentsBuilder
from roentgen.metrics.image_set import ImageSet, drop_bad

Floats = NDArray[np.float32]
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
    process: int = 0,
    processes: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> Features:
    """Outputs of all ``extractors`` for all ``sets``.

    Args:
        sets: of different names. The same image file in two sets is decoded once.
        extractors: of different names; they know their device.
        cache: folder of the feature cache; made if missing, shared by any number of runs and processes.
        workers: threads that read, decode and resize.
        batch_size: images a forward pass; changes nothing but speed (and the last bits).
        skip_bad: leave out images that cannot be decoded or give NaN; else they are an error that lists them.
        process, processes, wait: under ``accelerate launch``, each process extracts its share, waits for the others
            (a barrier), and reads the rest from the cache.

    Raises:
        UserError: bad images, or a cache that cannot be written.
    """
    for kind, names in (("sets", [s.name for s in sets]), ("extractors", [e.name for e in extractors])):
        if len(set(names)) != len(names):
            raise ValueError(f"two {kind} have the same name: {names}")
    hashes = {images.name: file_hashes(images.paths, workers) for images in sets}
    path_of: dict[str, Path] = {}
    for images in sets:
        for path, key in zip(images.paths, hashes[images.name], strict=True):
            path_of.setdefault(key, path)

    stores = [Store(cache / f"{extractor.key}-{READER}") for extractor in extractors]
    # Every process does its share, then all do what is still missing, which is only what nobody could decode.
    reasons = _fill(stores, extractors, path_of, (process, processes), workers=workers, batch_size=batch_size)
    if processes > 1:
        wait()
        stores = [Store(cache / f"{extractor.key}-{READER}") for extractor in extractors]
        reasons = _fill(stores, extractors, path_of, (0, 1), workers=workers, batch_size=batch_size)

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


def stream_moments(
    images: ImageSet,
    extractor: Extractor,
    *,
    workers: int = 2,
    batch_size: int = BATCH,
    skip_bad: bool = False,
    process: int = 0,
    processes: int = 1,
) -> tuple[Moments, list[str]]:
    """Moments of the "features" of a set, and the bad images: no feature is kept, so memory does not grow with n.

    With several processes each takes every ``processes``-th image; ``frechet.merge_across_processes`` joins them.
    """
    rows = range(process, len(images), processes)
    builder = MomentsBuilder(extractor.dim)
    reasons: dict[int, str] = {}
    batch: list[Floats] = []
    numbers: list[int] = []

    def flush() -> None:
        found = extractor.run(batch)["features"]
        finite = np.isfinite(found).all(axis=1)
        reasons.update((numbers[i], f"extractor {extractor.name} gives NaN") for i in np.flatnonzero(~finite))
        builder.add(found[finite])
        batch.clear()
        numbers.clear()

    for row, prepared in _prepared([images.paths[row] for row in rows], [(extractor,)] * len(rows), workers=workers):
        if isinstance(prepared, str):
            reasons[rows[row]] = prepared
            continue
        batch.append(prepared[0])
        numbers.append(rows[row])
        if len(batch) == batch_size:
            flush()
    if batch:
        flush()
    left = drop_bad(images, reasons, skip_bad=skip_bad)
    return builder.finish(), left.bad


def file_hashes(paths: Sequence[Path], workers: int) -> list[str]:
    """SHA-256 of each file, in hex; UserError for one that cannot be read."""

    def one(path: Path) -> str:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(pool.map(one, paths))


class Store:
    """Outputs of one extractor by image: .npz parts in ``folder``, each written once and never changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where: dict[str, tuple[Path, int]] = {}
        for part in sorted(folder.glob("*.npz")):
            try:
                with np.load(part) as content:
                    keys = [bytes(key).hex() for key in content["keys"]]
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                print(f"{part}: damaged ({error}); its features are extracted again", file=sys.stderr)
                part.unlink(missing_ok=True)
                continue
            self.where.update((key, (part, row)) for row, key in enumerate(keys))

    def __contains__(self, key: str) -> bool:
        return key in self.where

    def write(self, keys: Sequence[str], outputs: Mapping[str, Floats]) -> None:
        """Add the outputs (n, ...) of the images ``keys`` as one part."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"keys": np.array([np.frombuffer(bytes.fromhex(key), np.uint8) for key in keys])}
        np.savez(buffer, **(arrays | dict(outputs)))
        part = self.folder / f"{uuid.uuid4().hex}.npz"
        write_atomic(part, buffer.getvalue())
        self.where.update((key, (part, row)) for row, key in enumerate(keys))

    def read(self, keys: Sequence[str], outputs: Sequence[str]) -> dict[str, Floats]:
        """Outputs of the images ``keys``, in this order; one part in memory at a time."""
        by_part: dict[Path, list[int]] = {}
        for number, key in enumerate(keys):
            by_part.setdefault(self.where[key][0], []).append(number)
        found: dict[str, Floats] = {}
        for part, numbers in by_part.items():
            rows = [self.where[keys[number]][1] for number in numbers]
            with np.load(part) as content:
                for output in outputs:
                    values = content[output]
                    if output not in found:
                        found[output] = np.empty((len(keys), *values.shape[1:]), np.float32)
                    found[output][numbers] = values[rows]
        return found


def _fill(
    stores: Sequence[Store],
    extractors: Sequence[Extractor],
    path_of: Mapping[str, Path],
    share: tuple[int, int],
    *,
    workers: int,
    batch_size: int,
) -> dict[str, str]:
    """Extract what the stores lack, this process's share of it; return why images could not be (key -> reason)."""
    from tqdm import tqdm

    missing = [key for key in path_of if any(key not in store for store in stores)][share[0] :: share[1]]
    if not missing:
        return {}
    places = {extractor.name: place for place, extractor in enumerate(extractors)}
    wanted = [tuple(e for e, s in zip(extractors, stores, strict=True) if key not in s) for key in missing]
    waiting: dict[str, list[tuple[str, Floats]]] = {extractor.name: [] for extractor in extractors}
    unwritten: dict[str, list[tuple[list[str], dict[str, Floats]]]] = {extractor.name: [] for extractor in extractors}
    reasons: dict[str, str] = {}

    def run(extractor: Extractor) -> None:
        keys, prepared = zip(*waiting[extractor.name], strict=True)
        waiting[extractor.name].clear()
        found = extractor.run(prepared)
        finite = np.all([np.isfinite(values).reshape(len(keys), -1).all(axis=1) for values in found.values()], axis=0)
        reasons.update((keys[i], f"extractor {extractor.name} gives NaN") for i in np.flatnonzero(~finite))
        good = [key for key, is_good in zip(keys, finite, strict=True) if is_good]
        unwritten[extractor.name].append((good, {name: values[finite] for name, values in found.items()}))

    def write(extractor: Extractor) -> None:
        parts = unwritten[extractor.name]
        keys = [key for part, _ in parts for key in part]
        if keys:
            joined = {name: np.concatenate([values[name] for _, values in parts]) for name in extractor.outputs}
            stores[places[extractor.name]].write(keys, joined)
        parts.clear()

    try:
        paths = [path_of[key] for key in missing]
        bar = tqdm(_prepared(paths, wanted, workers=workers), total=len(missing), desc="features", file=sys.stderr)
        for number, prepared in bar:
            if isinstance(prepared, str):
                reasons[missing[number]] = prepared
                continue
            for extractor, image in zip(wanted[number], prepared, strict=True):
                waiting[extractor.name].append((missing[number], image))
                if len(waiting[extractor.name]) == batch_size:
                    run(extractor)
                if sum(len(keys) for keys, _ in unwritten[extractor.name]) >= PART:
                    write(extractor)
        for extractor in extractors:
            if waiting[extractor.name]:
                run(extractor)
    finally:  # an interrupted run keeps what it has done
        for extractor in extractors:
            write(extractor)
    return reasons


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

    ahead = 2 * BATCH
    queue: deque[tuple[int, Future[list[Floats] | str]]] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for number in range(len(paths)):
                queue.append((number, pool.submit(one, number)))
                if len(queue) > ahead:
                    first, future = queue.popleft()
                    yield first, future.result()
            while queue:
                first, future = queue.popleft()
                yield first, future.result()
        finally:
            for _, future in queue:
                future.cancel()
