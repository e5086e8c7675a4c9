"""Batches made ahead in threads, so that the device does not wait for data."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """``make(number)`` for each number, in order, up to ``ahead`` of them made while earlier ones are used.

    Threads, not processes: decoding, hashing and copying release the interpreter's lock, and caches stay mapped once.
    ``waited`` is the time in seconds that the consumer stood still, the first batch left out.
    """

    def __init__(self, make: Callable[[int], T], numbers: Iterable[int], *, ahead: int, threads: int) -> None:
        self._make = make
        self._numbers = iter(numbers)
        self._ahead = max(1, ahead)
        self._threads = max(1, threads)
        self.waited = 0.0

    def __iter__(self) -> Iterator[T]:
        with ThreadPoolExecutor(self._threads, thread_name_prefix="batch") as pool:
            waiting: deque[Future[T]] = deque()
            try:
                first = True
                while True:
                    while len(waiting) < self._ahead and (number := next(self._numbers, None)) is not None:
                        waiting.append(pool.submit(self._make, number))
                    if not waiting:
                        return
                    started = time.perf_counter()
                    batch = waiting.popleft().result()
                    if not first:
                        self.waited += time.perf_counter() - started
                    first = False
                    yield batch
            finally:
                for future in waiting:
                    future.cancel()
