"""The local vector store: SQLite holds the truth, a FAISS index in this process answers searches."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldot_milvus.errors import CollectionNotFound, ModelMismatch, StoreError, UsageError
from ldot_milvus.stores import checks
from ldot_milvus.stores.base import KINDS, Array, Filter, Match, Record, VectorStore
from ldot_milvus.stores.filters import parse, to_sql
from ldot_milvus.stores.rows import Collection, Transaction, Where
from ldot_milvus.stores.sqlite import Database

_EVERYTHING: Where = ("1", [])
_CHUNK = 8192  # rows read from the file at a time while catching up


class FaissStore(VectorStore):
    """A collection in ``folder/store.sqlite``. Threads may share a store; processes each open their own.

    Reading makes no folder and no file. A collection that does not exist counts 0 rows, gives none, and is refused by
    :meth:`search`.
    """

    def __init__(self, folder: str | Path, collection: str) -> None:
        self.address = f"faiss:{folder}"
        self.collection = checks.collection_name(collection)
        self._database = Database(Path(folder).expanduser() / "store.sqlite")
        self._index: _Index | None = None

    @property
    def model(self) -> str | None:
        """Read from the file each time: another process may bind it."""
        with self._database.reading() as rows:
            found = self._find(rows)
        return None if found is None else found.model

    @property
    def dim(self) -> int | None:
        """Read from the file each time: another process may make the collection."""
        with self._database.reading() as rows:
            found = self._find(rows)
        return None if found is None else found.dim

    def bind(self, model: str, dim: int) -> None:
        """As the interface says. A collection without a model adopts this one if the width agrees."""
        checks.model_and_dim(model, dim)
        with self._database.reading() as rows:
            found = self._find(rows)
            if found is not None and found.model == model and found.dim == dim:
                return
        with self._database.writing() as rows:
            found = self._find(rows)
            if found is None:
                rows.create(self.collection, dim, model)
            elif found.dim != dim or found.model not in (None, model):
                raise ModelMismatch(
                    f"collection {self.collection!r} of {self.address} holds vectors of model "
                    f"{found.model or 'unknown'} ({found.dim} dimensions), not of {model} ({dim}): choose another "
                    "collection name, or ingest again with the new model into a new collection"
                )
            elif found.model is None:
                rows.adopt(found, model)

    def upsert(self, records: Sequence[Record]) -> int:
        """As the interface says. Where an id comes twice in ``records`` the last one wins and counts once."""
        kept, vectors = checks.records(records)
        if not kept:
            return 0
        with self._database.writing() as rows:
            found = self._find(rows)
            if found is None:
                found = rows.create(self.collection, vectors.shape[1], None)
            elif found.dim != vectors.shape[1]:
                raise ModelMismatch(
                    f"record {kept[0].id!r} has {vectors.shape[1]} dimensions and collection {self.collection!r} of "
                    f"{self.address} {found.dim}: use the model that it was made with, or another collection name"
                )
            rows.upsert(found, kept, vectors)
        return len(kept)

    def search(self, queries: Array, k: int, *, kind: str = "image", filter: Filter | None = None) -> list[list[Match]]:
        """As the interface says, exactly: the filter comes first, and the whole search sees one state of the store."""
        checks.k(k)
        checks.kind(kind, "search")
        where = _where(filter)
        with self._database.reading() as rows:
            found = self._find(rows)
            if found is None or rows is None:
                there = ", ".join(rows.names()) if rows is not None else ""
                raise CollectionNotFound(
                    f"{self.address} has no collection {self.collection!r} yet: ingest into it first"
                    + (f" (there are: {there})" if there else "")
                )
            matrix = checks.queries(queries, found.dim)
            index = self._caught_up(rows, found)
            among = None if where == _EVERYTHING else rows.pks(found, kind, where)
            tops = index.search(matrix, k, kind, among)
            # Equal scores go by id, and which of them make the first k too; only then are whole rows read.
            ids = rows.ids_of({pk for top in tops for _, pk in top})
            tops = [sorted(top, key=lambda hit: (-hit[0], ids[hit[1]]))[:k] for top in tops]
            records = rows.by_pk(found, {pk for top in tops for _, pk in top})
        return [[Match(records[pk], score) for score, pk in top] for top in tops]

    def get(self, ids: Sequence[str], *, with_embeddings: bool = False) -> list[Record]:
        """As the interface says. An id asked for twice comes twice."""
        listed = checks.ids(ids)
        with self._database.reading() as rows:
            found = self._find(rows)
            if found is None or rows is None or not listed:
                return []
            pairs = rows.select(found, _where({"id": {"$in": listed}}), with_embeddings=with_embeddings)
        by_id = {record.id: record for _, record in pairs}
        return [by_id[id] for id in listed if id in by_id]

    def update(self, records: Sequence[Record]) -> int:
        """As the interface says; returns how many of the ids exist. Embedding, kind, width and height are ignored."""
        for record in records:
            checks.fields(record)
        if not records or not self._exists():
            return 0
        with self._database.writing() as rows:
            found = self._find(rows)
            return 0 if found is None else rows.update(found, {record.id: record for record in records}.values())

    def delete(self, ids: Sequence[str] | None = None, filter: Filter | None = None) -> int:
        """As the interface says. ``filter={}`` is refused, because it would delete everything."""
        if (ids is None) == (filter is None):
            raise UsageError("delete takes either ids or a filter")
        if filter == {}:
            raise UsageError(
                "an empty filter would delete every row: if that is meant, say so with {'id': {'$ne': ''}}"
            )
        where = _where(filter if ids is None else {"id": {"$in": checks.ids(ids)}})
        if not self._exists():
            return 0
        with self._database.writing() as rows:
            found = self._find(rows)
            return 0 if found is None else rows.delete(found, where)

    def count(self, filter: Filter | None = None) -> int:
        """As the interface says."""
        where = _where(filter)
        with self._database.reading() as rows:
            found = self._find(rows)
            return 0 if found is None or rows is None else rows.count(found, where)

    def iterate(
        self, filter: Filter | None = None, *, batch_size: int = 1000, with_embeddings: bool = False
    ) -> Iterator[Record]:
        """As the interface says. Each batch sees the store as it is then, so writing while iterating is safe."""
        checks.k(batch_size, "batch_size")
        return self._pages(_where(filter), batch_size, with_embeddings)

    def close(self) -> None:
        """As the interface says; the index goes too."""
        self._index = None
        self._database.close()

    def _pages(self, where: Where, size: int, with_embeddings: bool) -> Iterator[Record]:
        clause, params = where
        last = ""  # no id is empty
        while True:
            with self._database.reading() as rows:
                found = self._find(rows)
                if found is None or rows is None:
                    return
                page = rows.select(
                    found,
                    (f"id > ? AND {clause}", [last, *params]),
                    with_embeddings=with_embeddings,
                    tail=f"ORDER BY id LIMIT {size}",
                )
            yield from (record for _, record in page)
            if len(page) < size:
                return
            last = page[-1][1].id

    def _find(self, rows: Transaction | None) -> Collection | None:
        return None if rows is None else rows.collection(self.collection)

    def _exists(self) -> bool:
        with self._database.reading() as rows:
            return self._find(rows) is not None

    def _caught_up(self, rows: Transaction, found: Collection) -> _Index:
        """The index, with everything that this transaction sees. Runs under the database's lock."""
        index = self._index
        if index is None or index.collection != found.id:
            index = _Index(rows, found)
        self._index = None  # an error half way leaves no index that is half right
        index.catch_up(rows, found)
        self._index = index
        return index


