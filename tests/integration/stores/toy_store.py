"""The smallest store: the local one under its own form of address, as explained in docs/extend/store.md."""

from __future__ import annotations

from ldot_milvus.stores.base import VectorStore
from ldot_milvus.stores.local.store import FaissStore
from ldot_milvus.stores.registry import FolderAddress


class ToyAddress(FolderAddress):
    form = "toy:PATH (a toy)"
    scheme = "toy"
    index_types = ("FLAT", "HNSW")

    def open(self, collection, index, *, token=None, index_fallback=True):
        return ToyStore(self, collection, index)


class ToyStore(VectorStore):
    def __init__(self, address, collection, index):
        self.address, self.collection = address.address, collection
        self._inner = FaissStore(address.folder, collection, index)

    model = property(lambda self: self._inner.model)
    dim = property(lambda self: self._inner.dim)
    properties = property(lambda self: self._inner.properties)

    def set_properties(self, properties):
        self._inner.set_properties(properties)

    def bind(self, model, dim):
        self._inner.bind(model, dim)

    def upsert(self, records):
        return self._inner.upsert(records)

    def search(self, queries, k, **options):
        return self._inner.search(queries, k, **options)

    def get(self, ids, **options):
        return self._inner.get(ids, **options)

    def update(self, records):
        return self._inner.update(records)

    def delete(self, ids=None, filter=None):
        return self._inner.delete(ids, filter)

    def count(self, filter=None):
        return self._inner.count(filter)

    def iterate(self, filter=None, **options):
        return self._inner.iterate(filter, **options)

    def successor(self):
        return self._inner.successor()

    def replace_by(self, successor):
        self._inner.replace_by(successor)

    def close(self):
        self._inner.close()
