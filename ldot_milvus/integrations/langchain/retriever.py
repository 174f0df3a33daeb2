"""A LangChain retriever of photos."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import RunnableConfig
from pydantic import Field, model_validator
from typing_extensions import Self, override

from ldot_milvus.client import Client
from ldot_milvus.errors import UsageError
from ldot_milvus.integrations.langchain.backend import CollectionFields
from ldot_milvus.integrations.langchain.documents import LONGEST_SIDE, Content, document_of
from ldot_milvus.integrations.langchain.queries import SEARCH_ARGUMENTS, Query, search_arguments, search_query
from ldot_milvus.search.threads import in_search_thread
from ldot_milvus.settings import Settings
from ldot_milvus.stores import VectorStore
from ldot_milvus.stores.registry import parse_address


class LightningDOTRetriever(CollectionFields, BaseRetriever):
    """A LangChain retriever that returns photos as documents.

    The metadata of a document contains ``source``, ``caption``, ``kind``, ``namespace``, ``width`` and ``height`` in
    pixels, ``score``, ``rerank_score``, ``probability``, and under ``metadata`` the photo's own fields.

    Example:
        >>> retriever = LightningDOTRetriever(store="faiss:./ldot-data", collection="images", k=5, rerank=20)
        >>> retriever.invoke("two dogs in the snow")  # or await retriever.ainvoke(..., k=3)
        >>> retriever.invoke(Path("beach.jpg"))  # photos like this one

    A query is a text, a photo (a ``Path``, bytes, a PIL image or a data URL), a content block, a list of content blocks
    or a message. A call may override ``k``, ``rerank``, ``filter``, ``kind``, ``namespace``, ``min_probability`` and
    ``content``: ``invoke(question, k=3)``. It raises :class:`~ldot_milvus.errors.LdotError` if the model or the store
    cannot be used, or an argument is invalid or unknown.

    Attributes:
        store: address of the vector store, or an open store; None takes the setting ``LDOT_STORE``.
        collection: name of the collection; None takes ``LDOT_COLLECTION``. Ignored for an open store.
        model: packaged name, folder or hub id, or an embedder; None takes ``LDOT_MODEL``.
        reranker: folder, hub id, "none", or a re-ranker; None takes ``LDOT_RERANKER``, else the model's own.
        server: address of a service (``ldot serve``) that searches instead of this process, such as
            ``http://127.0.0.1:8080``; its token is the setting ``LDOT_SERVE_TOKEN``. The service has the store and the
            models, so ``store``, ``model`` and ``reranker`` are left out.
        k: number of documents.
        rerank: number of candidates to re-rank; None takes the default of
            :meth:`Retriever.search <ldot_milvus.search.retriever.Retriever.search>`, 0 ranks by dot product alone.
        filter: condition on the rows, see ``docs/filters.md``.
        kind: kind of rows to search, "image" or "text".
        namespace: search only this tenant's rows; None searches those of all tenants.
        min_probability: return only documents with at least this probability, perhaps none; None returns all.
        content: ``page_content`` of a document: "caption" (the source if there is none) or "source". "image" is the
            caption too, and adds the picture as a content block to the metadata, under ``image``.
        longest_side: of these pictures, in pixels; larger photos are scaled down.
        search_kwargs: values of these fields in the form of LangChain's vector store retrievers, such as ``{"k": 3,
            "filter": {...}}``. They take precedence over the fields. ``score_threshold`` means ``min_probability``.
    """

    server: str | None = None
    k: int = 5
    rerank: int | None = None
    filter: dict[str, Any] | None = None
    kind: str = "image"
    namespace: str | None = None
    min_probability: float | None = None
    content: Content = "caption"
    longest_side: int = Field(default=LONGEST_SIDE, ge=1)
    search_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_search_kwargs(self) -> Self:
        search_arguments(self.search_kwargs, "search_kwargs")
        if self.server is not None and not (self.store is self.model is self.reranker is None):
            raise UsageError("store, model and reranker are those of the service: leave them out with server")
        return self

    @override
    def invoke(self, input: Query, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Find photos for a query; the other arguments override fields."""
        return super().invoke(cast(str, input), config, **kwargs)

    @override
    async def ainvoke(self, input: Query, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Find photos as :meth:`invoke` does, in a thread: the event loop goes on, also while the model is loaded."""
        return await super().ainvoke(cast(str, input), config, **kwargs)

    def _get_relevant_documents(
        self, query: Query, *, run_manager: CallbackManagerForRetrieverRun, **overrides: Any
    ) -> list[Document]:
        return self._documents(query, overrides)

    async def _aget_relevant_documents(
        self, query: Query, *, run_manager: AsyncCallbackManagerForRetrieverRun, **overrides: Any
    ) -> list[Document]:
        return await in_search_thread(self._documents, query, overrides)

    def _documents(self, query: Query, overrides: dict[str, Any]) -> list[Document]:
        arguments = self._arguments(overrides)
        content = arguments.pop("content")
        if content not in ("caption", "source", "image"):
            raise UsageError(f'content is {content!r}: give "caption", "source" or "image"')
        searcher = self.retriever if self.server is None else self._client()
        hits = searcher.search(**search_query(query), **arguments)
        return [document_of(hit, content, self.longest_side) for hit in hits]

    def _client(self) -> Client:
        assert self.server is not None
        return _client(self.server, self.collection, Settings().serve_secret)

    def _arguments(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the search: the call's before ``search_kwargs``, and these before the fields."""
        call = {name: value for name, value in overrides.items() if name not in ("search_kwargs", "verbose")}
        return {
            **{name: getattr(self, name) for name in SEARCH_ARGUMENTS},
            **search_arguments(self.search_kwargs, "search_kwargs"),
            **search_arguments(overrides.get("search_kwargs") or {}, "search_kwargs"),
            **search_arguments(call, type(self).__name__),
        }

    @override
    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        params["ls_vector_store_provider"] = _provider(self.store)
        params["ls_embedding_provider"] = "LightningDOTEmbeddings"
        params["ls_embedding_model"] = self.model_name
        return params


@lru_cache(maxsize=16)  # components hold nothing but fields, and connections are worth keeping
def _client(server: str, collection: str | None, token: str | None) -> Client:
    return Client(server, token, collection=collection)


def _provider(store: str | VectorStore | None) -> str:
    """Return the kind of a store, without opening it; an address may contain a password, and is not told."""
    address = store.address if isinstance(store, VectorStore) else store or Settings().store
    try:
        return parse_address(address).provider or type(parse_address(address)).__name__.removesuffix("Address")
    except UsageError:  # the search says it, or the store was opened without an address of ours
        return type(store).__name__ if isinstance(store, VectorStore) else "unknown"
