"""The FAISS indexes of one collection, in this process's memory: one for images, one for texts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ldot_milvus.stores.base import KINDS, Array
from ldot_milvus.stores.index_spec import AUTO, IndexSpec, choose
from ldot_milvus.stores.local.indexes import Hits, RowIndex, Vectors, build, cells_of, is_exact
from ldot_milvus.stores.local.library import gpus
from ldot_milvus.stores.local.transaction import Collection, Transaction

log = logging.getLogger(__name__)

CHUNK = 8192  # rows read from the file at a time
DEAD_SHARE = 0.2  # of its rows dead, an index that cannot forget is built anew
CELL_ROWS = 64  # at least, to train one cell on (FAISS asks for 39)
FEWEST_CELLS = 16  # with fewer, comparing with everything is as fast
GROWTH = 4  # times as many cells wanted as there are: trained anew


class LocalIndex:
    """What a process keeps in memory of one collection; only as new as the last :meth:`catch_up`."""

    def __init__(self, transaction: Transaction, collection: Collection, spec: IndexSpec) -> None:
        self.collection_id = collection.id
        self._spec = spec
        self._indexes = {
            kind: self._empty(transaction, collection, kind, _count(transaction, collection, kind)) for kind in KINDS
        }
        self._last_pk = 0
        # What was removed before the first row is read was never in the index.
        self._last_tombstone = transaction.last_tombstone(collection)

    def catch_up(self, transaction: Transaction, collection: Collection) -> None:
        """Take in what was written and removed since the last time; now and then this builds an index anew."""
        newest = transaction.last_tombstone(collection)
        if newest > self._last_tombstone:
            gone = np.array(transaction.removed(collection, self._last_tombstone), np.int64)
            for part in self._indexes.values():
                part.remove(gone)
            self._last_tombstone = newest
        self._last_pk = self._read(transaction, collection, self._last_pk, KINDS)
        for kind in KINDS:
            part = self._indexes[kind]
            if self._outgrown(part):
                count = part.count
                del part, self._indexes[kind]  # its memory before the next one's
                self._indexes[kind] = self._empty(transaction, collection, kind, count)
                log.info("building a %s index over %d rows", self._indexes[kind].spec, count)
                self._read(transaction, collection, 0, (kind,))

    def is_ahead_of(self, transaction: Transaction) -> bool:
        """Whether it holds what the file has never had: an older copy of the file was put back under this process."""
        return self._last_pk > transaction.last_pk()

    def search(self, queries: Array, k: int, kind: str, among: Sequence[int] | None, vectors: Vectors) -> list[Hits]:
        """The best k of the rows ``among`` (all where None) for each query, in an exact index with all ties at k.

        Args:
            queries: (n, dim) float32.
            k: at least 1.
            kind: kind of the rows, "image" or "text".
            among: pks of the only rows that may be answers.
            vectors: reads vectors by pk, to score again what the index rounds.

        Returns:
            For each query (score, pk) pairs, at least k of them where there are as many, in no promised order.
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
        spec = plan(self._spec, count)
        sample = None
        if cells := cells_of(spec):
            pks = np.array(transaction.pks(collection, kind, ("1", [])), np.int64)
            picked = np.random.default_rng(0).permutation(len(pks))[: cells * CELL_ROWS]
            sample = transaction.vectors(collection, np.sort(pks[picked]).tolist())
        return build(spec, collection.dim, sample)

    def _outgrown(self, part: RowIndex) -> bool:
        if part.dead > DEAD_SHARE * len(part.pks):
            return True
        wanted = plan(self._spec, part.count)
        # Never back to comparing with everything for a few rows less: that waits until a fifth is gone.
        return (part.exact and not is_exact(wanted)) or cells_of(wanted) >= GROWTH * cells_of(part.spec) > 0


def available(spec: IndexSpec) -> IndexSpec:
    """What FAISS on this machine takes for the index that was asked for; a warning says where it is another type."""
    taken = _on_this_machine(spec)
    if taken.index_type != spec.index_type:
        why = "FAISS has no such type" if gpus() else "FAISS sees no GPU here"
        log.warning("index %s was asked for, but %s: this local store uses %s", spec.index_type, why, taken.index_type)
    return taken


def plan(spec: IndexSpec, count: int) -> IndexSpec:
    """What to build over so many rows for this spec: never ``AUTO``, and no more cells than can be trained."""
    spec = _on_this_machine(choose(count, gpu=gpus() > 0) if spec.index_type == AUTO else spec)
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
    # FAISS has CAGRA in some builds only and adds no rows to it, and its PQ wants parameters that fit the card.
    nearest = {"GPU_CAGRA": "GPU_BRUTE_FORCE", "GPU_IVF_PQ": "GPU_IVF_FLAT"}
    return IndexSpec(nearest[spec.index_type]) if spec.index_type in nearest else spec
