"""Groups of photos that show the same: near vectors, confirmed by a perceptual hash. Nothing is written.

Each row is searched once among its nearest rows. Work is that of n searches, and memory grows with the number of photos
that have a near-duplicate, not with n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from ldot_milvus.arguments import real_number
from ldot_milvus.batches import batched
from ldot_milvus.errors import CollectionNotFound, InputError, UsageError
from ldot_milvus.images import decode
from ldot_milvus.search.nearness import THRESHOLD, look_the_same, neighbours, unit, vectors_of
from ldot_milvus.search.perceptual_hash import DECODE_AT, PerceptualHash, perceptual_hash
from ldot_milvus.sources.reading import THREADS, located, read_all
from ldot_milvus.stores.base import Record, VectorStore

VECTOR_ALONE = 0.985
"""Least cosine of the vectors of two photos of which one cannot be read."""

_BATCH = 512  # rows searched at a time: FAISS is several times slower with fewer
_VECTORS = 512  # vectors of neighbours in memory at a time


@dataclass(frozen=True)
class Duplicate:
    """One photo of a group.

    Attributes:
        record: the photo's row, without its embedding.
        cosine: cosine of its vector and the vector of the group's first photo.
        readable: whether the photo could be read. If not, it is in the group by its vector alone.
    """

    record: Record
    cosine: float
    readable: bool


def find_duplicates(
    store: VectorStore, *, threshold: float = THRESHOLD, progress: Callable[[int], object] | None = None
) -> list[list[Duplicate]]:
    """Find groups of photos that show the same, such as copies that were scaled, re-encoded, trimmed or mirrored.

    Two photos of a namespace are duplicates if the cosine of their vectors is at least ``threshold`` and their
    perceptual hashes differ in at most 10 of 64 bits. Duplicates of duplicates are in the same group. A photo that
    cannot be read joins the group of the nearest vector, if the cosine is at least 0.985 too. Only photos with a near
    vector are read.

    Args:
        store: the collection. Each photo is compared with the up to 512 rows that have the largest inner products with
            it, so a pair is missed if more rows than that come before it, or if the index does not find it.
        threshold: least cosine, above 0 and at most 1. Vectors of any length are compared.
        progress: called with the number of rows that were compared.

    Returns:
        Groups of at least two photos, the largest groups first. In a group, readable photos come before others, and
        photos of more pixels before smaller ones.

    Raises:
        UsageError: the threshold is out of range.
        CollectionNotFound: the collection does not exist.
    """
    threshold = real_number(threshold, "the threshold", 0, 1)
    if not threshold:
        raise UsageError(f"the threshold is 0: give a cosine above 0 and at most 1, such as {THRESHOLD}")
    if store.dim is None:
        raise CollectionNotFound(
            f"{store.address} has no collection {store.collection!r}: "
            'ingest photos first with "celery -A workers enqueue PATH..."'
        )
    first = next(store.iterate({"kind": "image"}, batch_size=1), None)
    if first is None:
        return []
    # A filter costs time, and most collections have one namespace.
    split = store.count({"kind": "image", "namespace": first.namespace}) < store.count({"kind": "image"})
    photos = _Photos()
    groups, unread = _Groups(), _Groups()
    nearest: dict[str, tuple[float, str]] = {}  # of each unreadable photo: the cosine and the id of a readable one
    for batch in batched(store.iterate({"kind": "image"}, batch_size=_BATCH, with_embeddings=True), _BATCH):
        for pairs in _near_pairs(store, batch, threshold, split):
            photos.read(record for _, a, b in pairs for record in (a, b))
            for cosine, a, b in pairs:
                hash_a, hash_b = photos.hash(a.id), photos.hash(b.id)
                if hash_a and hash_b:
                    if look_the_same(hash_a, hash_b):
                        groups.join(a.id, b.id)
                elif cosine < VECTOR_ALONE:
                    continue
                elif hash_a or hash_b:
                    lost, other = (b.id, a.id) if hash_a else (a.id, b.id)
                    nearest[lost] = max((cosine, other), nearest.get(lost, (0.0, "")))
                else:
                    unread.join(a.id, b.id)
        if progress is not None:
            progress(len(batch))
    for lost, (_, other) in nearest.items():  # one photo each, so that they never connect two that look different
        groups.join(lost, other)
    for ids in unread.members():
        rest = [id for id in ids if id not in nearest]
        for id in rest[1:]:
            groups.join(id, rest[0])
    found = [_best_first(store, ids, photos) for ids in groups.members()]
    return sorted(
        (group for group in found if len(group) > 1),
        key=lambda group: (-len(group), group[0].record.source, group[0].record.id),
    )


def _near_pairs(
    store: VectorStore, batch: list[Record], threshold: float, split: bool
) -> Iterator[list[tuple[float, Record, Record]]]:
    """Yield the near pairs, some at a time: their cosine, a row of the batch and another row of its namespace."""
    by_namespace = sorted(batch, key=lambda record: record.namespace)
    for namespace, group in groupby(by_namespace, key=lambda record: record.namespace):
        rows = list(group)
        queries = vectors_of(rows)
        units = unit(queries)
        # If a duplicate's vector is the longer one of the two, their product is at least the threshold times the
        # squared length of the query's. (If it is the shorter one, its own search finds the pair.)
        least = threshold * np.square(queries).sum(axis=1)
        ids = set[str]().union(*neighbours(store, queries, least, {"namespace": namespace} if split else None))
        for some in batched(sorted(ids), _VECTORS):
            others = store.get(some, with_embeddings=True)
            if not others:  # deleted meanwhile
                continue
            cosines = units @ unit(vectors_of(others)).T
            yield [
                (float(cosines[i, j]), rows[i], others[j])
                for i, j in np.argwhere(cosines.round(6) >= threshold)
                if rows[i].id != others[j].id and others[j].namespace == namespace
            ]


class _Photos:
    """Hashes and file sizes of the photos that have a near vector."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[PerceptualHash | None, int]] = {}

    def read(self, records: Iterable[Record]) -> None:
        """Read and hash the photos that are not known yet, a few at a time."""
        missing = {record.id: record for record in records if record.id not in self._known}
        for few in batched(missing.values(), THREADS):
            for record, known in zip(few, _hash_all(few), strict=True):
                self._known[record.id] = known

    def hash(self, id: str) -> PerceptualHash | None:
        """Return the hash of a photo; None if the photo could not be read."""
        return self._known[id][0]

    def size(self, id: str) -> int:
        """Return the size of a photo's file in bytes; 0 if it could not be read."""
        return self._known[id][1]


