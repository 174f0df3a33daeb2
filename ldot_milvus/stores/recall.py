"""The recall of an index: the share of the nearest rows that its searches return, measured on the collection itself.

Some of the rows are the queries. The exact neighbours come from reading the rows with their vectors, since no server
offers an exact search beside an approximate index. A restriction to a few rows by a filter would not do: servers
compare these without the index.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import islice

import numpy as np

from ldot_milvus.batches import batched
from ldot_milvus.stores.base import KINDS, Array, VectorStore
from ldot_milvus.stores.exact import exactly

log = logging.getLogger(__name__)

RECALL = "recall"
"""Name of the property with the last measurement of a collection."""

LEAST_RECALL = 0.95
"""Recall below which ``auto`` builds another type of index."""

K = 10
QUERIES = 300
MOST_ROWS = 200_000
"""Rows that are read; in larger collections the neighbours among these rows are judged."""
LEAST_ROWS = 1024
"""Rows from which an index is measured: servers build none over fewer rows in a segment."""
_TIE = 1e-5  # of the largest score: rounding of sums in another order
_AT_A_TIME = 100  # queries in one search: their answers contain the metadata of the rows


@dataclass(frozen=True)
class Recall:
    """A measurement.

    Attributes:
        recall: share of the ``k`` nearest rows that a search returned, from 0 to 1.
        index: index type.
        k: number of rows asked for.
        queries: number of queries.
        rows: rows in the collection of the kind that was searched.
        read: how many of them the answers were compared with.
        date: day of the measurement in UTC, ``YYYY-MM-DD``.
    """

    recall: float
    index: str
    k: int
    queries: int
    rows: int
    read: int
    date: str

    @property
    def sufficient(self) -> bool:
        """Whether the recall is at least ``LEAST_RECALL``."""
        return self.recall >= LEAST_RECALL

    @classmethod
    def of(cls, store: VectorStore) -> Recall | None:
        """Return the last measurement of the index that the collection has; None without one."""
        text, index = store.properties.get(RECALL), store.index
        last = None if text is None else cls(**json.loads(text))
        return None if last is None or index is None or last.index != index.index_type else last

    def __str__(self) -> str:
        among = f"{self.read:,} of {self.rows:,} rows" if self.read < self.rows else f"{self.rows:,} rows"
        return f"{self.index} has recall@{self.k} {self.recall:.3f} ({self.queries} queries, {among}, {self.date})"


def measure(store: VectorStore) -> Recall | None:
    """Measure the recall of a collection's index, log it, and keep it in the property ``RECALL``.

    The kind with more rows, images or texts, is measured: ``QUERIES`` of its first ``MOST_ROWS`` rows by id are
    searched among all rows, and the answers are compared with all of these first rows. A query's own row does not
    count. The scores of the answers are computed again from the stored vectors, and rows that tie with the last
    neighbour are as good as it.

    Args:
        store: the collection.

    Returns:
        The measurement; None for fewer than ``LEAST_ROWS`` rows, or if the store does not say which index it has.

    Raises:
        StoreError: the store cannot be read or written.
    """
    counts = {kind: store.count({"kind": kind}) for kind in KINDS}
    kind = max(KINDS, key=counts.__getitem__)
    rows, of_kind, index = counts[kind], {"kind": kind}, store.index
    if rows < LEAST_ROWS or index is None:
        return None
    started = time.monotonic()
    read = min(rows, MOST_ROWS)
    ids = [row.id for row in islice(store.iterate(of_kind), 0, read, max(1, read // QUERIES))][:QUERIES]
    own = _vectors(store, ids)
    queries = np.stack(list(own.values()))
    answers = [line for some in batched(queries, _AT_A_TIME) for line in store.search(np.stack(some), K + 1, kind=kind)]
    nearest = exactly(queries, K + 1, islice(store.iterate(of_kind, with_embeddings=True), read))
    vectors = _vectors(store, sorted({match.record.id for answer in answers for match in answer}))
    judged: list[bool] = []
    for (id, query), neighbours, answer in zip(own.items(), nearest, answers, strict=True):
        known = {match.record.id: match.score for match in neighbours if match.record.id != id}
        others = [match.record.id for match in answer if match.record.id != id]
        judged += _judged(query, known, others[:K], vectors)
    if not judged:
        return None
    date = datetime.now(timezone.utc).date().isoformat()
    measured = Recall(round(float(np.mean(judged)), 4), index.index_type, K, len(queries), rows, read, date)
    store.set_properties({RECALL: json.dumps(asdict(measured))})
    log.info("collection %r: %s; measured in %.0f s", store.collection, measured, time.monotonic() - started)
    return measured


def _judged(query: Array, known: dict[str, float], answer: list[str], vectors: dict[str, Array]) -> list[bool]:
    """Return for each row read that belongs to the best K of all rows read and answered whether the answer has it.

    If the whole collection was read, these are its nearest K rows, and the mean of the result is the usual recall.

    Args:
        query: float32 (dim,).
        known: scores of the best rows read, by id.
        answer: ids that the index returned.
        vectors: vectors of these ids.
    """
    tie = _TIE * max(map(abs, known.values()))
    answered = {id: float(query @ vectors[id]) + tie for id in answer if id in vectors}  # before rows of equal scores
    scores = {**known, **answered}
    return [id in answered for id in sorted(scores, key=scores.__getitem__, reverse=True)[:K] if id in known]


def _vectors(store: VectorStore, ids: list[str]) -> dict[str, Array]:
    rows = store.get(ids, with_embeddings=True)
    return {row.id: row.embedding for row in rows if row.embedding is not None}
