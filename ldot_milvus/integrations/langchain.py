"""LangChain: ``LightningDOTRetriever`` finds photos for a question, ``LightningDOTEmbeddings`` gives vectors."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from pydantic import ConfigDict, SkipValidation

from ldot_milvus.models.base import Embedder, Reranker
from ldot_milvus.models.loading import load_embedder
from ldot_milvus.search.retriever import Hit, Retriever
from ldot_milvus.settings import Settings
from ldot_milvus.stores import VectorStore, open_store


class LightningDOTRetriever(BaseRetriever):
    """Photos for a question, as documents: the caption (or the file's name) and where the photo is.

    Example:
        >>> retriever = LightningDOTRetriever(store="faiss:./ldot-data", collection="images", k=5, rerank=20)
        >>> retriever.invoke("two dogs in the snow")  # or await retriever.ainvoke(..., k=3)

    Every field may be given anew in a call: ``invoke(question, k=3, filter={...})``. What is None takes the
    ``LDOT_`` setting.
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

    @cached_property
    def retriever(self) -> Retriever:
        """The two-stage retriever behind this one, made at the first question."""
        store = self.store
        if not isinstance(store, VectorStore):
            store = open_store(store, self.collection)
        return Retriever(_embedder(self.model), store, reranker=self.reranker or Settings().reranker)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **given: Any
    ) -> list[Document]:
        return [_document(hit) for hit in self.retriever.search(query, **self._arguments(given))]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **given: Any
    ) -> list[Document]:
        return [_document(hit) for hit in await self.retriever.asearch(query, **self._arguments(given))]

    def _arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"k": self.k, "rerank": self.rerank, "filter": self.filter, "kind": self.kind, **given}

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        params["ls_vector_store_provider"] = self.store if isinstance(self.store, str) else type(self.store).__name__
        params["ls_embedding_model"] = self.model if isinstance(self.model, str) else "ldot-mini"
        return params


class LightningDOTEmbeddings(Embeddings):
    """Vectors of texts and photos for LangChain's vector stores; compare them by inner product."""

    def __init__(self, model: str | Embedder | None = None) -> None:
        self.embedder = _embedder(model)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector a text."""
        return self.embedder.encode_texts(texts).tolist()  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:
        """The vector of one text."""
        return self.embed_documents([text])[0]

    def embed_image(self, uris: list[str]) -> list[list[float]]:
        """One vector a photo, given by path."""
        return self.embedder.encode_images(uris).tolist()  # type: ignore[no-any-return]


def _embedder(model: str | Embedder | None) -> Embedder:
    """The model itself, or the one that the name or the settings say."""
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
            "width": hit.width,
            "height": hit.height,
        },
    )
