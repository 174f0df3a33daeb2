"""Order and choice of the rows that a search of Milvus returns, where they are settled in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ldot_milvus.stores.base import Match, Record
from ldot_milvus.stores.exact import best_first
from ldot_milvus.stores.milvus.schema import record


def ranked(answers: Iterable[Iterable[Mapping[str, Any]]]) -> list[list[Match]]:
    """Return the matches of each query in an answer of ``MilvusClient.search``, best first, equal scores by id."""
    return [
        sorted((Match(record(hit["entity"]), float(hit["distance"])) for hit in answer), key=best_first)
        for answer in answers
    ]


def filtered(
    found: list[list[Match]], matches: Callable[[Record], bool], k: int, limit: int, count: Callable[[], int]
) -> list[list[Match]] | None:
    """Return the first k rows of each query that match; None if there may be more than those that were found.

    Args:
        found: up to ``limit`` rows of each query, best first.
        matches: whether a row matches.
        k: number of rows wanted.
        limit: number of rows that were asked for.
        count: returns the number of rows among which the search was made.
    """
    results = [[match for match in line if matches(match.record)][:k] for line in found]
    if all(len(result) == k for result in results):
        return results
    if max(map(len, found)) == limit:
        return None
    rows = count()  # an approximate index may have found too few
    return results if all(len(line) == rows for line in found) else None
