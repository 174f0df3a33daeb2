"""Two-stage retrieval: dot product over all rows, then cross-attention over the best ones.

Source: LightningDOT, section 3.4. The second stage reads stored region data, so a query never opens an image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import numpy as np

from ldot_milvus.arguments import whole_number
from ldot_milvus.errors import LdotError, ModelMismatch, UsageError
from ldot_milvus.models.base import Array, Embedder, ImageInput, ModelFiles, Reranker
from ldot_milvus.models.calibration import calibration_of
from ldot_milvus.models.loading import load_embedder, load_reranker
from ldot_milvus.search.encoding import encode_queries
from ldot_milvus.search.hits import Hit as Hit
from ldot_milvus.search.hits import hit_of
from ldot_milvus.search.probability import at_least, with_probability
from ldot_milvus.search.query import Part, RowId
from ldot_milvus.search.query_vectors import QueryVectors
from ldot_milvus.search.requests import Plan, SearchRequest, ids_in, plan_of, query_of, within
from ldot_milvus.search.reranking import Candidates, rerank_all
from ldot_milvus.search.threads import in_search_thread
from ldot_milvus.settings import Settings
from ldot_milvus.sources import Source
from ldot_milvus.stores import Match, Record, VectorStore, open_store
from ldot_milvus.stores.region_place import RegionPlace
from ldot_milvus.stores.regions import RegionStore
from ldot_milvus.stores.upgrade import outdated
from ldot_milvus.stores.validation import filled_with

log = logging.getLogger(__name__)

Stages = Callable[[str], AbstractContextManager[None]]
"""Takes the name of a stage ("encode", "search", "rerank") and returns a context in which the stage runs."""


class Retriever:
    """Finds photos for a text, and photos or texts for a photo. Searching writes nothing.

    Args:
        embedder: model that also filled ``store``; the first search checks this.
        store: collection to search.
        region_store: region data of the collection; None takes the setting, else the recorded place, else the default.
        reranker: None for the embedder's own, "none" for none, a folder or hub id, or a loaded re-ranker.
        query_vectors: a cache of the vectors of texts; None encodes every text.

    Raises:
        UsageError: no re-ranker of that name.
        ModelError: the re-ranker does not read the features of this embedder.
    """

    def __init__(
        self,
        embedder: Embedder,
        store: VectorStore,
        region_store: RegionStore | None = None,
        *,
        reranker: Reranker | str | None = None,
        query_vectors: QueryVectors | None = None,
    ) -> None:
        self.embedder = embedder
        self.store = store
        self.reranker = load_reranker(reranker, embedder)
        self._query_vectors = query_vectors or QueryVectors()
        self._region_store = region_store
        self._place = RegionPlace(store) if region_store is None and self.reranker is not None else None
        self._checked = False

    @classmethod
    def from_settings(cls) -> Retriever:
        """Make the retriever that the ``LDOT_`` settings in the environment name: store, model, re-ranker and device.

        Raises:
            UsageError: a setting names something that does not exist.
            ModelError: the model or the re-ranker cannot be loaded.
        """
        settings = Settings()
        embedder = load_embedder(settings.model, device=settings.device, dtype=settings.dtype)
        return cls(embedder, open_store(), reranker=settings.reranker)

    @property
    def region_store(self) -> RegionStore | None:
        """Region data of the collection; None without a re-ranker.

        Raises:
            RegionStoreNotFound: the collection records a place that this process does not reach.
            StoreError: a store cannot be used.
        """
        if self._region_store is None and self._place is not None and self.reranker is not None:
            found = self._place.open(self.reranker)
            if not self._place.settled:
                return found
            self._region_store = found
        return self._region_store

    def search(
        self,
        text: str | Iterable[Part] | None = None,
        *,
        image: ImageInput | None = None,
        id: str | None = None,
        k: int = 5,
        offset: int = 0,
        rerank: int | None = None,
        filter: dict[str, Any] | None = None,
        kind: str = "image",
        namespace: str | None = None,
        min_probability: float | None = None,
    ) -> list[Hit]:
        """Return the k best rows for a text, an image, a row or several of them, best first.

        Args:
            text: query text, or a composed query: a list of pairs of a weight and a text (``str``), an image (as
                for ``image``, but a path is a ``Path``) or a row (``RowId``). Give this, ``image`` or ``id``. The
                vectors of the parts are scaled to unit length, multiplied by their weights and added; a negative weight
                leads away from a part. The hits are re-ranked by the texts with positive weights, whose scores are
                averaged by weight.
            image: query image: a path or an address, encoded bytes, an open binary file, an array, a tensor, a PIL
                image or regions, see ``docs/search.md``.
            id: find rows like the one with this id, by its stored vector; that row is no hit.
            k: maximum number of hits, at least 1.
            offset: number of best hits to leave out, for the next page of an earlier search.
            rerank: number of best hits to re-rank; 0 for the dot product alone. None re-ranks 20 if there is a
                re-ranker and a text is compared with images (or the reverse; of a composed query, the texts with
                positive weights are compared with images), else 0.
            filter: search only rows that match, see ``docs/filters.md``.
            kind: kind of the rows to find, "image" or "text".
            namespace: search only this tenant's rows, whatever ``filter`` says; None searches those of all tenants.
            min_probability: return only hits with at least this probability, perhaps none.

        Returns:
            At most k hits: first the re-ranked ones by ``rerank_score``, then the others by ``score``.

        Raises:
            UsageError: no query or two, an empty text, ``k``, ``offset``, ``rerank`` or ``min_probability`` out of
                range, or there is no calibration for ``min_probability``; the parts of a composed query are invalid or
                cancel each other.
            InputError: the query image cannot be read.
            RowNotFound: the collection has no row of that id.
            CollectionNotFound: the collection does not exist yet.
            ModelMismatch: the collection contains vectors of another model.
            RegionStoreNotFound: hits are to be re-ranked, and this process does not reach their region data.
        """
        request = SearchRequest(
            text=text, image=image, id=id, k=k, offset=offset, rerank=rerank, filter=filter, kind=kind,
            namespace=namespace, min_probability=min_probability,
        )  # fmt: skip
        (hits,) = self.search_many([request])
        if isinstance(hits, LdotError):
            raise hits
        return hits

    def search_many(
        self, requests: Iterable[SearchRequest], *, stages: Stages = lambda stage: nullcontext()
    ) -> list[list[Hit] | LdotError]:
        """Run several searches together: texts are encoded in one batch, and all pairs are re-ranked in one pass.

        Args:
            requests: the arguments of each :meth:`search`.
            stages: measures the stages.

        Returns:
            For each request what :meth:`search` would return, or the error that it would raise. An error concerns
            its request alone.
        """
        listed = list(requests)
        answers: dict[int, list[Hit] | LdotError] = {}
        queries: dict[int, Any] = {}
        plans: dict[int, Plan] = {}
        for number, request in enumerate(listed):
            try:
                queries[number] = query_of(request)
            except LdotError as error:
                answers[number] = error
        try:
            rows = self._rows([id for query in queries.values() for id in ids_in(query)])
        except LdotError as error:
            return [answers.get(number, error) for number in range(len(listed))]
        for number, query in queries.items():
            try:
                plans[number] = plan_of(listed[number], query, rows, self.embedder, self.reranker)
            except LdotError as error:
                answers[number] = error
        answers.update(zip(plans, self._each(list(plans.values()), rows, stages), strict=True))
        return [answers[number] for number in range(len(listed))]

    async def asearch(self, text: str | Iterable[Part] | None = None, **arguments: Any) -> list[Hit]:
        """Run :meth:`search`, with the same arguments, in a thread, without blocking the event loop.

        A process runs a few at a time (:mod:`~ldot_milvus.search.threads`); the others wait for their turn.
        """
        return await in_search_thread(self.search, text, **arguments)

    def nearest(
        self,
        vector: Array,
        *,
        k: int = 5,
        filter: dict[str, Any] | None = None,
        kind: str = "image",
        namespace: str | None = None,
    ) -> list[Hit]:
        """Return the k rows whose vectors have the largest inner product with a vector of the model, best first.

        Args:
            vector: float32 (dim,), for instance from ``embedder.encode_texts``.
            k, filter, kind, namespace: see :meth:`search`.

        Raises:
            UsageError: ``k`` is out of range.
            CollectionNotFound: the collection does not exist yet.
            ModelMismatch: the collection contains vectors of another model, or of another dimension than ``vector``.
        """
        k = whole_number(k, "k", 1)
        self._check_model()
        matches = self.store.search(vector[None], k, kind=kind, filter=within(namespace, filter))[0]
        return [hit_of(match) for match in matches]

    def rerank(
        self, text: str, photos: Sequence[tuple[str | None, str | None]], *, namespace: str | None = None
    ) -> list[tuple[int, Hit | None]]:
        """Re-rank photos that another search found, by their stored region data.

        Args:
            text: query text.
            photos: the id and the source of each photo; either may be None. The source, which may be relative to the
                current folder, counts if the collection has no photo of that id.
            namespace: consider only this tenant's photos; None those of all tenants.

        Returns:
            The index and the hit of each photo: first the re-ranked ones by ``rerank_score``, best first, then those
            without region data, whose ``rerank_score`` is None, then those that the collection does not have, whose
            hit is None.

        Raises:
            UsageError: the text is empty, or the model has no re-ranker.
            ModelMismatch: the collection contains vectors of another model.
            RegionStoreNotFound: this process does not reach the region data.
        """
        if self.reranker is None:
            raise UsageError("this model has no re-ranker: name one with LDOT_RERANKER")
        request = SearchRequest(text)
        plan = plan_of(request, query_of(request), {}, self.embedder, self.reranker)
        (query,) = encode_queries([plan], {}, self.embedder, self.reranker, self._query_vectors)
        self._check_model()
        rows = self._rows_of(photos, namespace)
        found = {row.id: hit_of(Match(row, _dot(query.vector, row))) for row in rows if row is not None}
        candidates = Candidates(query, list(found.values()))
        ranked = rerank_all(self.reranker, self.region_store, [candidates])[0]
        ranks = {hit.id: (rank, hit) for rank, hit in enumerate(ranked)}
        last = (len(ranks), None)
        placed = [(*(last if row is None else ranks[row.id]), index) for index, row in enumerate(rows)]
        return [(index, hit) for _, hit, index in sorted(placed, key=lambda one: (one[0], one[2]))]

    def _rows_of(self, photos: Sequence[tuple[str | None, str | None]], namespace: str | None) -> list[Record | None]:
        """Return the row of each photo, with its vector; None where the collection has none."""

        def usable(rows: Iterable[Record]) -> Iterator[Record]:
            return (row for row in rows if row.kind == "image" and namespace in (None, row.namespace))

        ids = list(dict.fromkeys(id for id, _ in photos if id is not None))
        by_id = {row.id: row for row in usable(self.store.get(ids, with_embeddings=True))}
        places = [None if id in by_id or not source else Source(source).source for id, source in photos]
        names = {name for place, (_, source) in zip(places, photos, strict=True) if place for name in (place, source)}
        wanted = {"source": {"$in": sorted(name for name in names if name)}}
        stored = self.store.iterate(wanted, with_embeddings=True) if names else ()
        by_source = {row.source: row for row in usable(stored)}
        return [
            by_id.get(id or "") or by_source.get(source or "") or by_source.get(place or "")
            for (id, source), place in zip(photos, places, strict=True)
        ]

    def _check_model(self) -> None:
        """Refuse a collection of another model; checked once, since a collection never changes its model."""
        if not self._checked:
            self._checked = check_model(self.store, self.embedder)
            if (old := outdated(self.store)) is not None:
                log.warning("%s", old)

    def _rows(self, ids: Sequence[str]) -> dict[str, Record]:
        return {row.id: row for row in self.store.get(ids, with_embeddings=True)} if ids else {}

    def _each(self, plans: Sequence[Plan], rows: Mapping[str, Record], stages: Stages) -> list[list[Hit] | LdotError]:
        """Run searches together; if that fails, each alone, so that an error concerns its search only."""
        try:
            return list(self._together(plans, rows, stages))
        except LdotError as error:
            if len(plans) == 1:
                return [error]
        return [answer for plan in plans for answer in self._each([plan], rows, stages)]

    def _together(self, plans: Sequence[Plan], rows: Mapping[str, Record], stages: Stages) -> list[list[Hit]]:
        if not plans:
            return []
        self._check_model()
        with stages("encode"):
            queries = encode_queries(plans, rows, self.embedder, self.reranker, self._query_vectors)
        with stages("search"):
            found = self._nearest(plans, [query.vector for query in queries])
        for number, plan in enumerate(plans):
            if isinstance(plan.query, RowId):
                found[number] = [hit for hit in found[number] if hit.id != plan.query.id]
        reranked = [number for number, plan in enumerate(plans) if plan.rerank and found[number]]
        if reranked and self.reranker is not None:
            with stages("rerank"):
                by_text = any(queries[number].texts is not None for number in reranked)
                candidates = [Candidates(queries[number], found[number][: plans[number].rerank]) for number in reranked]
                ordered = rerank_all(self.reranker, self.region_store if by_text else None, candidates)
            for number, hits in zip(reranked, ordered, strict=True):
                found[number] = hits + found[number][plans[number].rerank :]
        return [self._page(plan, hits) for plan, hits in zip(plans, found, strict=True)]

    def _nearest(self, plans: Sequence[Plan], vectors: Sequence[Array]) -> list[list[Hit]]:
        """Search once for all plans that ask the store for the same."""
        found: list[list[Hit]] = [[] for _ in plans]

        def asked(number: int) -> str:
            plan = plans[number]
            return repr((plan.kind, plan.depth, plan.filter))

        for _, numbers in groupby(sorted(range(len(plans)), key=asked), key=asked):
            group = list(numbers)
            plan = plans[group[0]]
            queries = np.stack([vectors[number] for number in group])
            results = self.store.search(queries, plan.depth, kind=plan.kind, filter=plan.filter)
            for number, matches in zip(group, results, strict=True):
                found[number] = [hit_of(match) for match in matches]
        return found

    def _page(self, plan: Plan, hits: list[Hit]) -> list[Hit]:
        if plan.crosses and not plan.composed:
            hits = with_probability(hits, calibration_of(self.embedder))
        return at_least(hits[plan.offset : plan.offset + plan.k], plan.min_probability)


def check_model(store: VectorStore, model: Embedder | ModelFiles) -> bool:
    """Check that a collection contains vectors of a model.

    Args:
        store: the collection.
        model: the loaded model, or its files.

    Returns:
        Whether the collection exists.

    Raises:
        ModelMismatch: fingerprint or dimension is that of another model.
    """
    stored = store.model
    # The former fingerprints are compared last, because hashing the weights for them takes time.
    if stored not in (None, model.fingerprint) and stored not in model.former_fingerprints:
        raise ModelMismatch(
            filled_with(store, store.properties)
            or f"collection {store.collection!r} in {store.address} was filled with a model other than {model.name!r}, "
            "or with another version of it: name the model that filled it (LDOT_MODEL, --model), or ingest into "
            "another collection"
        )
    dim = store.dim
    if dim not in (None, model.dim):
        raise ModelMismatch(
            filled_with(store, store.properties)
            or f"collection {store.collection!r} in {store.address} contains vectors of {dim} dimensions, and model "
            f"{model.name!r} returns {model.dim}: name the model that filled it, or another collection"
        )
    return dim is not None


def _dot(vector: Array, row: Record) -> float:
    assert row.embedding is not None
    return float(vector @ row.embedding)
