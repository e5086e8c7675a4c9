"""Models behind Ray Serve: replicas on a cluster compute, this process answers the clients.

Keys, limits, queue and addresses stay here, and so do the checks of a request; a batch goes to a replica that Ray Serve
finds idle. Ray Serve starts a replica again that has died, and another one computes its batch: an image depends on its
seed, not on where it is made. Needs the extra ``ray``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import numpy as np

from roentgen.cluster import connect, require_ray
from roentgen.errors import UserError, install
from roentgen.files import explained
from roentgen.generators.base import Attentive, Editing, Editor, Edits, Generator, Sampling
from roentgen.serving import catalogue
from roentgen.serving.catalogue import Catalogue

RETRIES = 3
"""Times that a batch is given to another replica when its own has died."""
DONE = object()


@dataclass(frozen=True)
class Wish:
    """What each replica loads; ``hashes`` are those of the models, which must be equal there."""

    models: tuple[str, ...]
    reporters: tuple[str, ...]
    device: str
    dtype: str
    compile: bool
    hashes: Mapping[str, str]


@contextlib.contextmanager
def spread(known: Catalogue, address: str, wish: Wish, replicas: int | None) -> Iterator[Catalogue]:
    """``known`` with models that compute on so many replicas (None: one for each GPU, else CPU, of the cluster).

    Raises:
        UserError: Ray is not installed or not reachable, the cluster is too small, the replicas do not start.
    """
    require_ray(address)
    try:
        from ray import serve
    except ImportError:
        raise UserError(f"--ray {address}: Ray is here without Ray Serve; {install('ray')}") from None
    ray = connect(address)
    try:
        gpus = 0 if wish.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        room = gpus or int(ray.cluster_resources().get("CPU", 0))
        count = replicas or max(1, room)
        if count > room:
            kind = "GPUs" if gpus else "CPUs"
            raise UserError(f"--replicas {count}: the cluster has {room} {kind}, one a replica; ask for fewer")
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        name = f"roentgen-{uuid.uuid4().hex[:8]}"
        options = {"num_cpus": 1, "num_gpus": 1} if gpus else {"num_cpus": 1}
        deployment = serve.deployment(
            num_replicas=count, max_ongoing_requests=1, ray_actor_options=options,
            logging_config={"log_level": "ERROR", "enable_access_log": False},
        )(Replica)  # fmt: skip
        serve.start(proxy_location="Disabled")  # the clients come to us
        try:
            with explained(
                f"--ray {address}: the replicas did not start",
                "install and fetch the same on all machines of the cluster",
                (RuntimeError, ray.exceptions.RayError),
            ):
                handle = serve.run(deployment.bind(wish), name=name, route_prefix=None)
                places = handle.places.remote().result()
            calls = Calls(ray, handle)
            yield Catalogue(
                {name: remote(model, calls, places[name]) for name, model in known.generators.items()},
                {name: RemoteReporter(one.info, calls) for name, one in known.reporters.items()},
                known.no_reporter,
                workers=count,
            )
        finally:
            with contextlib.suppress(Exception):  # the cluster may have gone before us
                serve.delete(name)
    finally:
        ray.shutdown()


# -------------------------------------------------------------------------------------- on the cluster


class _Left(BaseException):
    """Nobody waits for a batch any longer. Not an Exception: no handler in between may eat it."""


class Replica:
    """In a worker: the models, loaded once; one batch at a time."""

    def __init__(self, wish: Wish) -> None:
        self.catalogue = catalogue.load(
            wish.models, wish.reporters, device=wish.device, dtype=wish.dtype, compile=wish.compile
        )
        found = {name: model.info.hash for name, model in self.catalogue.generators.items()}
        if found != wish.hashes:
            raise UserError(f"a machine of the cluster has other models or versions ({found}, not {wish.hashes})")

    def places(self) -> dict[str, tuple[str, str]]:
        """Device and dtype of each model here."""
        return {name: (model.info.device, model.info.dtype) for name, model in self.catalogue.generators.items()}

    async def compute(self, kind: str, name: str, *words: Any) -> AsyncIterator[Any]:
        """A batch by a model's ``sample``, ``edit`` or ``word_maps``: shares of the work as floats, and each result, in
        a tuple, as it is ready."""
        model: Any = self.catalogue.generators[name]
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Any]()
        left = threading.Event()

        def tell(event: Any) -> None:
            if left.is_set():
                raise _Left
            loop.call_soon_threadsafe(events.put_nowait, event)

        def work() -> None:
            try:
                if kind == "word_maps":
                    tell((model.word_maps(*words),))
                else:
                    for made in (model.edit if kind == "edit" else model.sample)(*words, tell):
                        tell((made,))
                tell(DONE)
            except _Left:
                pass
            except Exception as error:
                loop.call_soon_threadsafe(events.put_nowait, error)

        # In a thread: the loop of a replica has to answer whether it is healthy.
        threading.Thread(target=work, name="compute", daemon=True).start()
        try:
            while (event := await events.get()) is not DONE:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            left.set()

    async def report(self, name: str | None, images: list[Any], contexts: list[Any]) -> list[Any]:
        """Reports of images by the reporter of that name."""
        _, reporter = self.catalogue.reporter(name)
        return list(await anyio.to_thread.run_sync(lambda: reporter.report_many(images, contexts)))


# --------------------------------------------------------------------------------------- in the server


class Calls:
    """Calls of the replicas, which are made again where a replica dies."""

    def __init__(self, ray: Any, handle: Any) -> None:
        self.ray, self.handle = ray, handle

    def compute(self, on_step: Callable[[float], object] | None, *words: Any) -> Iterator[Any]:
        """Each result of ``Replica.compute`` in order, once. UserError of the replica."""
        given = 0
        for left in reversed(range(RETRIES + 1)):
            said, number = 0.0, 0
            events = self.handle.options(stream=True).compute.remote(*words)
            try:
                for event in events:
                    if isinstance(event, tuple):
                        number += 1
                        if number > given:
                            given = number
                            yield event[0]
                    elif on_step is not None:
                        said += event
                        on_step(event)
                return
            except self.ray.exceptions.RayError as error:
                self._raise_unless_lost(error, left)
                if on_step is not None:
                    on_step(-said)
            finally:
                events.cancel()

    def report(self, *words: Any) -> list[Any]:
        """``Replica.report``."""
        for left in reversed(range(RETRIES + 1)):
            try:
                return list(self.handle.report.remote(*words).result())
            except self.ray.exceptions.RayError as error:
                self._raise_unless_lost(error, left)
        raise AssertionError("the last try either returns or raises")

    def _raise_unless_lost(self, error: Any, left: int) -> None:
        if isinstance(error, self.ray.exceptions.RayTaskError):
            raise error.cause from None
        if not left:
            raise error


class Remote:
    """A generator that computes on the replicas; what needs no network is done here, by the model itself."""

    def __init__(self, model: Generator, calls: Calls, place: tuple[str, str]) -> None:
        self.model, self.calls = model, calls
        self.info = dataclasses.replace(model.info, device=place[0], dtype=place[1])

    @property
    def pixels(self) -> int:
        return self.model.pixels

    def check(self, text: str, flag: str = "prompt") -> None:
        self.model.check(text, flag)

    def sampling(self, **settings: Any) -> Sampling:
        return self.model.sampling(**settings)

    def batch_key(self, text: str) -> Hashable:
        return self.model.batch_key(text)

    def sample(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampling: Any,
        on_step: Callable[[float], object] | None = None,
    ) -> Iterator[np.ndarray]:
        return self.calls.compute(on_step, "sample", self.info.name, list(texts), list(seeds), sampling)

    def watch(self, text: str, seed: int, sampling: Any) -> Iterator[np.ndarray]:
        return self.model.watch(text, seed, sampling)

    def reconstruct(self, pixels: np.ndarray) -> np.ndarray:
        return self.model.reconstruct(pixels)


class RemoteEditor(Remote):
    """The same of a family that edits."""

    def edit(
        self, batch: Edits, sampling: Any, editing: Editing, on_step: Callable[[float], object] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self.calls.compute(on_step, "edit", self.info.name, batch, sampling, editing)


class RemoteAttentive(RemoteEditor):
    """The same of a family that edits, and says where it looked words up."""

    def word_maps(self, text: str, seed: int, sampling: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        made: tuple[np.ndarray, dict[str, np.ndarray]] = next(
            self.calls.compute(None, "word_maps", self.info.name, text, seed, sampling)
        )
        return made


def remote(model: Generator, calls: Calls, place: tuple[str, str]) -> Remote:
    """``model``, computing on the replicas; ``place`` is the device and dtype there."""
    if isinstance(model, Editor):
        return (RemoteAttentive if isinstance(model, Attentive) else RemoteEditor)(model, calls, place)
    return Remote(model, calls, place)


class RemoteReporter:
    """A reporter that reads on the replicas."""

    def __init__(self, info: Any, calls: Calls) -> None:
        self.info, self.calls = info, calls

    def report_many(self, images: Sequence[Any], contexts: Sequence[Any] = ()) -> list[Any]:
        return self.calls.report(self.info.name, list(images), list(contexts))
