"""Latents and text states on disk: rows under keys of their content, in files that are checked before use.

Both caches are one row store. A row is found by the sha256 of what it was computed from (the bytes of an image file, a
text), in a folder named by a hash of everything else that decides its value (weights, preprocessing, precision). So a
cache can be shared by data sets and runs, grows with a data set by what is new, and never holds an answer to another
question. Files are written whole or not at all; several processes, or runs that know nothing of each other, may build
one cache at the same time; a build that was broken off goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from roentgen.data.images import CHAIN, ImageSource
from roentgen.errors import UserError
from roentgen.files import clean, file_sha256, fingerprint, read_sealed, sha256, write_atomic, write_sealed
from roentgen.training import latents

# Changing how texts become states must change this, or old caches would be taken for new.
TEXT_CHAIN = "reader.tokens+encode_text_states-1"
SHARD_BYTES = 64 * 2**20  # of rows in a file; also what a build holds in memory
BLOCK = 64  # neighbouring rows that one process computes: small for even shares, large for reading in sequence
FLOAT16_MAX = float(torch.finfo(torch.float16).max)


# -------------------------------------------------------------------------------------- row store


@dataclass(frozen=True)
class _File:
    """A safetensors file of one tensor ``rows`` float16 (rows, *shape), starting at byte ``offset``."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    keys: list[str]
    sha256: str


class RowStore:
    """Rows float16 of one shape, mapped from files; ``item`` i of the caller is where ``keys[i]`` was found.

    Safe in threads; in other processes the files are mapped anew.
    """

    def __init__(self, files: Sequence[_File], keys: Sequence[str]) -> None:
        shapes = {file.shape[1:] for file in files}
        if len(shapes) != 1:
            raise UserError(
                f"{files[0].path.parent}: holds rows of several shapes {sorted(shapes)}; delete this folder"
            )
        self.shape: tuple[int, ...] = shapes.pop()
        found = _locations(files)
        self._where = np.array([found[key] for key in keys], dtype=np.int32)  # (N, 2): file, row
        self._files = [(file.path, file.offset, file.shape) for file in files]
        self._maps: dict[int, NDArray[np.float16]] = {}

    def __len__(self) -> int:
        return len(self._where)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # pickling a memory map would copy the whole file

    def take(self, items: Iterable[int]) -> NDArray[np.float16]:
        """Rows (B, *shape) of the items, copied."""
        places = self._where[np.asarray(items, dtype=np.int64)]
        out = np.empty((len(places), *self.shape), dtype=np.float16)
        for position, (file, row) in enumerate(places.tolist()):
            if file not in self._maps:
                path, offset, shape = self._files[file]
                self._maps[file] = np.memmap(path, dtype=np.float16, mode="r", offset=offset, shape=shape)
            out[position] = self._maps[file][row]
        return out


def _locations(files: Sequence[_File]) -> dict[str, tuple[int, int]]:
    """Key -> (file, row). A key that two runs computed is taken from the first file."""
    found: dict[str, tuple[int, int]] = {}
    for number, file in enumerate(files):
        for row, key in enumerate(file.keys):
            found.setdefault(key, (number, row))
    return found


