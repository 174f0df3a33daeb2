"""A LangChain vector store over a collection of photos and texts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore
from pydantic import PrivateAttr
from typing_extensions import Self, override

from ldot_milvus.errors import UsageError
from ldot_milvus.ingest import edits
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.ingest.row_sources import own_fields
from ldot_milvus.integrations.arguments import refuse_unknown
from ldot_milvus.integrations.langchain.backend import CollectionFields, Made
from ldot_milvus.integrations.langchain.documents import document_of
from ldot_milvus.integrations.langchain.embeddings import LightningDOTEmbeddings
from ldot_milvus.integrations.langchain.queries import Query, search_query
from ldot_milvus.search.hits import Hit
from ldot_milvus.sources import Source
from ldot_milvus.sources.base import source_at
from ldot_milvus.stores import Record
from ldot_milvus.stores.identity import DEFAULT_NAMESPACE

T = TypeVar("T")


class LightningDOTVectorStore(CollectionFields, VectorStore):
    """A LangChain vector store over a collection, ranked by inner product. It holds photos and texts.

    Photos come back as :class:`LightningDOTRetriever` returns them, and texts as they were added, with their own
    metadata. A search finds rows of one kind. Rows are identified by their content unless they are given ids; what is
    added again replaces its row. :class:`LightningDOTRetriever` re-ranks, this class does not.

    Example:
        >>> photos = LightningDOTVectorStore(store="faiss:./ldot-data", collection="images")
        >>> photos.add_images(["a.jpg", "b.jpg"], captions=["a dog", ""])
        >>> photos.similarity_search("a dog in the snow", k=3, filter={"width": {"$gte": 640}})

    Every method raises :class:`~ldot_milvus.errors.LdotError` if the model or the store cannot be used, or an argument
    is invalid or unknown. A search in a collection that does not exist raises
    :class:`~ldot_milvus.errors.CollectionNotFound`; ``add_texts([])`` creates it.

    Attributes:
        store, collection, model, reranker: see :class:`LightningDOTRetriever`. Region data of the re-ranker is stored
            with the photos.
        kind: kind of rows that a search finds, "image" or "text".
        namespace: tenant of the rows; None adds to "default", and reads and deletes the rows of all tenants.
    """

    kind: str = "image"
    namespace: str | None = None

    _ingestor: Made[Ingestor] = PrivateAttr(default_factory=lambda: Made())

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._ingestor = Made()
        return copied

    @property
    @override
    def embeddings(self) -> LightningDOTEmbeddings:
        """The embedding model of the collection."""
        return LightningDOTEmbeddings(self.model)

    @override
    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts; create the collection if it does not exist.

        Args:
            texts: texts of at most 8,192 bytes.
            metadatas: own fields of each text, JSON values. A ``source`` becomes the row's source too.
            ids: id of each text; None takes the SHA-256 of the text.
            kwargs: not taken.

        Returns:
            The ids of the rows.

        Raises:
            UsageError: as many ids or metadatas as texts are needed.
            InputError: a text cannot be stored; the others are.
        """
        refuse_unknown(kwargs, ("texts", "metadatas", "ids"), "add_texts")
        texts = list(texts)
        described = zip(texts, _each("metadatas", metadatas, texts, {}), _each("ids", ids, texts, None), strict=True)
        return self._add(
            Source(_label(own), kind="text", caption=text, id=id, namespace=self._own_namespace, metadata=own)
            for text, own, id in described
        )

    def add_images(
        self,
        uris: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        captions: Sequence[str] | None = None,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Add photos; create the collection if it does not exist.

        Args:
            uris: paths; URLs need the setting ``LDOT_ALLOW_URLS``.
            metadatas: own fields of each photo, JSON values.
            captions: caption of each photo.
            ids: id of each photo; None takes the SHA-256 of its content.

        Returns:
            The ids of the rows.

        Raises:
            UsageError: as many ids, captions and metadatas as photos are needed.
            InputError: a photo cannot be read or stored; the others are.
        """
        uris = list(uris)
        described = zip(
            uris, _each("metadatas", metadatas, uris, {}), _each("captions", captions, uris, ""),
            _each("ids", ids, uris, None), strict=True,
        )  # fmt: skip
        return self._add(
            source_at(os.fspath(uri), caption=caption, id=id, namespace=self._own_namespace, metadata=own)
            for uri, own, caption, id in described
        )

    async def aadd_images(
        self, uris: Iterable[str], metadatas: list[dict[str, Any]] | None = None, **arguments: Any
    ) -> list[str]:
        """Run :meth:`add_images` in a thread."""
        return await run_in_executor(None, self.add_images, uris, metadatas, **arguments)

    @override
    def delete(self, ids: Sequence[str] | None = None, **kwargs: Any) -> bool:
        """Delete rows with their region data, by id or by ``filter``. Ids that do not exist are ignored.

        Raises:
            UsageError: neither is given; nothing deletes all rows by accident.
        """
        refuse_unknown(kwargs, ("ids", "filter"), "delete")
        filter = kwargs.get("filter")
        if ids is None and filter is None:
            raise UsageError('delete needs ids or a filter; to delete every row, use filter={"id": {"$ne": ""}}')
        if ids or filter is not None:
            edits.delete(
                self.opened, model=self.model_name, reranker=self.reranker_name, ids=list(ids or ()), filter=filter,
                namespace=self.namespace,
            )  # fmt: skip
        return True

    @override
    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the existing documents of these ids, in this order."""
        rows = self.opened.get(list(dict.fromkeys(ids)))
        return [_document(row) for row in rows if self.namespace in (None, row.namespace)]

    @override
    def similarity_search(self, query: Query, k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the k documents that are most similar to a text or photo, best first.

        Args:
            query: see :class:`LightningDOTRetriever`.
            k: maximum number of documents.
            kwargs: ``filter``, see ``docs/filters.md``, and ``kind``.
        """
        return [_document(hit) for hit in self._search(query, k, kwargs)]

    @override
    def similarity_search_with_score(self, query: Query, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """Return documents as :meth:`similarity_search` does, with the inner product of their vector and the query's.

        The score is unbounded, and higher is better.
        """
        return [(_document(hit), hit.score) for hit in self._search(query, k, kwargs)]

    @override
    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the k documents whose vectors have the largest inner product with ``embedding``, best first.

        Args:
            embedding: a vector of the model of the collection.
            k: maximum number of documents.
            kwargs: ``filter`` and ``kind``.
        """
        vector = np.asarray(embedding, dtype=np.float32)
        hits = self.retriever.nearest(vector, k=k, namespace=self.namespace, **self._arguments(kwargs))
        return [_document(hit) for hit in hits]

    @override
    def _similarity_search_with_relevance_scores(
        self, query: Query, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return documents with their calibrated probability; a model without a calibration is refused."""
        hits = self._search(query, k, kwargs, min_probability=0.0)
        return [(_document(hit), hit.probability or 0.0) for hit in hits]

    @classmethod
    @override
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Open a collection and add texts.

        Args:
            texts, metadatas, ids: see :meth:`add_texts`.
            embedding: a :class:`LightningDOTEmbeddings`.
            kwargs: fields of the vector store; ``kind`` is "text" unless given.

        Raises:
            UsageError: another class of embeddings.
        """
        if not isinstance(embedding, LightningDOTEmbeddings):
            raise UsageError(
                f"a LightningDOTVectorStore embeds photos and texts with one model: give LightningDOTEmbeddings, not "
                f"{type(embedding).__name__}"
            )
        store = cls(**{"kind": "text", "model": embedding.model, **kwargs})
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def _search(
        self, query: Query, k: int, kwargs: Mapping[str, Any], min_probability: float | None = None
    ) -> list[Hit]:
        return self.retriever.search(
            **search_query(query), k=k, rerank=0, namespace=self.namespace, min_probability=min_probability,
            **self._arguments(kwargs),
        )  # fmt: skip

    def _arguments(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        refuse_unknown(kwargs, ("k", "filter", "kind"), type(self).__name__)
        return {"filter": None, "kind": self.kind, **kwargs}

    def _add(self, sources: Iterable[Source]) -> list[str]:
        opened, embedder, reranker = self.opened, self.embedder, self.reranker_name
        make = lambda: Ingestor(opened, embedder, reranker=reranker)  # noqa: E731
        return edits.add(self._ingestor.get((opened, embedder, reranker), make), list(sources))

    @property
    def _own_namespace(self) -> str:
        return DEFAULT_NAMESPACE if self.namespace is None else self.namespace


def _document(row: Hit | Record) -> Document:
    if row.kind == "text":
        return Document(id=row.id, page_content=row.caption, metadata=own_fields(row.metadata))
    return document_of(row)


def _label(metadata: Mapping[str, Any]) -> str:
    """Return the source of a text, if its metadata says one as LangChain's loaders do."""
    source = metadata.get("source")
    return source if isinstance(source, str) else ""


def _each(name: str, values: Sequence[T] | None, items: Sequence[object], default: T) -> Sequence[T]:
    if values is None:
        return [default] * len(items)
    if len(values) != len(items):
        raise UsageError(f"{len(items)} items have {len(values)} {name}: give one for each, or none")
    return values
