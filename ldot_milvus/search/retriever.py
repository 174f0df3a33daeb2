"""Two-stage retrieval: dot product over all rows, then cross-attention over the best ones.

Source: LightningDOT, section 3.4. The second stage reads stored region data, so a query never opens an image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ldot_milvus.arguments import whole_number
from ldot_milvus.errors import InputError, ModelMismatch, UsageError, printable
from ldot_milvus.images import as_image
from ldot_milvus.models.base import Array, Embedder, ImageInput, KeptImage, ModelFiles, Reranker
from ldot_milvus.models.calibration import MatchingReranker, calibration_of, sigmoid
from ldot_milvus.models.loading import load_embedder, load_reranker
from ldot_milvus.models.passes import image_features
from ldot_milvus.redaction import masked
from ldot_milvus.regions.base import Regions
from ldot_milvus.search.hits import Hit as Hit
from ldot_milvus.search.hits import hit_of
from ldot_milvus.search.probability import at_least, check_minimum, with_probability
from ldot_milvus.search.query import Part, TextQuery, check_parts, composed_query, has_positive_text, text_query
from ldot_milvus.search.threads import in_search_thread
from ldot_milvus.settings import Settings
from ldot_milvus.sources import Source
from ldot_milvus.stores import Match, Record, VectorStore, open_store
from ldot_milvus.stores.region_place import RegionPlace
from ldot_milvus.stores.regions import RegionStore
from ldot_milvus.stores.upgrade import outdated
from ldot_milvus.stores.validation import filled_with

log = logging.getLogger(__name__)

RERANK = 20
"""Default number of hits to re-rank."""


class Retriever:
    """Finds photos for a text, and photos or texts for a photo. Searching writes nothing.

    Args:
        embedder: model that also filled ``store``; the first search checks this.
        store: collection to search.
        region_store: region data of the collection; None takes the setting, else the recorded place, else the default.
        reranker: None for the embedder's own, "none" for none, a folder or hub id, or a loaded re-ranker.

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
    ) -> None:
        self.embedder = embedder
        self.store = store
        self.reranker = load_reranker(reranker, embedder)
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
        k: int = 5,
        rerank: int | None = None,
        filter: dict[str, Any] | None = None,
        kind: str = "image",
        namespace: str | None = None,
        min_probability: float | None = None,
    ) -> list[Hit]:
        """Return the k best rows for a text, an image or several of both, best first.

        Args:
            text: query text, or a composed query: a list of pairs of a weight and a text (``str``) or an image (as
                for ``image``, but a path is a ``Path``). Give either this or ``image``. The vectors of the parts are
                scaled to unit length, multiplied by their weights and added; a negative weight leads away from a part.
                The hits are re-ranked by the texts with positive weights, whose scores are averaged by weight.
            image: query image: a path or an address, encoded bytes, an open binary file, an array, a tensor, a PIL
                image or regions, see ``docs/search.md``.
            k: maximum number of hits, at least 1.
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
            UsageError: no query or two, an empty text, ``k``, ``rerank`` or ``min_probability`` out of range, or
                there is no calibration for ``min_probability``; the parts of a composed query are invalid or cancel
                each other.
            InputError: the query image cannot be read.
            CollectionNotFound: the collection does not exist yet.
            ModelMismatch: the collection contains vectors of another model.
            RegionStoreNotFound: hits are to be re-ranked, and this process does not reach their region data.
        """
        if (text is None) == (image is None):
            raise UsageError("search takes a text or an image: give exactly one of them")
        k = whole_number(k, "k", 1)
        parts = None if text is None or isinstance(text, str) else check_parts(text)
        crosses = (text is None) == (kind == "text") and (parts is None or has_positive_text(parts))
        if rerank is None:
            rerank = RERANK if crosses and self.reranker is not None else 0
        rerank = whole_number(rerank, "rerank", 0)
        if rerank and not crosses and parts is not None and kind == "image":
            raise UsageError("re-ranking reads the texts with positive weights, and there is none: use rerank=0")
        if rerank and not crosses:
            raise UsageError("re-ranking compares a text with an image: use rerank=0 for this search")
        if rerank and self.reranker is None:
            raise UsageError("this model has no re-ranker: use rerank=0, or name one with LDOT_RERANKER")
        if parts is not None and min_probability is not None:
            raise UsageError("min_probability: a probability is that of one text with a photo: leave it out")
        min_probability = check_minimum(
            min_probability, self.embedder, self.reranker if rerank else None, crosses=crosses
        )
        self._check_model()
        query: TextQuery | None = None
        kept: list[KeptImage] = []
        if text is not None:
            if isinstance(text, str):
                query = text_query(text, self.embedder)
            else:
                query = composed_query(parts or [], self.embedder)
            vectors = query.vector[None]
        else:
            assert image is not None
            given = image if isinstance(image, Regions) else as_image(image, "the query image")
            reranker = self.reranker if rerank else None
            features, own = image_features(self.embedder, reranker, [given])
            vectors = self.embedder.encode_features(features)
            if reranker is not None:
                kept = reranker.keep(own)
        hits = self._nearest(vectors, max(k, rerank), kind, filter, namespace)
        if rerank and hits:
            first = hits[:rerank]
            scored = self._by_images(query, first) if query is not None else self._by_texts(kept[0], first)
            hits = scored + hits[rerank:]
        if crosses and parts is None:
            hits = with_probability(hits, calibration_of(self.embedder))
        return at_least(hits[:k], min_probability)

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
        return self._nearest(vector[None], k, kind, filter, namespace)

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
        query = text_query(text, self.embedder)
        self._check_model()
        rows = self._rows_of(photos, namespace)
        found = {row.id: hit_of(Match(row, _dot(query.vector, row))) for row in rows if row is not None}
        ranks = {hit.id: (rank, hit) for rank, hit in enumerate(self._by_images(query, list(found.values())))}
        last = (len(ranks), None)
        ranked = [(*(last if row is None else ranks[row.id]), index) for index, row in enumerate(rows)]
        return [(index, hit) for _, hit, index in sorted(ranked, key=lambda one: (one[0], one[2]))]

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

    def _nearest(
        self, vectors: Array, k: int, kind: str, filter: dict[str, Any] | None, namespace: str | None
    ) -> list[Hit]:
        if namespace is not None:
            own: dict[str, Any] = {"namespace": namespace}
            filter = own if filter in (None, {}) else {"$and": [own, filter]}
        return [hit_of(match) for match in self.store.search(vectors, k, kind=kind, filter=filter)[0]]

    def _by_images(self, query: TextQuery, hits: list[Hit]) -> list[Hit]:
        region_store = self.region_store
        assert region_store is not None
        kept = self._kept(region_store, [hit.id for hit in hits])
        scored = [hit for hit in hits if hit.id in kept]
        unscored = [hit for hit in hits if hit.id not in kept]
        if unscored:
            log.warning(
                "%d of %d photos have no region data in %s and are ranked last: ingest them again, or set "
                "LDOT_REGION_STORE to the place of their region data (first: %s)",
                len(unscored), len(hits), region_store.address, printable(masked(unscored[0].source)),
            )  # fmt: skip
        assert self.reranker is not None
        texts = [text for text in query.texts for _ in scored]
        scores, logits = self._scores(texts, [kept[hit.id] for hit in scored] * len(query.texts))
        means = np.asarray(query.shares) @ scores.reshape(len(query.texts), len(scored))
        return self._ordered(scored, means, logits, query) + unscored

    def _by_texts(self, kept: KeptImage, hits: list[Hit]) -> list[Hit]:
        return self._ordered(hits, *self._scores([hit.caption for hit in hits], [kept] * len(hits)))

    def _scores(self, texts: Sequence[str], kept: Sequence[KeptImage]) -> tuple[Array, Array | None]:
        """Return the scores of pairs, and the logits of a match where the re-ranker has them."""
        assert self.reranker is not None
        if isinstance(self.reranker, MatchingReranker):
            return self.reranker.score_and_match(texts, kept)
        return self.reranker.score(texts, kept), None

    def _kept(self, region_store: RegionStore, ids: Sequence[str]) -> dict[str, KeptImage]:
        """Return the region data of these ids, without ids whose data is missing, damaged or of another re-ranker."""
        assert self.reranker is not None
        kept = dict(region_store.get(ids))
        for id in list(kept):
            try:
                self.reranker.check(kept[id])
            except InputError as error:
                log.warning("region data of %s is damaged (%s): ingest the photo again", printable(id), error)
                del kept[id]
        return kept

    def _ordered(
        self, hits: list[Hit], scores: Array, logits: Array | None, query: TextQuery | None = None
    ) -> list[Hit]:
        """Return hits by their scores; those of a composed query have no probability, since none was fitted."""
        assert self.reranker is not None
        dot_scale, calibrated = (1.0, True) if query is None else (query.dot_scale, not query.composed)
        weight, calibration = self.reranker.dot_weight * dot_scale, calibration_of(self.reranker)
        ranked: list[Hit] = []
        for row, hit in enumerate(hits):
            score, probability = float(scores[row]) + weight * hit.score, None
            if calibrated and logits is not None:
                probability = sigmoid(float(logits[row]))
            elif calibrated and calibration is not None:
                probability = calibration.probability(score)
            ranked.append(replace(hit, rerank_score=score, probability=probability))
        return sorted(ranked, key=lambda hit: -(hit.rerank_score or 0.0))


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
