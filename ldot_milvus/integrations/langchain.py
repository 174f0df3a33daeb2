"""LangChain components: a retriever of photos and an embedding model for texts and photos."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from pydantic import ConfigDict, SkipValidation
from typing_extensions import override

from ldot_milvus.models.base import Embedder, Reranker
from ldot_milvus.models.loading import load_embedder
from ldot_milvus.search.retriever import Hit, Retriever
from ldot_milvus.settings import Settings
from ldot_milvus.stores import VectorStore, open_store


class LightningDOTRetriever(BaseRetriever):
    """A LangChain retriever that returns photos as documents.

    A document's ``page_content`` is the photo's caption, or its source if it has none. The metadata contains
    ``source``, ``score``, ``rerank_score``, ``probability``, ``width`` and ``height`` in pixels, and the photo's own
    fields.

    Example:
        >>> retriever = LightningDOTRetriever(store="faiss:./ldot-data", collection="images", k=5, rerank=20)
        >>> retriever.invoke("two dogs in the snow")  # or await retriever.ainvoke(..., k=3)

    A call may override ``k``, ``rerank``, ``filter``, ``kind`` and ``min_probability``: ``invoke(question, k=3)``. It
    raises :class:`~ldot_milvus.errors.LdotError` if the model or the store cannot be used or an argument is invalid.

    Attributes:
        store: address of the vector store, or an open store; None takes the setting ``LDOT_STORE``.
        collection: name of the collection; None takes ``LDOT_COLLECTION``. Ignored for an open store.
        model: packaged name, folder or hub id, or an embedder; None takes ``LDOT_MODEL``.
        reranker: folder, hub id, "none", or a re-ranker; None takes ``LDOT_RERANKER``, else the model's own.
        k: number of documents.
        rerank: number of candidates to re-rank; None takes the default of
            :meth:`Retriever.search <ldot_milvus.search.retriever.Retriever.search>`, 0 ranks by dot product alone.
        filter: condition on the rows, see ``docs/filters.md``.
        kind: kind of rows to search, "image" or "text".
        min_probability: return only documents with at least this probability, perhaps none; None returns all.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, ignored_types=(cached_property,))

    store: str | VectorStore | None = None
    collection: str | None = None
    model: str | SkipValidation[Embedder] | None = None
    reranker: str | SkipValidation[Reranker] | None = None
    k: int = 5
    rerank: int | None = None
    filter: dict[str, Any] | None = None
    kind: str = "image"
    min_probability: float | None = None

    @cached_property
    def retriever(self) -> Retriever:
        """The underlying two-stage retriever. Its store is opened and its model loaded at the first access."""
        store = self.store
        if not isinstance(store, VectorStore):
            store = open_store(store, self.collection)
        return Retriever(_embedder(self.model), store, reranker=self.reranker or Settings().reranker)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **overrides: Any
    ) -> list[Document]:
        return [_document(hit) for hit in self.retriever.search(query, **self._arguments(overrides))]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **overrides: Any
    ) -> list[Document]:
        return [_document(hit) for hit in await self.retriever.asearch(query, **self._arguments(overrides))]

    def _arguments(self, overrides: dict[str, Any]) -> dict[str, Any]:
        return {
            "k": self.k, "rerank": self.rerank, "filter": self.filter, "kind": self.kind,
            "min_probability": self.min_probability, **overrides,
        }  # fmt: skip

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        params["ls_vector_store_provider"] = self.store if isinstance(self.store, str) else type(self.store).__name__
        params["ls_embedding_model"] = (
            self.model.name
            if self.model is not None and not isinstance(self.model, str)
            else self.model or Settings().model
        )
        return params


class LightningDOTEmbeddings(Embeddings):
    """A LangChain embedding model for texts and photos. Compare its vectors by inner product.

    Args:
        model: packaged name, folder or hub id, or an embedder; None takes the setting ``LDOT_MODEL``.

    Raises:
        ModelError: the model's files are missing or incomplete.
        UsageError: no model has that name.

    Attributes:
        embedder: the embedder that computes the vectors.
    """

    def __init__(self, model: str | Embedder | None = None) -> None:
        self.embedder = _embedder(model)

    @override
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Encode texts.

        Returns:
            One vector of ``embedder.dim`` values for each text.
        """
        return self.embedder.encode_texts(texts).tolist()  # type: ignore[no-any-return]

    @override
    def embed_query(self, text: str) -> list[float]:
        """Encode one text as a vector of ``embedder.dim`` values."""
        return self.embed_documents([text])[0]

    def embed_image(self, uris: list[str]) -> list[list[float]]:
        """Encode photos.

        Args:
            uris: paths of the photos.

        Returns:
            One vector of ``embedder.dim`` values for each photo.

        Raises:
            InputError: a photo cannot be read or decoded.
        """
        return self.embedder.encode_images(uris).tolist()  # type: ignore[no-any-return]


def _embedder(model: str | Embedder | None) -> Embedder:
    """Return ``model`` itself, or load it by its name; None loads the model of the settings."""
    if model is not None and not isinstance(model, str):
        return model
    settings = Settings()
    return load_embedder(model or settings.model, device=settings.device, dtype=settings.dtype)


def _document(hit: Hit) -> Document:
    return Document(
        id=hit.id,
        page_content=hit.caption or hit.source,
        metadata={
            **hit.metadata,
            "source": hit.source,
            "score": hit.score,
            "rerank_score": hit.rerank_score,
            "probability": hit.probability,
            "width": hit.width,
            "height": hit.height,
        },
    )
