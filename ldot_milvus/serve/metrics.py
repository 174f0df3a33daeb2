"""Prometheus metrics of the service."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counts and durations of one service.

    Args:
        waiting: returns the number of searches that wait.
        ready: returns whether the model is loaded.
    """

    def __init__(self, waiting: Callable[[], int], ready: Callable[[], bool]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "ldot_requests", "Requests answered, by route and status.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "ldot_request_seconds", "Duration of requests, by route.", ["route"], registry=self._registry,
            buckets=_SECONDS,
        )  # fmt: skip
        self._stages = Histogram(
            "ldot_search_seconds", "Duration of the stages of searches: of a batch, and in the queue of a search.",
            ["stage"], registry=self._registry, buckets=_SECONDS,
        )  # fmt: skip
        self._batches = Histogram(
            "ldot_batch_searches", "Searches that were computed together.", registry=self._registry,
            buckets=(1, 2, 4, 8, 16, 32),
        )  # fmt: skip
        queue = Gauge("ldot_search_queue", "Searches that wait.", registry=self._registry)
        queue.set_function(waiting)
        up = Gauge("ldot_ready", "1 if the model is loaded, else 0.", registry=self._registry)
        up.set_function(lambda: float(ready()))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer.

        Args:
            route: template of the route, such as ``/v1/rows/{id}``.
            status: its status.
            seconds: its duration.
        """
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, size: int, stages: Mapping[str, float]) -> None:
        """Count a batch of searches and the seconds of its stages."""
        self._batches.observe(size)
        for stage, seconds in stages.items():
            self._stages.labels(stage).observe(seconds)

    def queued(self, seconds: float) -> None:
        """Count the seconds that a search waited."""
        self._stages.labels("queue").observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
