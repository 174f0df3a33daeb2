"""Order and choice of the rows that a search of Milvus returns, where they are settled in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ldot_milvus.batches import batched
from ldot_milvus.stores.base import Array, Match, Record
from ldot_milvus.stores.milvus.messages import PAGE
from ldot_milvus.stores.milvus.schema import record


def ranked(answers: Iterable[Iterable[Mapping[str, Any]]]) -> list[list[Match]]:
    """Return the matches of each query in an answer of ``MilvusClient.search``, best first, equal scores by id."""
    return [
        sorted((Match(record(hit["entity"]), float(hit["distance"])) for hit in answer), key=_best_first)
        for answer in answers
    ]


def filtered(found: list[list[Match]], matches: Callable[[Record], bool], k: int) -> list[list[Match]]:
    """Return the first k rows of each query that match."""
    return [[match for match in line if matches(match.record)][:k] for line in found]


def exactly(queries: Array, k: int, records: Iterator[Record]) -> list[list[Match]]:
    """Return the best k records for each query by exact comparison, a page at a time.

    Args:
        queries: float32 (n, dim).
        k: number of records for each query.
        records: records with embeddings.
    """
    best: list[list[Match]] = [[] for _ in queries]
    for page in batched(records, PAGE):
        scores = queries @ np.stack([read.embedding for read in page if read.embedding is not None]).T
        for number, line in enumerate(scores.tolist()):
            scored = [Match(replace(read, embedding=None), score) for read, score in zip(page, line, strict=True)]
            best[number] = sorted(best[number] + scored, key=_best_first)[:k]
    return best


def _best_first(match: Match) -> tuple[float, str]:
    return -match.score, match.record.id