class _Index:
    """One flat inner-product index for each kind over the rows seen so far."""

    def __init__(self, rows: Transaction, found: Collection) -> None:
        faiss = _faiss()
        self.collection = found.id
        self._kinds = {kind: faiss.IndexIDMap(faiss.IndexFlatIP(found.dim)) for kind in KINDS}
        self._last_pk = 0
        # What was removed before the first row is read was never in the index.
        self._last_tombstone = rows.last_tombstone(found)

    def catch_up(self, rows: Transaction, found: Collection) -> None:
        newest = rows.last_tombstone(found)
        if newest > self._last_tombstone:
            gone = np.array(rows.removed(found, self._last_tombstone), np.int64)
            gone = gone[gone <= self._last_pk]
            if gone.size:
                for index in self._kinds.values():
                    index.remove_ids(gone)
            self._last_tombstone = newest
        while True:
            pks, kinds, vectors = rows.added(found, self._last_pk, _CHUNK)
            if not pks:
                return
            for kind, index in self._kinds.items():
                of_kind = np.array([value == kind for value in kinds])
                if of_kind.any():
                    index.add_with_ids(vectors[of_kind], np.array(pks, np.int64)[of_kind])
            self._last_pk = pks[-1]

    def search(self, queries: Array, k: int, kind: str, among: list[int] | None) -> list[list[tuple[float, int]]]:
        """The best k of the rows ``among`` (all where None) for each query, with all that tie with the k-th.

        Returns:
            For each query (score, pk) pairs, at least k of them where there are as many, in no promised order.
        """
        faiss = _faiss()
        index = self._kinds[kind]
        available = int(index.ntotal) if among is None else len(among)
        results: list[list[tuple[float, int]]] = [[] for _ in queries]
        if not available or not results:
            return results
        selector = None if among is None else faiss.IDSelectorBatch(np.array(among, np.int64))
        params = None if selector is None else faiss.SearchParameters(sel=selector)
        pending = np.arange(len(queries))
        fetch = min(k + 1, available)  # one more than asked for shows whether the k-th has a tie outside
        while pending.size:
            scores, pks = index.search(queries[pending], fetch, params=params)
            complete = np.full(len(pending), True) if fetch == available else scores[:, -1] < scores[:, k - 1]
            for row in np.flatnonzero(complete):
                hits = zip(scores[row].tolist(), pks[row].tolist(), strict=True)
                least = scores[row, min(k, fetch) - 1]
                results[pending[row]] = [(score, pk) for score, pk in hits if pk >= 0 and score >= least]
            pending = pending[~complete]
            fetch = min(fetch * 4, available)
        return results


def _where(filter: Filter | None) -> Where:
    return to_sql(parse(filter))


def _faiss() -> Any:
    """FAISS, imported at the first search: reading and writing rows does not need it."""
    try:
        import faiss
    except ImportError as error:
        raise StoreError(f"searching a local store needs FAISS: pip install faiss-cpu ({error})") from error
    return faiss


def _one_thread_after_fork() -> None:
    # OpenMP's threads do not survive a fork, and a child that counts on them hangs for ever in its first search.
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread_after_fork)
