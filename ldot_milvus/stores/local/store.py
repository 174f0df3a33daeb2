"""The local vector store: SQLite stores the rows, and a FAISS index in each process searches them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from typing_extensions import override

from ldot_milvus.errors import CollectionNotFound, StoreError
from ldot_milvus.stores import validation
from ldot_milvus.stores.base import KINDS, Array, Filter, Match, Record, VectorStore
from ldot_milvus.stores.filter_look import look
from ldot_milvus.stores.filters import Exists, Field, parse
from ldot_milvus.stores.index_spec import IndexSpec
from ldot_milvus.stores.local.collection_index import LocalIndex, available, plan
from ldot_milvus.stores.local.conditions import to_sql
from ldot_milvus.stores.local.database import Database
from ldot_milvus.stores.local.snapshot_file import UNREADABLE, Busy
from ldot_milvus.stores.local.snapshots import Snapshots, tidy
from ldot_milvus.stores.local.transaction import Collection, Transaction, Where
from ldot_milvus.stores.registry import absolute_path
from ldot_milvus.stores.writing import check_folder

log = logging.getLogger(__name__)

_EVERYTHING: Where = ("1", [])


class FaissStore(VectorStore):
    """A collection in ``folder/store.sqlite``. Threads may share a store; each process opens its own.

    Reading creates no folder and no file. A collection that does not exist has no rows, and :meth:`search` refuses it.

    Args:
        folder: folder of ``store.sqlite``, created at the first write; made absolute.
        collection: letters, digits and underscores.
        index: index over the rows. The first search of a process builds it in memory, which for HNSW takes one core
            about 0.5 seconds for 1,000 rows, and writes a snapshot of a large one, which other processes map. If FAISS
            sees no GPU, a GPU type becomes the nearest CPU type, and a warning is logged.
    """

    def __init__(self, folder: str | Path, collection: str, index: IndexSpec = IndexSpec()) -> None:  # noqa: B008
        self._folder = absolute_path(folder)
        self.address = f"faiss:{self._folder}"
        self.collection = validation.collection_name(collection)
        self._database = Database(Path(self._folder) / "store.sqlite")
        self._spec = index.checked()
        self._available: IndexSpec | None = None  # known at the first search, which imports FAISS
        self._index: LocalIndex | None = None
        self._saves = True  # until writing a snapshot fails
        self._saving: threading.Thread | None = None

    @override
    def check_writable(self) -> None:
        """Writes to the file without a commit, and to the disk a temporary file."""
        check_folder(self._folder, self.address, "check its owner, or set LDOT_STORE to another folder")
        self._database.check_writable()

    @override
    def collections(self) -> list[str]:
        with self._database.reading() as transaction:
            return [] if transaction is None else transaction.names()

    @property
    @override
    def index(self) -> IndexSpec | None:
        """That of the kind with more rows; each process builds it at its first search."""
        with self._database.reading() as transaction:
            collection = self._find(transaction)
            if collection is None or transaction is None:
                return None
            rows = max(transaction.count(collection, ("kind = ?", [kind])) for kind in KINDS)
        self._available = self._available or available(self._spec)
        return plan(self._available, rows, collection.dim)

    @property
    @override
    def model(self) -> str | None:
        collection = self._current()
        return None if collection is None else collection.model

    @property
    @override
    def dim(self) -> int | None:
        collection = self._current()
        return None if collection is None else collection.dim

    @property
    @override
    def properties(self) -> dict[str, str]:
        with self._database.reading() as transaction:
            collection = self._find(transaction)
            return {} if collection is None or transaction is None else transaction.properties(collection)

    @override
    def set_properties(self, properties: Mapping[str, str]) -> None:
        """All of them in one transaction."""
        with self._database.writing() as transaction:
            collection = self._find(transaction)
            if collection is None:
                raise validation.not_found(self, transaction.names())
            transaction.set_properties(collection, properties)

    @override
    def bind(self, model: str, dim: int) -> None:
        dim = validation.model_and_dim(model, dim)
        with self._database.reading() as transaction:
            collection = self._find(transaction)
            if collection is not None and collection.model == model and collection.dim == dim:
                return
        with self._database.writing() as transaction:
            collection = self._find(transaction)
            if collection is None:
                transaction.create(self.collection, dim, model)
                return
            validation.same_model(
                self, (collection.model, collection.dim), model, dim, transaction.properties(collection)
            )
            if collection.model is None:
                transaction.adopt(collection, model)

    @override
    def upsert(self, records: Sequence[Record]) -> int:
        kept, vectors = validation.records(records)
        if not kept:
            return 0
        with self._database.writing() as transaction:
            collection = self._find(transaction)
            if collection is None:
                collection = transaction.create(self.collection, vectors.shape[1], None)
            validation.same_width(self, collection.dim, kept, vectors)
            transaction.upsert(collection, kept, vectors)
        return len(kept)

    @override
    def search(self, queries: Array, k: int, *, kind: str = "image", filter: Filter | None = None) -> list[list[Match]]:
        """Filter first, then search, both in one state of the store.

        The index types FLAT and GPU_BRUTE_FORCE, which ``AUTO`` uses for small collections, are exact. Other types may
        miss neighbours, but they return as many rows, with exact scores.
        """
        k = validation.k(k)
        validation.kind(kind, "search")
        where = self._where(filter)
        with self._database.reading() as transaction:
            collection = self._find(transaction)
            if collection is None or transaction is None:
                raise validation.not_found(self, [] if transaction is None else transaction.names())
            matrix = validation.queries(queries, collection.dim)
            index = self._caught_up(transaction, collection)
            among = None if where == _EVERYTHING else transaction.pks(collection, kind, where)
            tops = index.search(matrix, k, kind, among, partial(transaction.vectors, collection))
            # Equal scores are ordered by id before the cut at k; complete rows are read after it.
            ids = transaction.ids_of({pk for top in tops for _, pk in top})
            tops = [sorted(top, key=lambda hit: (-hit[0], ids[hit[1]]))[:k] for top in tops]
            records = transaction.by_pk(collection, {pk for top in tops for _, pk in top})
        if index.due:
            self._save(index)
        return [[Match(records[pk], score) for score, pk in top] for top in tops]

    @override
    def get(self, ids: Sequence[str], *, with_embeddings: bool = False) -> list[Record]:
        listed = validation.ids(ids)
        with self._database.reading() as transaction:
            collection = self._find(transaction)
            if collection is None or transaction is None or not listed:
                return []
            pairs = transaction.select(
                collection, self._where({"id": {"$in": listed}}), with_embeddings=with_embeddings
            )
        by_id = {record.id: record for _, record in pairs}
        return [by_id[id] for id in listed if id in by_id]

    @override
    def update(self, records: Sequence[Record]) -> int:
        latest = {record.id: record for record in validation.plain(records)}
        if not latest or self._current() is None:
            return 0
        with self._database.writing() as transaction:
            collection = self._find(transaction)
            if collection is None:
                return 0
            return transaction.update(collection, latest.values())

    @override
    def delete(self, ids: Sequence[str] | None = None, filter: Filter | None = None) -> int:
        validation.ids_or_filter(ids, filter)
        where = self._where(filter if ids is None else {"id": {"$in": validation.ids(ids)}})
        if self._current() is None:
            return 0
        with self._database.writing() as transaction:
            collection = self._find(transaction)
            return 0 if collection is None else transaction.delete(collection, where)

    @override
    def count(self, filter: Filter | None = None) -> int:
        where = self._where(filter)
        with self._database.reading() as transaction:
            collection = self._find(transaction)
            return 0 if collection is None or transaction is None else transaction.count(collection, where)

    @override
    def iterate(
        self, filter: Filter | None = None, *, batch_size: int = 1000, with_embeddings: bool = False
    ) -> Iterator[Record]:
        batch_size = validation.k(batch_size, "batch_size")
        return self._pages(self._where(filter), batch_size, with_embeddings)

    @override
    def successor(self) -> VectorStore:
        successor = FaissStore(self._folder, f"{self.collection}__next", self._spec)
        with self._database.writing() as transaction:
            abandoned = successor._find(transaction)
            if abandoned is not None:
                transaction.drop(abandoned)
                tidy(self._database.path, transaction)
        return successor

    @override
    def replace_by(self, successor: VectorStore) -> None:
        """One transaction replaces the collection, so that no process finds it missing."""
        with self._database.writing() as transaction:
            old, new = self._find(transaction), transaction.collection(successor.collection)
            if new is None:
                raise CollectionNotFound(
                    f"{self.address} has no collection {successor.collection!r}: fill it before it replaces another"
                )
            if old is not None:
                transaction.drop(old)
                tidy(self._database.path, transaction)
            transaction.rename(new, self.collection)

    @override
    def close(self) -> None:
        """The index in memory is freed too. A snapshot that is being written is written first."""
        if self._saving is not None:
            self._saving.join()
        self._index = None
        self._database.close()

    def _pages(self, where: Where, size: int, with_embeddings: bool) -> Iterator[Record]:
        clause, params = where
        last = ""  # no id is empty
        # SQLite would read all rows in the order of their ids; the plus sign makes it take the index over the sources.
        id = "+id" if clause.startswith("(source IN ") else "id"
        while True:
            with self._database.reading() as transaction:
                collection = self._find(transaction)
                if collection is None or transaction is None:
                    return
                page = transaction.select(
                    collection,
                    (f"{id} > ? AND {clause}", [last, *params]),
                    with_embeddings=with_embeddings,
                    tail=f"ORDER BY {id} LIMIT {size}",
                )
            yield from (record for _, record in page)
            if len(page) < size:
                return
            last = page[-1][1].id

    def _where(self, filter: Filter | None) -> Where:
        node = parse(filter)
        look(self, node, self._rows_with)
        return to_sql(node)

    def _rows_with(self, field: Field, limit: int) -> list[Record]:
        """Return up to ``limit`` rows that have a field of ``metadata``."""
        with self._database.reading() as transaction:
            collection = self._find(transaction)
            if collection is None or transaction is None:
                return []
            where = to_sql(Exists(field))
            return [row for _, row in transaction.select(collection, where, tail=f"LIMIT {limit}")]

    def _find(self, transaction: Transaction | None) -> Collection | None:
        return None if transaction is None else transaction.collection(self.collection)

    def _current(self) -> Collection | None:
        with self._database.reading() as transaction:
            return self._find(transaction)

    def _caught_up(self, transaction: Transaction, collection: Collection) -> LocalIndex:
        """Return the index in the state of the transaction, whose lock protects the index."""
        index = self._index
        if index is None or index.collection_id != collection.id or index.is_ahead_of(transaction):
            self._available = self._available or available(self._spec)
            snapshots = Snapshots(self._database, collection, self._available)
            index = LocalIndex(transaction, collection, self._available, snapshots)
        self._index = None  # so that an error in catch_up leaves no incomplete index
        index.catch_up(transaction, collection)
        self._index = index
        return index

    def _save(self, index: LocalIndex) -> None:
        """Write the snapshots that are due. The next search maps what this process or another has written.

        The first snapshot is written at once. Later ones are written in a thread, because searches have an index
        meanwhile, and adding many rows to a graph takes minutes.
        """
        with self._database.lock:
            if self._index is not index or not self._saves or (self._saving is not None and self._saving.is_alive()):
                return
            with self._database.reading() as transaction:
                if transaction is not None and index.is_outdated(transaction):
                    self._index = None
                    return
            save, may_change = index.capture()
            if may_change:
                self._saving = threading.Thread(target=self._saved, args=(index, save), name="ldot-snapshot")
                self._saving.start()
            else:
                self._saved(index, save)

    def _saved(self, index: LocalIndex, save: Callable[[], None]) -> None:
        try:
            save()
        except Busy:
            return
        except (*UNREADABLE, MemoryError, StoreError) as error:
            log.info("no snapshot of %s is written (%s): each process builds its own index", self.address, error)
            self._saves = False
            return
        with self._database.lock:
            if self._index is index:
                self._index = None
