"""A document compressor that re-ranks photos which another retriever found."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field
from typing_extensions import override

from ldot_milvus.integrations.langchain.backend import CollectionFields
from ldot_milvus.search.hits import Hit


class LightningDOTCompressor(CollectionFields, BaseDocumentCompressor):
    """Re-ranks the documents of any retriever by the stored region data of their photos.

    A document is a photo of the collection if its id is that of a row, or else if ``metadata["source"]`` is the source
    of a row. It gets the ``rerank_score`` and ``probability`` of the photo as metadata. Documents without a photo or
    without region data come last, in the order in which they were given.

    Example:
        >>> compressor = LightningDOTCompressor(store="faiss:./ldot-data", k=5)
        >>> ContextualCompressionRetriever(base_compressor=compressor, base_retriever=retriever)

    Attributes:
        store, collection, model, reranker: see :class:`LightningDOTRetriever`.
        namespace: consider only this tenant's photos; None those of all tenants.
        k: maximum number of documents to return.
    """

    namespace: str | None = None
    k: int = Field(default=5, ge=1)

    @override
    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return the best k documents for a query, best first; the given ones are not changed.

        Raises:
            UsageError: the query is empty, or the model has no re-ranker.
            StoreError: the store cannot be used, or this process does not reach the region data.
        """
        photos = [(document.id, _text(document.metadata.get("source"))) for document in documents]
        ranked = self.retriever.rerank(query, photos, namespace=self.namespace) if photos else []
        return [_scored(documents[index], hit) for index, hit in ranked[: self.k]]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _scored(document: Document, hit: Hit | None) -> Document:
    scores = {} if hit is None else {"rerank_score": hit.rerank_score, "probability": hit.probability}
    return document.model_copy(update={"metadata": {**document.metadata, **scores}})
