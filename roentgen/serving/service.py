"""What all routes share: a request is checked, queued and waited for; an image is read by a reporter."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from fastapi import Request

from roentgen.generators.base import Editing, Generator, Sample, check_seed, check_text
from roentgen.generators.edit import edit, warnings_of
from roentgen.generators.generate import attentive
from roentgen.serving.batcher import Batcher, Busy, Event, Interrupted, Stopping, Ticket
from roentgen.serving.catalogue import Catalogue, settings_of_family
from roentgen.serving.failures import Failure, log
from roentgen.serving.gallery import Gallery
from roentgen.serving.meters import Meters
from roentgen.serving.settings import Options

LOOK = 0.5  # seconds between looks whether the client is still there
STOPPING = "the server is stopping; send the request again in a while"


@dataclass(frozen=True)
class Asked:
    """A request for images, whatever its format was. ``seed`` None is random; ``settings`` are the family's."""

    prompt: str
    model: str | None = None
    count: int = 1
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """What an edit begins with. image: uint8 grey [H, W]. region: see ``generators.edit.Region``. remove: what goes."""

    image: Any
    region: Any = None
    remove: str = ""
    editing: Editing | None = None


@dataclass
class Making:
    """Images that are being made: what was taken, its events, and what is odd about the request."""

    name: str
    model: Generator
    ticket: Ticket
    queue: asyncio.Queue[Event]
    deadline: float
    warnings: list[str]

    @property
    def share(self) -> float:
        """How much is done, in [0, 1]."""
        return min(1.0, self.ticket.done / len(self.ticket.seeds))


