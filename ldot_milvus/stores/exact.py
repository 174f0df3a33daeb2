"""Exact search: a query is compared with every row of a stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ldot_milvus.batches import batched
from ldot_milvus.stores.base import Array, Match, Record

PAGE = 1000  # rows compared at a time


def best_first(match: Match) -> tuple[float, str]:
    """Return the sorting key of matches: the largest score first, equal scores by id."""
    return -match.score, match.record.id


def exactly(queries: Array, k: int, records: Iterable[Record]) -> list[list[Match]]:
    """Return the best k records for each query, best first, equal scores by id.

    Args:
        queries: float32 (n, dim).
        k: number of records for each query.
        records: records with embeddings, read a page at a time.
    """
    best: list[list[Match]] = [[] for _ in queries]
    floors = np.full(len(queries), -np.inf, np.float32)  # scores that a row needs to be among the best so far
    for page in batched(records, PAGE):
        scores = queries @ np.stack([read.embedding for read in page if read.embedding is not None]).T
        if len(page) >= k:
            floors = np.fmax(floors, np.partition(scores, -k, axis=1)[:, -k])
        needed = ~(scores < floors[:, None])  # an overflow may have made some of them NaN
        for number in np.flatnonzero(needed.any(axis=1)):
            rows = np.flatnonzero(needed[number])
            scored = [Match(replace(page[row], embedding=None), float(scores[number, row])) for row in rows]
            best[number] = sorted(best[number] + scored, key=best_first)[:k]
            if len(best[number]) == k:
                floors[number] = np.fmax(floors[number], best[number][-1].score)
    return best
