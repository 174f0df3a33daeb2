"""The local vector store: SQLite holds the truth, a FAISS index in this process answers searches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from ldot_milvus.errors import CollectionNotFound, ModelMismatch, UsageError
from ldot_milvus.stores import validation
from ldot_milvus.stores.base import Array, Filter, Match, Record, VectorStore
from ldot_milvus.stores.filters import parse, to_sql
from ldot_milvus.stores.index_spec import IndexSpec
from ldot_milvus.stores.local.collection_index import LocalIndex, available
from ldot_milvus.stores.local.database import Database
from ldot_milvus.stores.local.transaction import Collection, Transaction, Where

_EVERYTHING: Where = ("1", [])


class FaissStore(VectorStore):
    """A collection in ``folder/store.sqlite``. Threads may share a store; processes each open their own.

    Reading makes no folder and no file. A collection that does not exist counts 0 rows, gives none, and is refused by
    :meth:`search`.

    Args:
        folder: where ``store.sqlite`` is or will be.
        collection: letters, digits and underscores.
        index: the kind of index that each process builds in its memory at its first search; none of it is in the file.
            HNSW takes one core about half a second per 1,000 rows. Without a GPU in reach of FAISS the GPU kinds become
            the nearest ones without, which is logged as a warning.
    """

    def __init__(self, folder: str | Path, collection: str, index: IndexSpec = IndexSpec()) -> None:  # noqa: B008
        self.address = f"faiss:{folder}"
        self.collection = validation.collection_name(collection)
        self._database = Database(Path(folder).expanduser() / "store.sqlite")
        self._spec = index.checked()
        self._taken: IndexSpec | None = None  # known at the first search, which imports FAISS
        self._index: LocalIndex | None = None

    @property
    def model(self) -> str | None:
        """Read from the file each time: another process may bind it."""
        with self._database.reading() as transaction:
            collection = self._find(transaction)
        return None if collection is None else collection.model

    @property
    def dim(self) -> int | None:
        """Read from the file each time: another process may make the collection."""
        with self._database.reading() as transaction:
            collection = self._find(transaction)
        return None if collection is None else collection.dim

    def bind(self, model: str, dim: int) -> None:
        """As the interface says. A collection without a model adopts this one if the width agrees."""
        validation.model_and_dim(model, dim)
        with self._database.reading() as transaction:
            collection = self._find(transaction)
            if collection is not None and collection.model == model and collection.dim == dim:
                return
        with self._database.writing() as transaction:
            collection = self._find(transaction)
            if collection is None:
                transaction.create(self.collection, dim, model)
            elif collection.dim != dim or collection.model not in (None, model):
                raise ModelMismatch(
                    f"collection {self.collection!r} of {self.address} holds vectors of model "
                    f"{collection.model or 'unknown'} ({collection.dim} dimensions), not of {model} ({dim}): choose "
                    "another collection name, or ingest again with the new model into a new collection"
                )
            elif collection.model is None:
                transaction.adopt(collection, model)

    def upsert(self, records: Sequence[Record]) -> int:
        """As the interface says. Where an id comes twice in ``records`` the last one wins and counts once."""
        kept, vectors = validation.records(records)
        if not kept:
            return 0
        with self._database.writing() as transaction:
            collection = self._find(transaction)
            if collection is None:
                collection = transaction.create(self.collection, vectors.shape[1], None)
            elif collection.dim != vectors.shape[1]:
                raise ModelMismatch(
                    f"record {kept[0].id!r} has {vectors.shape[1]} dimensions and collection {self.collection!r} of "
                    f"{self.address} {collection.dim}: use the model that it was made with, or another collection name"
                )
            transaction.upsert(collection, kept, vectors)
        return len(kept)

    def search(self, queries: Array, k: int, *, kind: str = "image", filter: Filter | None = None) -> list[list[Match]]:
        """As the interface says: the filter comes first, and the whole search sees one state of the store.

        Exactly with the kinds FLAT and GPU_BRUTE_FORCE, which ``AUTO`` takes for small collections. The others may
        miss neighbours, but they never give fewer rows and their scores are exact too.
        """
        validation.k(k)
        validation.kind(kind, "search")
        where = _where(filter)
        with self._database.reading() as transaction:
            collection = self._find(transaction)
            if collection is None or transaction is None:
                there = ", ".join(transaction.names()) if transaction is not None else ""
                raise CollectionNotFound(
                    f"{self.address} has no collection {self.collection!r} yet: ingest into it first"
                    + (f" (there are: {there})" if there else "")
                )
            matrix = validation.queries(queries, collection.dim)
            index = self._caught_up(transaction, collection)
            among = None if where == _EVERYTHING else transaction.pks(collection, kind, where)
            tops = index.search(matrix, k, kind, among, partial(transaction.vectors, collection))
            # Equal scores go by id, and which of them make the first k too; only then are whole rows read.
            ids = transaction.ids_of({pk for top in tops for _, pk in top})
            tops = [sorted(top, key=lambda hit: (-hit[0], ids[hit[1]]))[:k] for top in tops]
            records = transaction.by_pk(collection, {pk for top in tops for _, pk in top})
        return [[Match(records[pk], score) for score, pk in top] for top in tops]

    def get(self, ids: Sequence[str], *, with_embeddings: bool = False) -> list[Record]:
        """As the interface says. An id asked for twice comes twice."""
        listed = validation.ids(ids)
        with self._database.reading() as transaction:
            collection = self._find(transaction)
            if collection is None or transaction is None or not listed:
                return []
            pairs = transaction.select(collection, _where({"id": {"$in": listed}}), with_embeddings=with_embeddings)
        by_id = {record.id: record for _, record in pairs}
        return [by_id[id] for id in listed if id in by_id]

    def update(self, records: Sequence[Record]) -> int:
        """As the interface says; returns how many of the ids exist. Embedding, kind, width and height are ignored."""
        for record in records:
            validation.fields(record)
        if not records or not self._exists():
            return 0
        with self._database.writing() as transaction:
            collection = self._find(transaction)
            if collection is None:
                return 0
            return transaction.update(collection, {record.id: record for record in records}.values())

    def delete(self, ids: Sequence[str] | None = None, filter: Filter | None = None) -> int:
        """As the interface says. ``filter={}`` is refused, because it would delete everything."""
        if (ids is None) == (filter is None):
            raise UsageError("delete takes either ids or a filter")
        if filter == {}:
            raise UsageError(
                "an empty filter would delete every row: if that is meant, say so with {'id': {'$ne': ''}}"
            )
        where = _where(filter if ids is None else {"id": {"$in": validation.ids(ids)}})
        if not self._exists():
            return 0
        with self._database.writing() as transaction:
            collection = self._find(transaction)
            return 0 if collection is None else transaction.delete(collection, where)

    def count(self, filter: Filter | None = None) -> int:
        """As the interface says."""
        where = _where(filter)
        with self._database.reading() as transaction:
            collection = self._find(transaction)
            return 0 if collection is None or transaction is None else transaction.count(collection, where)

    def iterate(
        self, filter: Filter | None = None, *, batch_size: int = 1000, with_embeddings: bool = False
    ) -> Iterator[Record]:
        """As the interface says. Each batch sees the store as it is then, so writing while iterating is safe."""
        validation.k(batch_size, "batch_size")
        return self._pages(_where(filter), batch_size, with_embeddings)

    def successor(self) -> VectorStore:
        """As the interface says. An earlier one that was left half filled is emptied."""
        made = FaissStore(self.address.removeprefix("faiss:"), f"{self.collection}__next", self._spec)
        with self._database.writing() as transaction:
            old = made._find(transaction)
            if old is not None:
                transaction.drop(old)
        return made

    def replace_by(self, successor: VectorStore) -> None:
        """As the interface says, in one transaction."""
        with self._database.writing() as transaction:
            old, new = self._find(transaction), transaction.collection(successor.collection)
            if new is None:
                raise CollectionNotFound(f"{self.address} has no collection {successor.collection!r}")
            if old is not None:
                transaction.drop(old)
            transaction.rename(new, self.collection)

    def close(self) -> None:
        """As the interface says; the index goes too."""
        self._index = None
        self._database.close()

    def _pages(self, where: Where, size: int, with_embeddings: bool) -> Iterator[Record]:
        clause, params = where
        last = ""  # no id is empty
        while True:
            with self._database.reading() as transaction:
                collection = self._find(transaction)
                if collection is None or transaction is None:
                    return
                page = transaction.select(
                    collection,
                    (f"id > ? AND {clause}", [last, *params]),
                    with_embeddings=with_embeddings,
                    tail=f"ORDER BY id LIMIT {size}",
                )
            yield from (record for _, record in page)
            if len(page) < size:
                return
            last = page[-1][1].id

    def _find(self, transaction: Transaction | None) -> Collection | None:
        return None if transaction is None else transaction.collection(self.collection)

    def _exists(self) -> bool:
        with self._database.reading() as transaction:
            return self._find(transaction) is not None

    def _caught_up(self, transaction: Transaction, collection: Collection) -> LocalIndex:
        """The index, with everything that this transaction sees. Runs under the database's lock."""
        index = self._index
        if index is None or index.collection_id != collection.id or index.is_ahead_of(transaction):
            self._taken = self._taken or available(self._spec)
            index = LocalIndex(transaction, collection, self._taken)
        self._index = None  # an error half way leaves no index that is half right
        index.catch_up(transaction, collection)
        self._index = index
        return index


def _where(filter: Filter | None) -> Where:
    return to_sql(parse(filter))