class Service:
    """The models behind the routes."""

    def __init__(self, catalogue: Catalogue, options: Options) -> None:
        self.catalogue, self.options = catalogue, options
        self.meters = Meters(lambda: self.batcher.waiting)
        self.gallery = Gallery(options.limits.kept, options.limits.kept_seconds)
        self.batcher = Batcher(
            batch_size=options.batch_size,
            queue=options.limits.queue,
            gather=options.gather,
            workers=catalogue.workers,
            measured=self.meters.batches.observe,
        )
        self._reading = asyncio.Semaphore(catalogue.workers)
        self._readers = 0

    # ------------------------------------------------------------------------------------ text to images

    async def begin(self, request: Request, asked: Asked, kind: str) -> Making:
        """Check everything and queue it. Failure or UserError where it cannot be done; nothing is queued then."""
        seeds, name, model = self._wanted(asked)
        sampling = await anyio.to_thread.run_sync(_sampling, asked, seeds, model)
        return self._queue(request, name, asked.prompt, seeds, kind, sampling=sampling)

    async def begin_edit(self, request: Request, asked: Asked, change: Change, kind: str) -> Making:
        """The same for edits of an image."""
        seeds, name, model = self._wanted(asked)

        def run(index: int, on_step: Callable[[float], object] | None = None) -> Iterator[Sample]:
            return edit(
                model,
                change.image,
                asked.prompt,
                remove=change.remove,
                region=change.region,
                editing=change.editing,
                seed=seeds[index],
                on_step=on_step,
                **asked.settings,
            )

        def check() -> None:
            check_seed(seeds[0], asked.count - 1)
            _check_settings(asked.settings, model)
            run(0)

        await anyio.to_thread.run_sync(check)

        def make(index: int, on_step: Callable[[float], object]) -> Sample:
            made = next(run(index, on_step))
            return Sample(made.image, made.prompt, made.seed, index, made.provenance)

        making = self._queue(request, name, asked.prompt, seeds, kind, make=make)
        making.warnings += await anyio.to_thread.run_sync(warnings_of, change.image)
        return making

    async def begin_words(self, request: Request, asked: Asked, kind: str) -> tuple[Making, dict[str, Any]]:
        """The same for one image and where its words were looked up: the map of each word, once the image is there."""
        seeds, name, model = self._wanted(asked)
        maps: dict[str, Any] = {}

        sampling = await anyio.to_thread.run_sync(_sampling, asked, seeds, model)
        watched = attentive(model)

        def make(index: int, on_step: Callable[[float], object]) -> Sample:
            image, found = watched.word_maps(asked.prompt, seeds[0], sampling)
            maps.update(found)
            return Sample(image, asked.prompt, seeds[0], index, {})

        return self._queue(request, name, asked.prompt, seeds, kind, make=make), maps

    def _wanted(self, asked: Asked) -> tuple[range, str, Generator]:
        """Seeds of the images, and their model; Failure where a request asks for more than the limits allow."""
        limits = self.options.limits
        if len(asked.prompt) > limits.prompt:
            raise Failure(400, f"prompt: has more than {limits.prompt} characters; shorten it", param="prompt")
        if asked.count > limits.images:
            raise Failure(400, f"n: {asked.count} images, more than {limits.images} at once; ask for fewer", param="n")
        seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
        return range(seed, seed + asked.count), *self.catalogue.generator(asked.model)

    def _queue(self, request: Request, name: str, prompt: str, seeds: range, kind: str, **how: Any) -> Making:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event] = asyncio.Queue()

        def notify(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(queue.put_nowait, event)

        model = self.catalogue.generators[name]
        how = {"sampling": None, **how, "owner": request.scope.get("holder", ""), "kind": kind}
        try:
            ticket = self.batcher.submit(model, prompt, seeds, notify=notify, **how)
        except Busy:
            raise Failure(429, "too many images wait already; send the request again in a while", retry=5) from None
        except Stopping:
            raise Failure(503, STOPPING, retry=10) from None
        if self.options.log_prompts:
            log.info("prompt %r, %d images from seed %d", prompt, len(seeds), seeds[0])
        unknown = [f"word never seen in training: {word}" for word in model.info.unknown_words(prompt)]
        return Making(name, model, ticket, queue, loop.time() + self.options.limits.seconds, unknown)

    async def events(self, making: Making, request: Request | None) -> AsyncGenerator[Event, None]:
        """What happens until the last image is there. With ``request`` a client that has gone is noticed.

        However it is left, nothing of it goes on. Raises Failure, UserError, or what ended the ticket.
        """
        loop = asyncio.get_running_loop()
        left, looked = len(making.ticket.seeds), loop.time()
        try:
            while left:
                event = None
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        event = await making.queue.get()
                if loop.time() > making.deadline:
                    raise Failure(
                        503, f"not done within {self.options.limits.seconds} s; ask for fewer images or steps", retry=30
                    )
                if request is not None and loop.time() - looked > LOOK:
                    looked = loop.time()
                    if await request.is_disconnected():
                        raise Failure(499, "the client has gone")
                if event is None:
                    continue
                if event.error is not None:
                    raise Failure(503, STOPPING, retry=10) if isinstance(event.error, Stopping) else event.error
                if event.sample is not None:
                    left -= 1
                    self.meters.images.labels(making.name).inc()
                yield event
        finally:
            self.batcher.cancel(making.ticket)

    async def collect(self, making: Making, request: Request) -> list[Sample]:
        """All images of a request, in order; those that are finished where it was interrupted."""
        found: dict[int, Sample] = {}
        with suppress(Interrupted):
            async with aclosing(self.events(making, request)) as events:
                async for event in events:
                    if event.sample is not None:
                        found[event.index] = event.sample
        return [found[index] for index in sorted(found)]

    # ------------------------------------------------------------------------------------ images to text

    async def read(self, name: str | None, images: list[Any], contexts: list[Any]) -> tuple[str, list[Any]]:
        """Reports of images by a reporter, with its name; as many requests at a time read as there are workers."""
        known, reporter = self.catalogue.reporter(name)
        if self._readers >= self.options.limits.queue:
            raise Failure(429, "too many images wait to be read; send the request again in a while", retry=5)
        self._readers += 1
        try:
            async with self._reading:
                reports = await anyio.to_thread.run_sync(lambda: reporter.report_many(images, contexts))
        finally:
            self._readers -= 1
        self.meters.reports.labels(known).inc(len(images))
        return known, reports


def _sampling(asked: Asked, seeds: range, model: Generator) -> Any:
    """The sampling of a request; Failure or UserError where its text, seeds or settings cannot be."""
    check_text(asked.prompt)
    check_seed(seeds[0], asked.count - 1)
    _check_settings(asked.settings, model)
    sampling = model.sampling(**asked.settings)
    model.check(asked.prompt)
    return sampling


def _check_settings(settings: Mapping[str, Any], model: Generator) -> None:
    """Failure where a request has a setting of another family of models."""
    for name in settings:
        if name not in settings_of_family(model):
            raise Failure(400, f"{name}: {model.info.name} has no such setting; leave it out", param=name)


HIDDEN = ("prompt", "seed", "model", "model_hash", "dtype", "version", "software", "synthetic")


def settings_of(sample: Sample) -> dict[str, str]:
    """What an image's marks say of its settings of sampling and editing."""
    return {key: value for key, value in sample.provenance.items() if key not in HIDDEN}
