"""Vector stores: one interface (:mod:`~ldot_milvus.stores.base`), and :func:`open_store` to get one by its address."""

from __future__ import annotations

from ldot_milvus.errors import StoreError, UsageError
from ldot_milvus.stores.base import Match, Record, VectorStore

__all__ = ["Match", "Record", "VectorStore", "open_store"]


def open_store(address: str | None = None, collection: str | None = None) -> VectorStore:
    """Open one collection of a store; nothing is created until something is written.

    Args:
        address: ``faiss:PATH``, a folder for a local store; None takes the setting ``LDOT_STORE``.
        collection: letters, digits and underscores; None takes the setting ``LDOT_COLLECTION``.

    Raises:
        UsageError: an address of no known form, or a bad collection name.
        StoreError: a Milvus address, which this version cannot open.
    """
    if address is None or collection is None:
        from ldot_milvus.settings import Settings

        settings = Settings()
        address = settings.store if address is None else address
        collection = settings.collection if collection is None else collection
    if address.startswith("faiss:") and address != "faiss:":
        from ldot_milvus.stores.faiss import FaissStore

        return FaissStore(address.removeprefix("faiss:"), collection)
    if address.startswith(("http://", "https://")) or address.endswith(".db"):
        raise StoreError(
            f"cannot open {address!r}: Milvus addresses are not supported in this version yet; "
            "use a local store such as faiss:./ldot-data"
        )
    raise UsageError(f"cannot open {address!r}: a store's address is faiss:PATH, such as faiss:./ldot-data")