def build_rows(
    folder: Path,
    keys: Sequence[str],
    load: Callable[[list[int]], Any],
    encode: Callable[[Any], NDArray[np.float16]],
    *,
    what: str,
    batch_size: int,
    process: int,
    processes: int,
    wait: Callable[[], None],
) -> RowStore:
    """Open the rows of ``keys`` in ``folder``, after computing those that are missing or damaged.

    Every process calls it with the same arguments but ``process``; each checks and computes its share, ``wait`` is
    called twice. Shares are fixed by the keys and the number of processes alone, so that processes which see each
    other's files appear, and runs that share the folder, cannot leave a gap.

    Args:
        folder: of this cache.
        keys: key of each item, in the order that the store is to have; keys may occur several times.
        load: item numbers of a batch -> what ``encode`` takes; runs in a thread, one batch ahead.
        encode: -> rows float16 (B, *shape).
        what: name of a row for messages, in the plural.
        batch_size: items of a batch.
        process, processes: number of this process and of all.
        wait: returns once all processes have called it.
    """
    first: dict[str, int] = {}
    for item, key in enumerate(keys):
        first.setdefault(key, item)
    unique = list(first)
    _check_files(folder, process=process, processes=processes, what=what)
    wait()
    have = _locations(_open_files(folder))
    mine = [key for place, key in enumerate(unique) if place // BLOCK % processes == process and key not in have]
    if process == 0 and (absent := sum(key not in have for key in unique)):
        print(f"{folder}: {len(unique) - absent} of {len(unique)} {what} kept, {absent} to compute", file=sys.stderr)
    work = (folder, load, encode)
    _compute(*work, {key: first[key] for key in mine}, what=what, batch_size=batch_size, quiet=process != 0)
    wait()
    files = _open_files(folder)
    have = _locations(files)
    # Only where processes do not share a disk, or another run has just removed a damaged file.
    rest = {key: item for key, item in first.items() if key not in have}
    if rest:
        _compute(*work, rest, what=what, batch_size=batch_size, quiet=process != 0)
        files = _open_files(folder)
    return RowStore(files, keys)


def _compute(
    folder: Path,
    load: Callable[[list[int]], Any],
    encode: Callable[[Any], NDArray[np.float16]],
    wanted: dict[str, int],
    *,
    what: str,
    batch_size: int,
    quiet: bool,
) -> None:
    """Compute the items ``wanted`` (key -> item) and write them file by file."""
    from tqdm import tqdm

    keys = list(wanted)
    if not keys:
        return
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    held_keys: list[str] = []
    held: list[NDArray[np.float16]] = []
    with (
        ThreadPoolExecutor(1) as ahead,
        tqdm(total=len(keys), desc=f"computing {what}", file=sys.stderr, leave=False, disable=quiet) as bar,
    ):
        coming: Future[Any] | None = None
        for number, batch in enumerate(batches):
            loaded = coming.result() if coming is not None else load([wanted[key] for key in batch])
            if number + 1 < len(batches):
                coming = ahead.submit(load, [wanted[key] for key in batches[number + 1]])
            rows = encode(loaded)
            held_keys += batch
            held.append(rows)
            if (len(held_keys) + batch_size) * rows[0].nbytes > SHARD_BYTES:
                _write_file(folder, held_keys, np.concatenate(held))
                held_keys, held = [], []
            bar.update(len(batch))
        if held_keys:
            _write_file(folder, held_keys, np.concatenate(held))


def _file_name(keys: Sequence[str]) -> str:
    return f"rows-{sha256(' '.join(keys))[:20]}.safetensors"


def _write_file(folder: Path, keys: Sequence[str], rows: NDArray[np.float16]) -> None:
    """One file of rows, with its keys and the sha256 of the rows in its header."""
    note = json.dumps({"keys": list(keys), "sha256": sha256(np.ascontiguousarray(rows).data)})
    content = save({"rows": np.ascontiguousarray(rows)}, metadata={"roentgen": note})
    write_atomic(folder / _file_name(keys), content, advice="run the same command again")


def _read_header(path: Path) -> _File | None:
    """What a cache file says of itself; None where it is missing, cut off or damaged outside its rows."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < size else {}
        tensor = header["rows"]
        note = json.loads(header["__metadata__"]["roentgen"])
        start, end = tensor["data_offsets"]
        shape, keys = tuple(map(int, tensor["shape"])), list(map(str, note["keys"]))
        whole = 8 + length + end == size and start == 0 and end == 2 * int(np.prod(shape))
        if not whole or tensor["dtype"] != "F16" or shape[0] != len(keys) or path.name != _file_name(keys):
            return None
        return _File(path, 8 + length, shape, keys, str(note["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _open_files(folder: Path) -> list[_File]:
    """All files with sound headers, in the order of their names."""
    headers = (_read_header(path) for path in sorted(folder.glob("rows-*.safetensors")))
    return [header for header in headers if header is not None]


def _check_files(folder: Path, *, process: int, processes: int, what: str) -> None:
    """Hash this process's share of the files and remove those that are damaged, saying so."""

    def sound(path: Path) -> bool:
        header = _read_header(path)
        if header is None:
            return False
        rows = np.memmap(path, dtype=np.uint8, mode="r", offset=header.offset)
        return sha256(rows.data) == header.sha256

    # The share goes by name: lists differ between processes while damaged files disappear.
    paths = [p for p in sorted(folder.glob("rows-*")) if int(sha256(p.name), 16) % processes == process]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for path, good in zip(paths, pool.map(sound, paths), strict=True):
            if not good and path.exists():
                print(f"{path}: corrupt; its {what} are computed again", file=sys.stderr)
                path.unlink(missing_ok=True)
    clean(folder)


def _cache_folder(folder: Path, kind: str, parts: dict[str, Any], *, process: int) -> Path:
    """Folder of a cache with everything that decides its rows' values; ``cache.json`` tells it to people."""
    text = json.dumps(parts, sort_keys=True, indent=1, default=str)
    place = folder / f"{kind}-{sha256(text)[:20]}"
    if process == 0 and not (place / "cache.json").exists():
        write_atomic(place / "cache.json", text.encode())
    return place


def _described(config: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration without where it was loaded from and by which version."""
    left_out = ("transformers_version", "dtype", "torch_dtype")
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in left_out}


# ---------------------------------------------------------------------------------------- latents


class LatentCache:
    """Posterior mean and standard deviation of every image of a source, before the scaling factor."""

    def __init__(self, store: RowStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def rows(self, indices: Iterable[int]) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Mean and standard deviation, each float16 (B, C, h, w), of rows of the source."""
        both = self._store.take(indices)
        return both[:, 0], both[:, 1]


def latent_cache(
    vae: Any,
    source: ImageSource,
    *,
    folder: Path,
    device: torch.device | str,
    process: int = 0,
    processes: int = 1,
    wait: Callable[[], None] = lambda: None,
    batch_size: int = 8,
) -> LatentCache:
    """Latents of all images of ``source``, encoded where ``folder`` lacks them.

    Encoded as ``roentgen.training.latents.encode`` does: under bfloat16 autocast on every device, stored as float16.
    Which images share a batch changes latents by no more than rounding. A file of an image is taken as unchanged while
    its path, size and times are; where one differs its bytes are hashed again.

    Args:
        vae: autoencoder.
        source: images.
        folder: of all caches; this one is ``latents-<key>`` in it, the key made of weights, size and resize chain.
        device: to encode on; the autoencoder is moved there if there is work.
        process, processes: number of this process and of all that build together.
        wait: barrier of these processes; called four times.
        batch_size: images encoded at once.

    Raises:
        UserError: for an image that is missing or cannot be read, latents that are not finite, or a full disk.
    """
    device = torch.device(device)
    parts = {
        "vae": fingerprint(vae),
        "config": _described(dict(vae.config)),
        "chain": CHAIN,
        "size": source.size,
        "autocast": "bfloat16" if latents.linear_encoder(vae) is None else "linear, float32",
        "stored": "float16",
    }
    place = _cache_folder(folder, "latents", parts, process=process)
    if source.digests is not None:
        keys = source.digests
        wait()
        wait()
    else:
        keys = _image_digests(
            source.table["image"].tolist(), folder / "images", process=process, processes=processes, wait=wait
        )

    def load(items: list[int]) -> tuple[list[int], NDArray[np.uint8]]:
        return items, source.read_many(items)

    @torch.inference_mode()
    def encode(loaded: tuple[list[int], NDArray[np.uint8]]) -> NDArray[np.float16]:
        items, pixels = loaded
        rows = latents.encode(vae, pixels, device=device)
        good = rows.isfinite().flatten(1).all(1).cpu()
        if not bool(good.all()):
            image = source.table["image"].iat[items[int((~good).nonzero()[0])]]
            raise UserError(f"{image}: its latents are not finite; look at the image and at the autoencoder's weights")
        return rows.cpu().numpy()

    store = build_rows(
        place,
        keys,
        load,
        encode,
        what="latents",
        batch_size=batch_size,
        process=process,
        processes=processes,
        wait=wait,
    )
    return LatentCache(store)


def _image_digests(
    paths: Sequence[str], folder: Path, *, process: int, processes: int, wait: Callable[[], None]
) -> list[str]:
    """sha256 of each file; hashed where its path, size or times are new. Calls ``wait`` twice.

    What is known is kept in ``folder``, one list a process, each with a sha256 of its own.
    """
    from tqdm import tqdm

    with ThreadPoolExecutor(8) as pool:  # on a network disk a look takes longer than a hash
        stamps = list(pool.map(_stamp, paths))
        known = _known_digests(folder)
        wait()  # no list changes before all have read them
        todo = [
            item for item, stamp in enumerate(stamps) if item // BLOCK % processes == process and stamp not in known
        ]
        if todo:
            hashed = tqdm(
                pool.map(file_sha256, [paths[item] for item in todo]),
                total=len(todo),
                desc="hashing images",
                file=sys.stderr,
                leave=False,
                disable=process != 0,
            )
            own = folder / f"digests-{process}.txt"
            lines = _read_digests(own)
            lines |= {stamps[item]: digest for item, digest in zip(todo, hashed, strict=True)}
            body = "".join(f"{stamp} {digest}\n" for stamp, digest in lines.items()).encode()
            write_sealed(own, body)
        wait()
        known |= _known_digests(folder)
        # Only where processes do not share a disk, or another run has written the same list.
        return [known.get(stamp) or file_sha256(path) for stamp, path in zip(stamps, paths, strict=True)]


def _stamp(path: str) -> str:
    """What changes whenever a file does; the change time tells of files replaced under an older date."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of 400,000 files takes longer than the look
    except OSError:
        raise UserError(f"{path}: image not found; run `roentgen data check` on the manifest") from None
    text = f"{path}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
    return sha256(text)[:32]


def _known_digests(folder: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    for path in sorted(folder.glob("digests-*.txt")):
        known |= _read_digests(path)
    return known


def _read_digests(path: Path) -> dict[str, str]:
    """A list of stamps and digests; empty where it is missing or damaged, so that files are hashed again."""
    body = read_sealed(path)
    if body is None:
        if path.exists():
            print(f"{path}: corrupt; images are hashed again", file=sys.stderr)
        return {}
    words = body.decode().split()
    return dict(zip(words[::2], words[1::2], strict=True))


# ------------------------------------------------------------------------------------------ texts


class TextCache:
    """States of a frozen text encoder for known texts, "" among them."""

    def __init__(self, store: RowStore, texts: Sequence[str]) -> None:
        self._store = store
        self._items = {text: item for item, text in enumerate(texts)}

    def __len__(self) -> int:
        return len(self._store)

    def states(self, texts: Sequence[str]) -> Tensor:
        """States float16 (B, C * L, D); ValueError for a text that was not given to ``text_cache``."""
        unknown = next((text for text in texts if text not in self._items), None)
        if unknown is not None:
            raise ValueError(f"no states are cached for the text {unknown[:80]!r}")
        return torch.from_numpy(self._store.take([self._items[text] for text in texts]))


def text_cache(
    reader: Any,
    text_encoder: Any,
    texts: Sequence[str],
    *,
    folder: Path,
    device: torch.device | str,
    process: int = 0,
    processes: int = 1,
    wait: Callable[[], None] = lambda: None,
    batch_size: int = 64,
) -> TextCache:
    """States of ``texts`` and of "", computed where ``folder`` lacks them, in evaluation mode and the weights' dtype.

    Args:
        reader: ``TextReader``: how texts become tokens.
        text_encoder: the model, which must not be trained while this cache is in use.
        texts: all that will be asked for; each is stored once.
        folder: of all caches; this one is ``texts-<key>`` in it, the key made of weights, tokenizer and reader.
        device: to encode on; the encoder is moved there if there is work.
        process, processes: number of this process and of all that build together.
        wait: barrier of these processes; called twice.
        batch_size: texts encoded at once.

    Raises:
        UserError: for states that float16 cannot hold, or a full disk.
    """
    from roentgen.models.text_encoders import encode_text_states

    device = torch.device(device)
    unique = list(dict.fromkeys(["", *texts]))
    parts = {
        "encoder": fingerprint(text_encoder),
        "class": type(text_encoder).__name__,
        "config": _described(text_encoder.config.to_dict()),
        "tokenizer": tokenizer_hash(reader.tokenizer),
        "window": reader.window,
        "chunks": reader.chunks,
        "masked": reader.masked,
        "chain": TEXT_CHAIN,
        "stored": "float16",
    }
    place = _cache_folder(folder, "texts", parts, process=process)

    @torch.inference_mode()
    def encode(batch: list[str]) -> NDArray[np.float16]:
        tokens = reader.tokens(batch).to(device)
        states = encode_text_states(text_encoder.to(device), tokens, masked=reader.masked).float()
        largest = states.abs().flatten(1).amax(1).cpu()
        bad = ~(largest <= FLOAT16_MAX)  # also where it is NaN
        if bool(bad.any()):
            text = batch[int(bad.nonzero()[0])]
            raise UserError(
                f"the states of the text {text[:80]!r} do not fit float16 (largest {float(largest[bad][0]):g}); "
                "use --text_states online"
            )
        return states.half().cpu().numpy()

    training = text_encoder.training
    text_encoder.eval()  # no dropout
    try:
        store = build_rows(
            place,
            [sha256(text) for text in unique],
            lambda items: [unique[item] for item in items],
            encode,
            what="text states",
            batch_size=batch_size,
            process=process,
            processes=processes,
            wait=wait,
        )
    finally:
        text_encoder.train(training)
    return TextCache(store, unique)


def tokenizer_hash(tokenizer: Any) -> str:
    """A hash of how a tokenizer splits texts: its whole pipeline where it can be written down, else its vocabulary."""
    if tokenizer.is_fast:
        # Truncation and padding are set by the latest call, so they belong to the reader, not to the tokenizer.
        pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
        content = {key: value for key, value in pipeline.items() if key not in ("truncation", "padding")}
    else:
        content = {"vocabulary": tokenizer.get_vocab()}
    content["class"] = type(tokenizer).__name__
    content["special"] = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    content["padding_side"] = tokenizer.padding_side
    return sha256(json.dumps(content, sort_keys=True))[:20]
