"""Address of the local store."""

from __future__ import annotations

from typing_extensions import override

from ldot_milvus.stores.base import VectorStore
from ldot_milvus.stores.index_spec import CPU_TYPES, GPU_TYPES, IndexSpec
from ldot_milvus.stores.registry import FolderAddress, IndexSupport


class FaissAddress(FolderAddress):
    """``faiss:PATH``: SQLite and FAISS in a folder."""

    form = "faiss:PATH (a local folder)"
    scheme = "faiss"
    provider = "FAISS"

    @override
    def open(
        self, collection: str, index: IndexSpec, *, token: str | None = None, index_fallback: bool = True
    ) -> VectorStore:
        """``index_fallback`` has no effect: a GPU index type falls back to the nearest CPU type if FAISS has no GPU."""
        from ldot_milvus.stores.local.store import FaissStore

        return FaissStore(self.folder, collection, index)

    @override
    def index_support(self, token: str | None = None) -> IndexSupport:
        from ldot_milvus.stores.local.collection_index import plan

        many = 10**9  # rows: with few rows, every type becomes an exact one
        on_gpu = tuple(name for name in GPU_TYPES if plan(IndexSpec(name), many, 8).index_type == name)
        return IndexSupport(CPU_TYPES + on_gpu, "" if on_gpu else "FAISS sees no GPU")
