"""The FAISS indexes of one collection in the memory of this process: one for images, one for texts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ldot_milvus.stores.base import KINDS, Array
from ldot_milvus.stores.index_spec import AUTO, IndexSpec, choose
from ldot_milvus.stores.local.indexes import Hits, RowIndex, Vectors, build, cells_of
from ldot_milvus.stores.local.library import gpus
from ldot_milvus.stores.local.transaction import Collection, Transaction

log = logging.getLogger(__name__)

CHUNK = 8192  # rows read from the file at a time
DEAD_SHARE = 0.2  # share of removed rows above which an index that cannot remove rows is rebuilt
CELL_ROWS = 64  # least number of rows to train one cell (FAISS asks for 39)
FEWEST_CELLS = 16  # with fewer cells, exact search is as fast
GROWTH = 4  # factor between planned and existing cells at which the cells are trained again


class LocalIndex:
    """The indexes of one collection in this process, in the state of the last :meth:`catch_up`.

    Args:
        transaction: state of the file.
        collection: the collection.
        spec: index type and parameters.

    Attributes:
        collection_id: id of the collection.
    """

    def __init__(self, transaction: Transaction, collection: Collection, spec: IndexSpec) -> None:
        self.collection_id = collection.id
        self._spec = spec
        self._dim = collection.dim
        self._indexes = {
            kind: self._empty(transaction, collection, kind, _count(transaction, collection, kind)) for kind in KINDS
        }
        self._last_pk = 0
        # Rows removed before the first read were never in the index.
        self._last_tombstone = transaction.last_tombstone(collection)

    def catch_up(self, transaction: Transaction, collection: Collection) -> None:
        """Add and remove the rows that were written and deleted since the last call; rebuild an index if needed."""
        newest = transaction.last_tombstone(collection)
        if newest > self._last_tombstone:
            removed = np.array(transaction.removed(collection, self._last_tombstone), np.int64)
            for index in self._indexes.values():
                index.remove(removed)
            self._last_tombstone = newest
        self._last_pk = self._read(transaction, collection, self._last_pk, KINDS)
        for kind in KINDS:
            index = self._indexes[kind]
            if self._needs_rebuild(index):
                count = index.count
                del index, self._indexes[kind]  # free its memory before the new index needs memory
                self._indexes[kind] = self._empty(transaction, collection, kind, count)
                log.info("building a %s index over %d rows", self._indexes[kind].spec, count)
                self._read(transaction, collection, 0, (kind,))

    def is_ahead_of(self, transaction: Transaction) -> bool:
        """Whether the index contains rows unknown to the file, because an older copy of the file was restored."""
        return self._last_pk > transaction.last_pk()

    def search(self, queries: Array, k: int, kind: str, among: Sequence[int] | None, vectors: Vectors) -> list[Hits]:
        """Return the best k rows for each query; an exact index returns all rows tied with the k-th too.

        Args:
            queries: float32 (n, dim).
            k: number of rows, at least 1.
            kind: kind of the rows, "image" or "text".
            among: pks of the rows to search; None searches all.
            vectors: reads vectors by pk, to compute the exact scores for an index with rounded vectors.

        Returns:
            For each query unordered (score, pk) pairs: at least k, or all rows if there are fewer.
        """
        return self._indexes[kind].search(queries, k, among, vectors)

    def _read(self, transaction: Transaction, collection: Collection, after: int, row_kinds: Iterable[str]) -> int:
        while True:
            pks, of_kinds, vectors = transaction.added(collection, after, CHUNK)
            if not pks:
                return after
            for kind in row_kinds:
                of_kind = np.array([value == kind for value in of_kinds])
                if of_kind.any():
                    self._indexes[kind].add_with_ids(vectors[of_kind], np.array(pks, np.int64)[of_kind])
            after = pks[-1]

    def _empty(self, transaction: Transaction, collection: Collection, kind: str, count: int) -> RowIndex:
        spec = plan(self._spec, count, collection.dim)
        sample = None
        if cells := cells_of(spec):
            pks = np.array(transaction.pks(collection, kind, ("1", [])), np.int64)
            picked = np.random.default_rng(0).permutation(len(pks))[: cells * CELL_ROWS]
            sample = transaction.vectors(collection, np.sort(pks[picked]).tolist())
        return build(spec, collection.dim, sample)

    def _needs_rebuild(self, index: RowIndex) -> bool:
        if index.dead > DEAD_SHARE * len(index.pks):
            return True
        planned = plan(self._spec, index.count, self._dim)
        # An approximate index becomes exact again only when DEAD_SHARE of its rows are removed.
        return (index.exact and not planned.exact) or cells_of(planned) >= GROWTH * cells_of(index.spec) > 0


def available(spec: IndexSpec) -> IndexSpec:
    """Return the index that FAISS can build on this machine for ``spec``; log a warning if its type differs."""
    usable = _on_this_machine(spec)
    if usable.index_type != spec.index_type:
        why = "FAISS has no such type" if gpus() else "FAISS sees no GPU here"
        log.warning("index %s is unavailable (%s): this local store uses %s", spec.index_type, why, usable.index_type)
    return usable


def plan(spec: IndexSpec, count: int, dim: int) -> IndexSpec:
    """Return the index to build over ``count`` rows: never ``AUTO``, and with no more cells than can be trained."""
    spec = _on_this_machine(choose(count, dim, gpu=gpus() > 0) if spec.index_type == AUTO else spec)
    if cells := cells_of(spec):
        if count < FEWEST_CELLS * CELL_ROWS:
            return IndexSpec("GPU_BRUTE_FORCE" if spec.needs_gpu else "FLAT")
        return replace(spec, params={**spec.params, "nlist": min(cells, count // CELL_ROWS)})
    return spec


def _count(transaction: Transaction, collection: Collection, kind: str) -> int:
    return transaction.count(collection, ("kind = ?", [kind]))


def _on_this_machine(spec: IndexSpec) -> IndexSpec:
    if not spec.needs_gpu:
        return spec
    if not gpus():
        return spec.on_cpu()
    # Only some builds of FAISS have CAGRA, and cannot add rows to it; PQ on a GPU needs parameters that fit the card.
    nearest = {"GPU_CAGRA": "GPU_BRUTE_FORCE", "GPU_IVF_PQ": "GPU_IVF_FLAT"}
    return IndexSpec(nearest[spec.index_type]) if spec.index_type in nearest else spec
