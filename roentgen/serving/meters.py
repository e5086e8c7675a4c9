"""What Prometheus reads: requests, images, batches, queue; one registry an application."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from roentgen.provenance import __version__

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Meters:
    """Counters of one application. Routes are templates and no client's text is a label, so their number is bounded."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("roentgen_requests", "answered requests", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "roentgen_request_seconds", "from arrival to answer", ["route"], buckets=SECONDS, registry=registry
        )
        self.images = Counter("roentgen_images", "images made", ["model"], registry=registry)
        self.reports = Counter("roentgen_reports", "images read", ["model"], registry=registry)
        self.batches = Histogram(
            "roentgen_batch_images", "images computed at once", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.active = Gauge("roentgen_requests_active", "requests that are not answered yet", registry=registry)
        queue = Gauge("roentgen_queue_images", "images that wait", registry=registry)
        queue.set_function(waiting)
        about = Gauge("roentgen_build", "the version that runs", ["version"], registry=registry)
        about.labels(__version__).set(1)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
