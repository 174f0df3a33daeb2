"""Vector stores: :func:`open_store` opens one by its address; :mod:`~ldot_milvus.stores.base` is their interface."""

from __future__ import annotations

from ldot_milvus.errors import UsageError
from ldot_milvus.settings import Settings
from ldot_milvus.stores.base import Match, Record, VectorStore
from ldot_milvus.stores.index_spec import AUTO, IndexSpec
from ldot_milvus.stores.registry import parse_address, register_store, token_for

__all__ = ["Match", "Record", "VectorStore", "open_store", "register_store"]


def open_store(address: str | None = None, collection: str | None = None, index: str | None = None) -> VectorStore:
    """Open one collection of a vector store; nothing is created before the first write.

    Args:
        address: ``faiss:PATH``, a folder for a local store; ``PATH.db`` for Milvus Lite; ``http://host:19530`` for a
            Milvus server (its token is the setting ``LDOT_STORE_TOKEN``, or ``http://user:password@host:19530``). A
            path may begin with ``~`` and is made absolute. None takes the setting ``LDOT_STORE``.
        collection: letters, digits and underscores; None takes the setting ``LDOT_COLLECTION``.
        index: ``auto``, or an index type with its parameters, such as ``HNSW:M=16,ef=64``; None takes ``LDOT_INDEX``.

    Returns:
        The collection, which may not exist yet.

    Raises:
        UsageError: an address of unknown form, a bad collection name, or an index that the store does not have.
    """
    settings = Settings()
    store = parse_address(settings.store if address is None else address)
    try:
        spec = IndexSpec.parse(settings.index if index is None else index)
    except UsageError as error:
        raise UsageError(f"LDOT_INDEX: {error}") if index is None else error from None
    if spec.index_type not in (AUTO, *store.index_types):
        raise UsageError(
            f"{store.address} has no index {spec.index_type}: set LDOT_INDEX to auto, {', '.join(store.index_types)}"
        )
    return store.open(
        settings.collection if collection is None else collection,
        spec,
        token=token_for(store, settings),
        index_fallback=settings.index_fallback,
    )
