"""Two-stage retrieval: dot product over everything, cross-attention over the first few.

LightningDOT, section 3.4: the second stage reads stored region data, so a query never opens an image.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ldot_milvus.errors import UsageError
from ldot_milvus.stores import Match, VectorStore
from ldot_milvus.stores.base import Array
from ldot_milvus.stores.regions import RegionStore, open_region_store

if TYPE_CHECKING:
    from ldot_milvus.models.lightningdot.embedder import ImageInput, LightningDOTEmbedder
    from ldot_milvus.regions import Regions

log = logging.getLogger(__name__)

RERANK = 20
"""How many are re-ranked unless told."""


@dataclass(frozen=True)
class Hit:
    """One answer.

    Attributes:
        score: inner product of the query's and the row's vectors.
        rerank_score: the re-ranker's score, by which the first ones are ordered; None where it was not asked.
        metadata: the caller's own fields.
    """

    id: str
    score: float
    rerank_score: float | None
    source: str
    caption: str
    kind: str
    namespace: str
    width: int
    height: int
    metadata: dict[str, Any]


class Retriever:
    """Finds photos for a sentence, and photos or sentences for a photo.

    Args:
        embedder: the model that also filled ``store``; another one is refused at the first search.
        region_store: where re-ranking data lies; None takes the setting, else the folder beside a local store.
    """

    def __init__(
        self, embedder: LightningDOTEmbedder, store: VectorStore, region_store: RegionStore | None = None
    ) -> None:
        self.embedder = embedder
        self.store = store
        self.region_store = region_store or open_region_store(store.address, embedder.fingerprint)
        self._checked = False

    def search(
        self,
        text: str | None = None,
        *,
        image: ImageInput | None = None,
        k: int = 5,
        rerank: int | None = None,
        filter: dict[str, Any] | None = None,
        kind: str = "image",
    ) -> list[Hit]:
        """The k best rows for a text or an image, best first.

        Args:
            text, image: the query, exactly one of them.
            rerank: how many of the first to re-rank: 0 for the dot product alone; None for 20 where the model
                has a re-ranker and the query and the rows are a text and images (or the reverse), else 0.
            filter: see ``docs/filters.md``.
            kind: "image" or "text", what to find.

        Raises:
            UsageError: no query or two, an empty text, k or rerank out of range.
            ModelMismatch: the collection was filled with another model.
        """
        if (text is None) == (image is None):
            raise UsageError("give a text or an image to search for (one of them)")
        _check_count("k", k, 1)
        crosses = (text is None) == (kind == "text")
        if rerank is None:
            rerank = RERANK if crosses and self.embedder.can_rerank else 0
        _check_count("rerank", rerank, 0)
        if rerank and not crosses:
            raise UsageError("re-ranking compares a text with an image: use rerank=0 here")
        if rerank and not self.embedder.can_rerank:
            raise UsageError("this model has no re-ranker: use rerank=0")
        self._check_model()

        regions: Regions | None = None
        if text is not None:
            vectors = self.embedder.encode_texts([text])
        else:
            assert image is not None
            vectors, kept = self.embedder.encode_for_store([image])
            regions = kept[0]
        matches = self.store.search(vectors, max(k, rerank), kind=kind, filter=filter)[0]
        hits = [_hit(match) for match in matches]
        if rerank and hits:
            first = hits[:rerank]
            scored = self._by_images(text, first) if regions is None else self._by_texts(regions, first)
            hits = scored + hits[rerank:]
        return hits[:k]

    async def asearch(self, text: str | None = None, **arguments: Any) -> list[Hit]:
        """:meth:`search` without blocking the event loop; the arguments are the same."""
        return await asyncio.to_thread(self.search, text, **arguments)

    def _check_model(self) -> None:
        # Once is enough: a collection never changes its model. One that does not exist yet is left alone.
        if not self._checked and self.store.dim is not None:
            self.store.bind(self.embedder.fingerprint, self.embedder.dim)
            self._checked = True

    def _by_images(self, text: str | None, hits: list[Hit]) -> list[Hit]:
        assert text is not None
        regions = self.region_store.get([hit.id for hit in hits])
        scored = [hit for hit in hits if hit.id in regions]
        unscored = [hit for hit in hits if hit.id not in regions]
        if unscored:
            log.warning(
                "%d of %d photos have no region data in %s and are ranked last: ingest them again (first: %s)",
                len(unscored), len(hits), self.region_store.address, unscored[0].source,
            )  # fmt: skip
        scores = self.embedder.rerank([text] * len(scored), [regions[hit.id] for hit in scored])
        return self._ordered(scored, scores) + unscored

    def _by_texts(self, regions: Regions, hits: list[Hit]) -> list[Hit]:
        scores = self.embedder.rerank([hit.caption for hit in hits], [regions] * len(hits))
        return self._ordered(hits, scores)

    def _ordered(self, hits: list[Hit], scores: Array) -> list[Hit]:
        weight = self.embedder.dot_weight
        ranked = [
            replace(hit, rerank_score=float(score) + weight * hit.score)
            for hit, score in zip(hits, scores, strict=True)
        ]
        return sorted(ranked, key=lambda hit: -(hit.rerank_score or 0.0))


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} is {value!r}: it must be a whole number of at least {least}")


def _hit(match: Match) -> Hit:
    row = match.record
    return Hit(
        id=row.id, score=match.score, rerank_score=None, source=row.source, caption=row.caption, kind=row.kind,
        namespace=row.namespace, width=row.width, height=row.height, metadata=row.metadata,
    )  # fmt: skip
