"""Models and retrievers that a process makes once and shares, by the values that determine them.

Frameworks copy, pickle and reconfigure the objects that hold these values, and call them from several threads at once.
What is looked up here by its values is always what they say, and is made once however many ask for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

from ldot_milvus.forks import Lock
from ldot_milvus.models.background import in_background
from ldot_milvus.models.base import Embedder, FilesOnDisk, Reranker
from ldot_milvus.models.loading import load_embedder, load_reranker
from ldot_milvus.models.registry import find_model, find_reranker
from ldot_milvus.search.retriever import Retriever
from ldot_milvus.settings import Settings
from ldot_milvus.stores import VectorStore, open_store
from ldot_milvus.stores.registry import parse_address, token_for

T = TypeVar("T")

MODELS = 4
"""Models, and as many re-rankers, that a process keeps: those used last."""

STORES = 16
"""Open collections, and as many retrievers, that a process keeps: those used last."""


class Shared(Generic[T]):
    """Values by key, each made at its first use, once under any concurrency. A failure is not kept.

    Args:
        size: number of values kept; the one that was not used for longest goes first.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._slots: dict[Hashable, _Slot[T]] = {}  # in the order of their last use
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of a key; ``make`` makes it if there is none, while others that ask for it wait."""
        with self._lock:
            slot = self._slots.pop(key, None) or _Slot()
            self._slots[key] = slot
            while len(self._slots) > self._size:
                del self._slots[next(iter(self._slots))]
        with slot.lock:
            if slot.value is None:
                slot.value = make()
            return slot.value

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._slots.clear()


class _Slot(Generic[T]):
    def __init__(self) -> None:
        self.lock = Lock()
        self.value: T | None = None


_embedders: Shared[Embedder] = Shared(MODELS)
_rerankers: Shared[Reranker] = Shared(MODELS)
_stores: Shared[VectorStore] = Shared(STORES)
_retrievers: Shared[Retriever] = Shared(STORES)


def shared_embedder(model: str | None = None) -> Embedder:
    """Return the embedder of a name, on the device and in the dtype of the settings.

    It is loaded anew if its files have changed.

    Args:
        model: packaged name, folder or hub id; None takes the setting ``LDOT_MODEL``.

    Raises:
        UsageError: no model has that name.
        ModelError: the model's files are missing or incomplete.
    """
    settings = Settings()
    return _embedder(model or settings.model, settings)[1]


def shared_store(store: str | None = None, collection: str | None = None) -> VectorStore:
    """Return the open collection at an address, with the settings that are in force now.

    Args:
        store, collection: see :func:`shared_retriever`.

    Raises:
        UsageError: the address has no known form, or a bad collection name.
    """
    return _store(store, collection, Settings())[1]


def shared_retriever(
    store: str | None = None, collection: str | None = None, model: str | None = None, reranker: str | None = None
) -> Retriever:
    """Return the retriever over an address and names, with the settings that are in force now.

    Args:
        store: address of the store; None takes the setting ``LDOT_STORE``.
        collection: name of the collection; None takes ``LDOT_COLLECTION``.
        model: see :func:`shared_embedder`.
        reranker: folder, hub id or "none"; None takes ``LDOT_RERANKER``, else the model's own.

    Raises:
        UsageError: the address has no known form, or no model or re-ranker has that name.
        ModelError: the files of a model are missing or incomplete.
    """
    settings = Settings()
    store_key, opened = _store(store, collection, settings)
    model_key, embedder = _embedder(model or settings.model, settings)
    reranker = reranker or settings.reranker
    reranker_key: Hashable = reranker
    if reranker not in (None, "none"):
        files = find_reranker(reranker, find_model(embedder.name))
        reranker_key = (model_key, _files_key(files) if files else None)

    def make() -> Retriever:
        if reranker_key == reranker:  # none, or the model's own
            return Retriever(embedder, opened, reranker=reranker)
        return Retriever(embedder, opened, reranker=_rerankers.get(reranker_key, lambda: _loaded(reranker, embedder)))

    return _retrievers.get((store_key, model_key, reranker_key, settings.region_store, settings.region_dtype), make)


def _store(address: str | None, collection: str | None, settings: Settings) -> tuple[Hashable, VectorStore]:
    given, collection = address or settings.store, collection or settings.collection
    parsed = parse_address(given)
    # A password in the address is part of the key: other users of a server may see other collections.
    token = token_for(parsed, settings)
    key = (parsed.address, collection, token, settings.index, settings.index_fallback)
    return key, _stores.get(key, lambda: open_store(given, collection))


def _embedder(name: str, settings: Settings) -> tuple[Hashable, Embedder]:
    device, dtype = settings.device, settings.dtype
    key = (_files_key(find_model(name)), device, dtype)

    def load() -> Embedder:
        with in_background():
            embedder = load_embedder(name, device=device, dtype=dtype)
            _ = embedder.reranker  # made here, since a cached property has no lock from Python 3.12 on
            return embedder

    return key, _embedders.get(key, load)


def _loaded(name: str | None, embedder: Embedder) -> Reranker:
    with in_background():
        reranker = load_reranker(name, embedder)
    assert reranker is not None
    return reranker


def _files_key(files: FilesOnDisk) -> Hashable:
    """Return what changes with a model's files, without reading them: a fingerprint reads all weights."""
    folder = Path(os.path.abspath(files.folder))
    paths = sorted(path for pattern in ("*.json", "*.safetensors") for path in folder.rglob(pattern))
    return files.name, folder, tuple((path, (stat := path.stat()).st_mtime_ns, stat.st_size) for path in paths)
