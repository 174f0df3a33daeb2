"""Anything, a few at a time (``itertools.batched`` of Python 3.12), and one ahead of who uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most ``size`` values."""
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


def prefetch(executor: Executor, function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
    """``function`` of each value in order; while one result is used, the next is computed, and no more than that."""
    coming: Future[R] | None = None
    for value in values:
        ready, coming = coming, executor.submit(function, value)
        if ready is not None:
            yield ready.result()
    if coming is not None:
        yield coming.result()
