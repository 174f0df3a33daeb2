"""Batches of texts: their order, and the threads that compute them."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from ldot_milvus.forks import compute_threads
from ldot_milvus.models.base import Array
from ldot_milvus.models.tokens import by_length


def test_batches_are_computed_by_several_threads_and_come_in_the_order_of_the_texts() -> None:
    tokens = [[101] * (1 + number % 37) for number in range(300)]
    barrier = threading.Barrier(2, timeout=20)
    names: set[str] = set()

    def compute(rows: list[int]) -> Array:
        if len(names) < 2:
            names.add(threading.current_thread().name)
            barrier.wait()  # ends only if two batches are computed at once
        return np.array([[len(tokens[row]), row] for row in rows], np.float32)

    result = by_length(tokens, 8, 2, compute, threads=2)
    assert len(names) == 2
    np.testing.assert_array_equal(result, [[len(row), number] for number, row in enumerate(tokens)])


@pytest.mark.parametrize(("given", "threads"), [("1", 1), ("", 2), ("many", 2), ("0", 2), ("64", 2)])
def test_threads_are_those_of_openmp_and_no_more_than_cores(
    given: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldot_milvus.forks.cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert compute_threads() == threads
