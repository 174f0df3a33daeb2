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


def filtered(found: list[list[Match]], matches: Callable[[Record], bool], k: int) -> list[list[Match]]:
    """Return the first k rows of each query that match."""
    return [[match for match in line if matches(match.record)][:k] for line in found]
