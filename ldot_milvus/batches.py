"""Anything, a few at a time (``itertools.batched`` of Python 3.12)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most ``size`` values."""
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch
