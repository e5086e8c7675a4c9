"""The micro-batcher: images that wait, of any request, are computed together where they may share a batch.

One thread computes, so that models never compete for the processor; there is one for each replica where models compute
on a cluster. Every image has its own seed, and the generators promise that it depends on model, text, seed and sampling
alone: neighbours in a batch change nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from roentgen.errors import UserError
from roentgen.generators.base import Generator, Sample
from roentgen.generators.generate import provenance_of

log = logging.getLogger("roentgen.serving")


class Busy(Exception):
    """The queue is full; nothing was taken."""


class Stopping(Exception):
    """The server takes and begins nothing more."""


class Interrupted(Exception):
    """Another request asked to end this one: what is finished is its answer."""


class _Abandoned(BaseException):
    """Raised inside a batch that nobody waits for any longer. Not an Exception: no handler in between may eat it."""


Make = Callable[[int, Callable[[float], object]], Sample]


@dataclass(frozen=True)
class Event:
    """What happens to a request: an image with its place in it, or the error that ends it; neither is progress."""

    index: int = 0
    sample: Sample | None = None
    error: Exception | None = None


@dataclass(eq=False)
class Ticket:
    """A request in the batcher: how much of it is done, in images, and whether somebody still waits.

    notify: called from the computing thread with each ``Event``. owner: whose it is. kind: by which route it came.
    make: makes the image of an index, with what is to be called at each step; None: the model's ``sample`` does.
    """

    model: Generator = field(repr=False)
    prompt: str = field(repr=False)
    seeds: tuple[int, ...]
    sampling: Any
    notify: Callable[[Event], object] = field(repr=False)
    owner: str = ""
    kind: str = ""
    make: Make | None = field(default=None, repr=False)
    done: float = 0.0
    begun: bool = False
    cancelled: bool = False
    left: int = 0


@dataclass(frozen=True, eq=False)
class _Item:
    ticket: Ticket
    index: int
    key: Hashable


class Batcher:
    """Takes requests, computes them batch by batch in threads of its own.

    batch_size: images of a batch, at most. queue: images that may wait. gather: seconds that the first image of a batch
    waits for others. workers: batches computed at the same time. measured: called with the size of each batch.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        queue: int,
        gather: float = 0.0,
        workers: int = 1,
        measured: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._batch_size, self._longest, self._gather, self._measured = batch_size, queue, gather, measured
        self._waiting: deque[_Item] = deque()
        self._tickets: list[Ticket] = []
        self._changed = threading.Condition()
        self._stopping = self._closed = False
        self._idle = 0
        self._threads = [threading.Thread(target=self._work, name="batcher", daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images that are not being computed yet."""
        return len(self._waiting)

    @property
    def stopping(self) -> bool:
        """Whether nothing more is taken."""
        return self._stopping

    def tickets(self, owner: str | None = None, kind: str | None = None) -> list[Ticket]:
        """Requests that are not answered, of one owner and kind if given."""
        with self._changed:
            found = list(self._tickets)
        return [one for one in found if owner in (None, one.owner) and kind in (None, one.kind)]

    def submit(
        self,
        model: Generator,
        prompt: str,
        seeds: Sequence[int],
        sampling: Any,
        notify: Callable[[Event], object],
        *,
        owner: str = "",
        kind: str = "",
        make: Make | None = None,
    ) -> Ticket:
        """Queue the images of a request that has been checked. Raises Busy or Stopping, and nothing is queued."""
        ticket = Ticket(model, prompt, tuple(seeds), sampling, notify, owner, kind, make, left=len(seeds))
        shared = None if make else (id(model), sampling, model.batch_key(prompt))
        with self._changed:
            if self._stopping:
                raise Stopping
            if len(self._waiting) + len(seeds) > self._longest:
                raise Busy
            self._tickets.append(ticket)
            self._waiting.extend(_Item(ticket, index, shared or (id(ticket), index)) for index in range(len(seeds)))
            self._changed.notify_all()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for it: drop what has not begun, and stop a batch that is computed for nobody else."""
        with self._changed:
            ticket.cancelled = True
            self._drop(ticket)

    def stop(self) -> None:
        """Take nothing more; requests that have begun are finished, those that wait are told (``Stopping``)."""
        with self._changed:
            self._stopping = True
            told = [ticket for ticket in self._tickets if not ticket.begun]
            for ticket in told:
                self._drop(ticket)
            self._changed.notify_all()
        for ticket in told:
            ticket.notify(Event(error=Stopping()))

    def close(self, timeout: float | None = None) -> None:
        """``stop``, and wait until what has begun is done."""
        self.stop()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))

    def _drop(self, ticket: Ticket) -> None:
        self._waiting = deque(item for item in self._waiting if item.ticket is not ticket)
        if ticket in self._tickets:
            self._tickets.remove(ticket)

    # ------------------------------------------------------------------------------------ the thread

    def _work(self) -> None:
        while batch := self._next():
            self._measured(len(batch))
            self._compute(batch)

    def _next(self) -> list[_Item]:
        """The images of the next batch: the one that waits longest, and others that may share it; empty at the end.

        Idle threads share what waits, so that none takes all while another has nothing to do.
        """
        with self._changed:
            self._idle += 1
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._gather and not self._stopping:
                    self._changed.wait_for(lambda: self._fitting() >= self._batch_size or self._stopping, self._gather)
            size = min(self._batch_size, -(-self._fitting() // self._idle))
            key = self._waiting[0].key
            batch = [item for item in self._waiting if item.key == key][:size]
            self._waiting = deque(item for item in self._waiting if item not in batch)
            for item in batch:
                item.ticket.begun = True
            self._idle -= 1
            return batch

    def _fitting(self) -> int:
        return sum(item.key == self._waiting[0].key for item in self._waiting) if self._waiting else 0

    def _compute(self, batch: list[_Item]) -> None:
        def on_step(share: float) -> None:
            if all(item.ticket.cancelled for item in batch):
                raise _Abandoned
            for item in batch:
                with self._changed:  # another thread may compute another image of the same request
                    item.ticket.done += share / len(batch)
                item.ticket.notify(Event())

        delivered = 0
        try:
            for item, sample in zip(batch, self._samples(batch, on_step), strict=True):
                self._deliver(item, sample)
                delivered += 1
        except _Abandoned:
            pass
        except Exception as error:
            self._recover(batch[delivered:], error)

    @staticmethod
    def _samples(batch: list[_Item], on_step: Callable[[float], object]) -> Iterator[Sample]:
        first = batch[0].ticket
        if first.make is not None:
            yield first.make(batch[0].index, on_step)
            return
        texts, seeds = [item.ticket.prompt for item in batch], [item.ticket.seeds[item.index] for item in batch]
        marks = provenance_of(first.model, first.sampling)
        images = first.model.sample(texts, seeds, first.sampling, on_step)
        for item, seed, image in zip(batch, seeds, images, strict=True):
            about = {"prompt": item.ticket.prompt, "seed": str(seed), **marks}
            yield Sample(image, item.ticket.prompt, seed, item.index, about)

    def _recover(self, rest: list[_Item], error: Exception) -> None:
        """One image's error, or too little memory for all, must not cost its neighbours: each alone, once."""
        if len(rest) > 1:
            for item in rest:
                if not item.ticket.cancelled:
                    self._compute([item])
            return
        if not isinstance(error, UserError):
            log.error("an image could not be computed", exc_info=error)
        for item in rest:
            with self._changed:
                item.ticket.cancelled = True
                self._drop(item.ticket)
            item.ticket.notify(Event(error=error))

    def _deliver(self, item: _Item, sample: Sample) -> None:
        ticket = item.ticket
        with self._changed:
            ticket.left -= 1
            if not ticket.left and ticket in self._tickets:
                self._tickets.remove(ticket)
        if not ticket.cancelled:
            ticket.notify(Event(item.index, sample))