def _hash_all(records: list[Record]) -> Iterator[tuple[PerceptualHash | None, int]]:
    sources = [located(record.source) for record in records]
    for record, data in zip(records, read_all(sources), strict=True):
        try:
            if isinstance(data, InputError):
                raise data
            yield perceptual_hash(decode(data, name=record.source, draft_to=DECODE_AT).image), len(data)
        except InputError:
            yield None, 0


class _Groups:
    """Disjoint sets of ids (union-find with path halving)."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def root(self, id: str) -> str:
        """Return the id that stands for the group of ``id``."""
        parents = self._parents
        parents.setdefault(id, id)
        while parents[id] != id:
            parents[id] = parents[parents[id]]
            id = parents[id]
        return id

    def join(self, a: str, b: str) -> None:
        """Make one group of the groups of two ids."""
        self._parents[self.root(a)] = self.root(b)

    def members(self) -> list[list[str]]:
        """Return the ids of each group."""
        members: dict[str, list[str]] = {}
        for id in self._parents:
            members.setdefault(self.root(id), []).append(id)
        return list(members.values())


def _best_first(store: VectorStore, ids: list[str], photos: _Photos) -> list[Duplicate]:
    """Return the existing rows of a group, best first."""
    records = store.get(ids, with_embeddings=True)
    if not records:
        return []
    records.sort(key=lambda r: (photos.hash(r.id) is None, -r.width * r.height, -photos.size(r.id), r.source, r.id))
    vectors = unit(vectors_of(records))
    return [
        Duplicate(replace(record, embedding=None), round(float(cosine), 6), photos.hash(record.id) is not None)
        for record, cosine in zip(records, vectors @ vectors[0], strict=True)
    ]
