"""Iterate in batches (``itertools.batched`` of Python 3.12), and compute one value ahead of its use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` values; the last one may be shorter."""
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


def prefetch(executor: Executor, function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
    """Yield ``function(value)`` for each value, in order. While one result is in use, only the next one is computed."""
    pending: Future[R] | None = None
    for value in values:
        ready, pending = pending, executor.submit(function, value)
        if ready is not None:
            yield ready.result()
    if pending is not None:
        yield pending.result()
