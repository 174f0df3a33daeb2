"""The arguments of one search, and their checks before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ldot_milvus.arguments import described, whole_number
from ldot_milvus.errors import UsageError
from ldot_milvus.models.base import Embedder, ImageInput, Reranker
from ldot_milvus.models.inputs import text_list
from ldot_milvus.search.probability import check_minimum
from ldot_milvus.search.query import Part, RowId, check_parts, has_positive_text, photo_of
from ldot_milvus.stores import Record
from ldot_milvus.stores.filters import parse
from ldot_milvus.stores.validation import row_not_found

RERANK = 20
"""Default number of hits to re-rank."""


@dataclass(frozen=True)
class SearchRequest:
    """The arguments of one search; :meth:`.Retriever.search` describes them."""

    text: str | Iterable[Part] | None = None
    image: ImageInput | None = None
    id: str | None = None
    k: int = 5
    offset: int = 0
    rerank: int | None = None
    filter: dict[str, Any] | None = None
    kind: str = "image"
    namespace: str | None = None
    min_probability: float | None = None


Query = str | list[Part] | ImageInput | RowId
"""A text, the parts of a composed query, an image, or the id of a row whose like is wanted."""


@dataclass(frozen=True)
class Plan:
    """A search whose arguments were checked.

    Attributes:
        query: what is searched for.
        k, offset, kind, min_probability: as they were given.
        rerank: number of best hits to re-rank.
        filter: the caller's filter and the namespace.
        crosses: whether texts are compared with images.
    """

    query: Query
    k: int
    offset: int
    rerank: int
    filter: dict[str, Any] | None
    kind: str
    crosses: bool
    min_probability: float | None

    @property
    def depth(self) -> int:
        """Number of rows that the store has to return."""
        return max(self.k + self.offset + isinstance(self.query, RowId), self.rerank)

    @property
    def composed(self) -> bool:
        """Whether the query has parts with weights."""
        return isinstance(self.query, list)


def query_of(request: SearchRequest) -> Query:
    """Return what is searched for, in the forms of :data:`Query`.

    Raises:
        UsageError: there is no query or there are two, or a text or a part cannot be used.
        InputError: an image is none.
    """
    if sum(value is not None for value in (request.text, request.image, request.id)) != 1:
        raise UsageError("search takes a text, an image or an id: give exactly one of them")
    if isinstance(request.text, str):
        return str(text_list([request.text], 2**63)[0])
    if request.text is not None:
        return check_parts(request.text)
    if request.image is not None:
        return photo_of(request.image, "the query image")
    if not isinstance(request.id, str):
        raise UsageError(f"id is {described(request.id)}: give the id of a row")
    return RowId(request.id)


def ids_in(query: Query) -> list[str]:
    """Return the ids of the rows that a search starts from."""
    parts = [content for _, content in query] if isinstance(query, list) else [query]
    return [part.id for part in parts if isinstance(part, RowId)]


def plan_of(
    request: SearchRequest,
    query: Query,
    rows: Mapping[str, Record],
    embedder: Embedder,
    reranker: Reranker | None,
) -> Plan:
    """Check the arguments of a search.

    Args:
        request: the arguments.
        query: what :func:`query_of` returned for it.
        rows: the stored rows of :func:`ids_in`, by id.
        embedder, reranker: what will compute it.

    Raises:
        UsageError: an argument is out of range, or does not fit the query or the models, or the filter is invalid.
        RowNotFound: the query has an id that is not among ``rows``.
    """
    for id in ids_in(query):
        if id not in rows:
            raise row_not_found(id)
    k, offset = whole_number(request.k, "k", 1), whole_number(request.offset, "offset", 0)
    if isinstance(query, RowId):
        crosses = rows[query.id].kind != request.kind
    else:
        crosses = (request.text is None) == (request.kind == "text")
        crosses = crosses and (not isinstance(query, list) or has_positive_text(query))
    by_row = isinstance(query, RowId)
    default = RERANK if crosses and not by_row and reranker is not None else 0
    rerank = whole_number(default if request.rerank is None else request.rerank, "rerank", 0)
    if rerank and not crosses and isinstance(query, list) and request.kind == "image":
        raise UsageError("re-ranking reads the texts with positive weights, and there is none: use rerank=0")
    if rerank and (by_row or not crosses):
        raise UsageError("re-ranking compares a text with an image: use rerank=0 for this search")
    if rerank and reranker is None:
        raise UsageError("this model has no re-ranker: use rerank=0, or name one with LDOT_RERANKER")
    if isinstance(query, list) and request.min_probability is not None:
        raise UsageError("min_probability: a probability is that of one text with a photo: leave it out")
    minimum = check_minimum(request.min_probability, embedder, reranker if rerank else None, crosses=crosses)
    parse(request.filter)  # here, since the store would refuse it together with other searches
    return Plan(query, k, offset, rerank, within(request.namespace, request.filter), request.kind, crosses, minimum)


def within(namespace: str | None, filter: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a filter that also asks for a namespace; None for that of all tenants."""
    if namespace is None:
        return filter
    own: dict[str, Any] = {"namespace": namespace}
    return own if filter in (None, {}) else {"$and": [own, filter]}
