"""Haystack: a component that retrieves photos."""

from __future__ import annotations

from typing import Any

from ldot_milvus.errors import FilterError
from ldot_milvus.integrations.common import metadata_of, ranking_score
from ldot_milvus.search.hits import Hit
from ldot_milvus.search.retriever import Retriever
from ldot_milvus.search.shared import shared_retriever
from ldot_milvus.search.threads import in_search_thread

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as error:
    raise ImportError(
        "the Haystack component needs the package haystack-ai: pip install 'ldot-milvus[haystack]'"
    ) from error

_COMPARISONS = {
    "==": "$eq", "!=": "$ne", ">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte", "in": "$in", "not in": "$nin",
}  # fmt: skip


@component
class LightningDOTRetriever:
    """A Haystack component that returns photos as documents.

    A document's ``content`` is the photo's caption, or its source if it has none, and its ``score`` is that of the
    re-ranker, or the dot product if the photo was not re-ranked. The ``meta`` contains ``source``, ``dot_product``,
    ``rerank_score``, ``probability``, ``kind``, ``namespace``, ``width`` and ``height`` in pixels, and the photo's own
    fields under ``metadata``. ``DocumentToImageContent(file_path_meta_field="source")`` loads the photos.

    Example:
        >>> retriever = LightningDOTRetriever(store="faiss:./ldot-data", collection="images", top_k=5)
        >>> retriever.run(query="two dogs in the snow")["documents"]

    The store is opened and the model loaded by :meth:`warm_up` or at the first query, once in a process. They raise
    :class:`~ldot_milvus.errors.LdotError` if the store or the model cannot be used or an argument is invalid.

    Args:
        store: address of the vector store; None takes the setting ``LDOT_STORE``.
        collection: name of the collection; None takes ``LDOT_COLLECTION``.
        model: packaged name, folder or hub id; None takes ``LDOT_MODEL``.
        reranker: folder, hub id or "none"; None takes ``LDOT_RERANKER``, else the model's own.
        top_k: number of documents.
        rerank: number of candidates to re-rank; None takes the default of ``Retriever.search``.
        filters: condition on the rows: a filter of Haystack's, with fields such as ``meta.width`` and
            ``meta.metadata.album``, or a filter of ours, see ``docs/filters.md``.
        min_probability: return only documents with at least this probability, perhaps none; None returns all.
    """

    def __init__(
        self,
        store: str | None = None,
        collection: str | None = None,
        *,
        model: str | None = None,
        reranker: str | None = None,
        top_k: int = 5,
        rerank: int | None = None,
        filters: dict[str, Any] | None = None,
        min_probability: float | None = None,
    ) -> None:
        self.store = store
        self.collection = collection
        self.model = model
        self.reranker = reranker
        self.top_k = top_k
        self.rerank = rerank
        self.filters = filters
        self.min_probability = min_probability

    def warm_up(self) -> None:
        """Open the store and load the model, unless they are."""
        self._retriever()

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments of the constructor, in the form that pipelines are saved in."""
        return default_to_dict(
            self,
            store=self.store,
            collection=self.collection,
            model=self.model,
            reranker=self.reranker,
            top_k=self.top_k,
            rerank=self.rerank,
            filters=self.filters,
            min_probability=self.min_probability,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LightningDOTRetriever:
        """Make a component from the values of :meth:`to_dict`."""
        made: LightningDOTRetriever = default_from_dict(cls, data)
        return made

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Search photos for a text.

        Args:
            query: query text.
            filters: replaces the filter of the constructor; None keeps it.
            top_k: replaces the number of documents; None keeps it.

        Returns:
            ``documents``, best first.
        """
        hits = self._retriever().search(
            query,
            k=self.top_k if top_k is None else top_k,
            rerank=self.rerank,
            filter=_filter(self.filters if filters is None else filters),
            min_probability=self.min_probability,
        )
        return {"documents": [_document(hit) for hit in hits]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Run :meth:`run` in a thread, without blocking the event loop."""
        found: dict[str, list[Document]] = await in_search_thread(self.run, query, filters, top_k)
        return found

    def _retriever(self) -> Retriever:
        return shared_retriever(self.store, self.collection, self.model, self.reranker)


def _document(hit: Hit) -> Document:
    return Document(id=hit.id, content=hit.caption or hit.source, meta=metadata_of(hit), score=ranking_score(hit))


def _filter(filters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Translate a filter of Haystack's; one of ours is returned as it is."""
    if filters is None or "operator" not in filters:
        return filters
    operator = filters["operator"]
    missing = {"conditions"} - filters.keys() if "field" not in filters else {"value"} - filters.keys()
    if missing:
        raise FilterError(f"the filter {filters!r} has no {missing.pop()!r}")
    if "field" in filters:
        if operator not in _COMPARISONS:
            raise FilterError(f"unknown operator {operator!r}; use {', '.join(_COMPARISONS)}")
        return {str(filters["field"]).removeprefix("meta."): {_COMPARISONS[operator]: filters["value"]}}
    conditions = [_filter(condition) for condition in filters["conditions"]]
    if operator in ("AND", "OR"):
        return {f"${operator.lower()}": conditions}
    if operator == "NOT":
        return {"$not": {"$and": conditions}}
    raise FilterError(f"unknown operator {operator!r}; use AND, OR or NOT")
