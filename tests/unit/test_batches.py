"""Cutting anything into lists."""

from __future__ import annotations

from ldot_milvus.batches import batched


def test_batches() -> None:
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched([], 3)) == []
