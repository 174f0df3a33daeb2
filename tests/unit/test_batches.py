"""Cutting anything into lists."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ldot_milvus.batches import batched, prefetch


def test_batches() -> None:
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched([], 3)) == []


def test_one_ahead_and_no_more() -> None:
    begun: list[int] = []

    def work(value: int) -> int:
        begun.append(value)
        return value * 10

    with ThreadPoolExecutor(1) as executor:
        results = prefetch(executor, work, range(5))
        for place, result in enumerate(results):
            assert result == place * 10
            assert len(begun) <= place + 2
    assert begun == list(range(5))


def test_one_ahead_raises_where_its_result_is_due() -> None:
    def work(value: int) -> float:
        return 1 / value

    with ThreadPoolExecutor(1) as executor:
        results = prefetch(executor, work, [1, 0, 2])
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)
