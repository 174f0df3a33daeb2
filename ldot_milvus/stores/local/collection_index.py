"""The FAISS indexes of one collection in this process: one for images, one for texts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ldot_milvus.stores.base import KINDS, Array
from ldot_milvus.stores.index_spec import AUTO, IndexSpec, choose
from ldot_milvus.stores.local.indexes import Hits, RowIndex, Vectors, build, cells_of
from ldot_milvus.stores.local.library import gpus
from ldot_milvus.stores.local.segments import Segments
from ldot_milvus.stores.local.snapshots import Snapshots, State
from ldot_milvus.stores.local.transaction import Collection, Transaction

log = logging.getLogger(__name__)

CHUNK = 8192  # rows read from the file at a time
DEAD_SHARE = 0.2  # share of removed rows above which an index that cannot remove rows is rebuilt
CELL_ROWS = 64  # least number of rows to train one cell (FAISS asks for 39)
FEWEST_CELLS = 16  # with fewer cells, exact search is as fast
SAVED_FROM = 8192  # rows from which a snapshot is faster than reading the rows
UNSAVED_SHARE = 1 / 16  # share of rows outside the snapshot above which it is written again
GROWTH = 4  # factor between planned and existing cells at which the cells are trained again


class LocalIndex:
    """The indexes of one collection in this process, in the state of the last :meth:`catch_up`.

    Args:
        transaction: state of the file.
        collection: the collection.
        spec: index type and parameters.
        snapshots: the snapshots of the collection.

    Attributes:
        collection_id: id of the collection.
    """

    def __init__(self, transaction: Transaction, collection: Collection, spec: IndexSpec, snapshots: Snapshots) -> None:
        self.collection_id = collection.id
        self._spec = spec
        self._dim = collection.dim
        self._snapshots = snapshots
        self._indexes: dict[str, RowIndex | Segments] = {}
        self._states: dict[str, State] = {}
        for kind in KINDS:
            opened = snapshots.open(transaction, kind)
            self._indexes[kind], self._states[kind] = opened or self._start(transaction, collection, kind)
        self._opened = dict(self._states)
        self._unproven = any(isinstance(index, Segments) for index in self._indexes.values())

    def catch_up(self, transaction: Transaction, collection: Collection) -> None:
        """Add and remove the rows that were written and deleted since the last call; rebuild an index if needed."""
        newest = State(transaction.newest_pk(collection), transaction.last_tombstone(collection))
        for kind in KINDS:
            self._follow(transaction, collection, kind, newest)
        if self._unproven and not self._agrees(transaction, collection):
            log.warning("the snapshots of a collection contradict its rows: the index is built from the rows again")
            self._snapshots.refuse(transaction)
            for kind in KINDS:
                self._indexes[kind], self._states[kind] = self._start(transaction, collection, kind)
                self._follow(transaction, collection, kind, newest)
        self._unproven = False
        for kind in KINDS:
            index = self._indexes[kind]
            if self._needs_rebuild(index):
                count = index.count
                del index, self._indexes[kind]  # free its memory before the new index needs memory
                self._indexes[kind] = self._empty(transaction, collection, kind, count)
                log.info("building a %s index over %d rows", self._indexes[kind].spec, count)
                self._read(transaction, collection, kind, 0)

    def is_ahead_of(self, transaction: Transaction) -> bool:
        """Whether the index contains rows unknown to the file, because an older copy of the file was restored."""
        return max(state.last_pk for state in self._states.values()) > transaction.last_pk()

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

    @property
    def due(self) -> bool:
        """Whether so many rows are in no snapshot that writing them saves time in other processes."""
        return any(map(_is_due, self._indexes.values()))

    def is_outdated(self, transaction: Transaction) -> bool:
        """Return whether another process has written the snapshot that is due."""
        return any(
            _is_due(index) and self._snapshots.is_newer(transaction, kind, self._opened[kind].last_pk)
            for kind, index in self._indexes.items()
        )

    def capture(self) -> tuple[Callable[[], None], bool]:
        """Return a function that writes the snapshots that are due, in the present state.

        Returns:
            The function, which raises what :meth:`Snapshots.save` raises, and whether the index may change before it
            ends.
        """
        # Small ones are written too, so that their states move on.
        chosen = {
            kind: index
            for kind, index in self._indexes.items()
            if _is_due(index) or (index.can_be_saved and index.count < SAVED_FROM)
        }
        captured = [(kind, index.capture(), self._states[kind]) for kind, index in chosen.items()]

        def save() -> None:
            for kind, load, state in captured:
                self._snapshots.save(kind, load, state)

        return save, all(isinstance(index, Segments) for index in chosen.values())

    def _start(self, transaction: Transaction, collection: Collection, kind: str) -> tuple[RowIndex, State]:
        index = self._empty(transaction, collection, kind, _count(transaction, collection, kind))
        # Rows removed before the first read were never in the index.
        return index, State(0, transaction.last_tombstone(collection))

    def _follow(self, transaction: Transaction, collection: Collection, kind: str, newest: State) -> None:
        state, index = self._states[kind], self._indexes[kind]
        if newest.last_tombstone > state.last_tombstone:
            index.remove(np.array(transaction.removed(collection, state.last_tombstone), np.int64))
        if newest.last_pk > state.last_pk:
            self._read(transaction, collection, kind, state.last_pk)
        self._states[kind] = State(max(newest.last_pk, state.last_pk), newest.last_tombstone)

    def _agrees(self, transaction: Transaction, collection: Collection) -> bool:
        """Return whether the indexes have the rows of the file: as many, with the same sum of pks."""
        indexes = self._indexes.values()
        ours = sum(index.count for index in indexes), sum(index.pk_sum for index in indexes)
        return ours == transaction.fingerprint(collection)

    def _read(self, transaction: Transaction, collection: Collection, kind: str, after: int) -> None:
        while True:
            pks, vectors = transaction.added(collection, kind, after, CHUNK)
            if not pks:
                return
            self._indexes[kind].add_with_ids(vectors, np.array(pks, np.int64))
            after = pks[-1]

    def _empty(self, transaction: Transaction, collection: Collection, kind: str, count: int) -> RowIndex:
        spec = plan(self._spec, count, collection.dim)
        sample = None
        if cells := cells_of(spec):
            pks = np.array(transaction.pks(collection, kind, ("1", [])), np.int64)
            picked = np.random.default_rng(0).permutation(len(pks))[: cells * CELL_ROWS]
            sample = transaction.vectors(collection, np.sort(pks[picked]).tolist())
        return build(spec, collection.dim, sample)

    def _needs_rebuild(self, index: RowIndex | Segments) -> bool:
        if index.dead > DEAD_SHARE * (index.count + index.dead):
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


def _is_due(index: RowIndex | Segments) -> bool:
    return index.can_be_saved and index.unsaved > max(SAVED_FROM, UNSAVED_SHARE * index.count)


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
