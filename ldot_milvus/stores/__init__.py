"""Vector stores: one interface (:mod:`~ldot_milvus.stores.base`), and :func:`open_store` to get one by its address."""

from __future__ import annotations

from ldot_milvus.errors import UsageError
from ldot_milvus.settings import Settings
from ldot_milvus.stores.base import Match, Record, VectorStore
from ldot_milvus.stores.index_spec import IndexSpec

__all__ = ["Match", "Record", "VectorStore", "open_store"]


def open_store(address: str | None = None, collection: str | None = None, index: str | None = None) -> VectorStore:
    """Open one collection of a store; nothing is created until something is written.

    Args:
        address: ``faiss:PATH``, a folder for a local store; ``PATH.db`` for Milvus Lite; ``http://host:19530`` for a
            Milvus server (its token is the setting ``LDOT_STORE_TOKEN``). None takes the setting ``LDOT_STORE``.
        collection: letters, digits and underscores; None takes the setting ``LDOT_COLLECTION``.
        index: ``auto``, or a kind with its parameters, such as ``HNSW:M=16,ef=64``; None takes ``LDOT_INDEX``.

    Raises:
        UsageError: an address of no known form, a bad collection name, or an index that cannot be.
    """
    settings = Settings()
    address = settings.store if address is None else address
    collection = settings.collection if collection is None else collection
    spec = IndexSpec.parse(settings.index if index is None else index)
    if address.startswith("faiss:") and address != "faiss:":
        from ldot_milvus.stores.local.store import FaissStore

        return FaissStore(address.removeprefix("faiss:"), collection, spec)
    if address.startswith(("http://", "https://")) or address.endswith(".db"):
        from ldot_milvus.stores.milvus.store import MilvusStore

        return MilvusStore(
            address, collection, token=settings.store_token, index=spec, fallback=settings.index_fallback
        )
    raise UsageError(
        f"cannot open {address!r}: a store's address is faiss:PATH (a local folder), PATH.db (Milvus Lite) or "
        "http://HOST:19530 (a Milvus server)"
    )
