"""What the adapters share: a retriever that is made at its first use, and the fields of a hit."""

from __future__ import annotations

import threading
from typing import Any

from ldot_milvus.models.base import Embedder, Reranker
from ldot_milvus.models.loading import load_embedder
from ldot_milvus.search.retriever import Hit, Retriever
from ldot_milvus.settings import Settings
from ldot_milvus.stores import VectorStore, open_store

# One lock for all, so that an object that holds a LazyRetriever can be copied and pickled.
_making = threading.Lock()


class LazyRetriever:
    """A two-stage retriever whose store is opened and whose model is loaded at the first call, once for all threads.

    A copy or a pickle contains the names only, and makes a retriever of its own.

    Args:
        store: address of the vector store, or an open store; None takes the setting ``LDOT_STORE``.
        collection: name of the collection; None takes ``LDOT_COLLECTION``. Ignored for an open store.
        model: packaged name, folder or hub id, or an embedder; None takes ``LDOT_MODEL``.
        reranker: folder, hub id, "none", or a re-ranker; None takes ``LDOT_RERANKER``, else the model's own.
    """

    def __init__(
        self,
        store: str | VectorStore | None,
        collection: str | None,
        model: str | Embedder | None,
        reranker: str | Reranker | None,
    ) -> None:
        self._parts = store, collection, model, reranker
        self._made: Retriever | None = None

    def __call__(self) -> Retriever:
        """Return the retriever.

        Raises:
            UsageError: an address, a name or a setting is invalid.
            ModelError: the model or the re-ranker cannot be loaded.
        """
        with _making:
            if self._made is None:
                store, collection, model, reranker = self._parts
                opened = store if isinstance(store, VectorStore) else open_store(store, collection)
                self._made = Retriever(embedder_of(model), opened, reranker=reranker or Settings().reranker)
            return self._made

    def __getstate__(self) -> dict[str, Any]:
        return {"_parts": self._parts, "_made": None}


def embedder_of(model: str | Embedder | None, device: str | None = None) -> Embedder:
    """Return ``model`` itself, or load it by its name; None loads the model of the settings.

    Args:
        model: packaged name, folder or hub id, or an embedder.
        device: device of a model that is loaded; None takes the setting ``LDOT_DEVICE``.
    """
    if model is not None and not isinstance(model, str):
        return model
    settings = Settings()
    return load_embedder(model or settings.model, device=device or settings.device, dtype=settings.dtype)


def metadata_of(hit: Hit) -> dict[str, Any]:
    """Return the fields of a hit that a framework has no field for.

    Frameworks have fields of their own for an id, a text and the score that ranks. The dot product is therefore named
    ``dot_product``, and the photo's own fields are together under ``metadata``.
    """
    fields = hit.to_dict()
    fields["dot_product"] = fields.pop("score")
    return {name: value for name, value in fields.items() if name not in ("id", "caption")}


def ranking_score(hit: Hit) -> float:
    """Return the score that orders the hits: that of the re-ranker, or the dot product if the hit was not re-ranked."""
    return hit.score if hit.rerank_score is None else hit.rerank_score
