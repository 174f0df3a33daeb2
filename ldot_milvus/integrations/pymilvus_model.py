"""``pymilvus.model`` functions (package ``milvus-model``): an embedding function and a re-rank function."""

from __future__ import annotations

from collections.abc import Sequence

from ldot_milvus.errors import UsageError
from ldot_milvus.models.base import Array, Embedder, ImageInput
from ldot_milvus.models.loading import load_embedder
from ldot_milvus.search.shared import shared_embedder, shared_retriever
from ldot_milvus.settings import Settings
from ldot_milvus.stores.validation import MAX_ID

try:
    from milvus_model.base import BaseEmbeddingFunction, BaseRerankFunction, RerankResult
except ImportError as error:
    raise ImportError(
        "functions for pymilvus.model need the package milvus-model: pip install 'ldot-milvus[pymilvus-model]'"
    ) from error


class LightningDOTEmbeddingFunction(BaseEmbeddingFunction):
    """An embedding function for texts and photos. Its vectors belong into a field with the metric ``IP``.

    Args:
        model: packaged name, folder or hub id, or an embedder; None takes the setting ``LDOT_MODEL``.
        device: "cuda", "cuda:1", "mps" or "cpu"; None takes ``LDOT_DEVICE``, and shares the model in the process.

    Raises:
        ModelError: the model's files are missing or incomplete.
        UsageError: no model has that name, or the device cannot be used.

    Attributes:
        embedder: the embedder that computes the vectors.
    """

    def __init__(self, model: str | Embedder | None = None, *, device: str | None = None) -> None:
        if model is not None and not isinstance(model, str):
            self.embedder = model
        elif device is None:
            self.embedder = shared_embedder(model)
        else:
            settings = Settings()
            self.embedder = load_embedder(model or settings.model, device=device, dtype=settings.dtype)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.embedder.dim

    def __call__(self, texts: Sequence[str]) -> list[Array]:
        """Encode texts, as :meth:`encode_documents`."""
        return self.encode_documents(texts)

    def encode_queries(self, queries: Sequence[str]) -> list[Array]:
        """Encode query texts.

        Returns:
            A vector, float32 (dim,), for each text.

        Raises:
            UsageError: ``queries`` is a single string, or a text is empty.
        """
        return list(self.embedder.encode_texts(queries))

    def encode_documents(self, documents: Sequence[str]) -> list[Array]:
        """Encode texts to store, such as captions; the vectors are those of :meth:`encode_queries`."""
        return self.encode_queries(documents)

    def encode_images(self, images: Sequence[ImageInput]) -> list[Array]:
        """Encode photos.

        Args:
            images: paths, encoded bytes or PIL images.

        Returns:
            A vector, float32 (dim,), for each photo.

        Raises:
            InputError: a photo cannot be read.
        """
        return list(self.embedder.encode_images(images))


class LightningDOTRerankFunction(BaseRerankFunction):
    """A re-rank function for the photos of a collection, from their stored region data; no photo is opened.

    The collection is opened and the model loaded at the first call, once in a process.

    Args:
        store: address of the vector store; None takes the setting ``LDOT_STORE``.
        collection: name of the collection; None takes ``LDOT_COLLECTION``.
        model: packaged name, folder or hub id; None takes ``LDOT_MODEL``.
        reranker: folder or hub id of a re-ranker; None takes ``LDOT_RERANKER``, else the model's own.
    """

    def __init__(
        self,
        store: str | None = None,
        collection: str | None = None,
        *,
        model: str | None = None,
        reranker: str | None = None,
    ) -> None:
        self.store = store
        self.collection = collection
        self.model = model
        self.reranker = reranker

    def __call__(self, query: str, documents: Sequence[str], top_k: int | None = 5) -> list[RerankResult]:
        """Rank photos for a text.

        Args:
            query: query text.
            documents: photos by the ``id`` or the ``source`` of their rows, such as the fields of another search.
            top_k: maximum number of results; None for all.

        Returns:
            Results with the document as ``text``, its ``index`` in ``documents`` and its ``score``, best first. Photos
            without region data are left out, which is logged.

        Raises:
            UsageError: a document is no photo of the collection, ``top_k`` is below 1, the text is empty, or there is
                no re-ranker.
            RegionStoreNotFound: this process does not reach the region data.
        """
        if isinstance(documents, str):
            raise UsageError("documents are a list of ids or sources, not a single string")
        if top_k is not None and top_k < 1:
            raise UsageError(f"top_k is {top_k}: give 1 or more, or None for all")
        if not documents:
            return []
        retriever = shared_retriever(self.store, self.collection, self.model, self.reranker)
        photos = [(text if len(text.encode()) <= MAX_ID else None, text) for text in documents]
        results = []
        for index, hit in retriever.rerank(query, photos):
            if hit is None:
                raise UsageError(
                    f"document {index} ({documents[index]!r}) is no photo of collection {retriever.store.collection!r} "
                    f"in {retriever.store.address}: give ids or sources of its rows"
                )
            if hit.rerank_score is not None:
                results.append(RerankResult(text=documents[index], score=hit.rerank_score, index=index))
        return results[:top_k]
