"""Seconds of each stage of a chunk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ldot_milvus.forks import Lock


class Clock:
    """Sums the seconds of each stage; overlapping stages count in full.

    Args:
        seconds: the sums by stage, which the clock changes.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._lock = Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            with self._lock:
                self._seconds[stage] = self._seconds.get(stage, 0.0) + spent
