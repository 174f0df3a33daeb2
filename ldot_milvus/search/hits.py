"""One row found by a search."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the client of a service needs no store
    from ldot_milvus.stores import Match


@dataclass(frozen=True)
class Hit:
    """One row found by a search.

    Attributes:
        id: id of the row: the SHA-256 of the contents in hex unless the caller chose another.
        score: inner product of the query's and the row's vectors.
        rerank_score: score of the re-ranker, which orders the re-ranked hits; None if the hit was not re-ranked.
        probability: probability from 0 to 1 that text and photo belong together, from the model's calibration; None if
            the model has none, or the search compared rows of one kind.
        source: path or URL of the photo.
        caption: caption of the photo, or the text itself.
        kind: "image" or "text".
        namespace: tenant of the row.
        width, height: pixels after EXIF rotation; 0 for texts.
        metadata: the caller's own fields.
    """

    id: str
    score: float
    rerank_score: float | None
    probability: float | None
    source: str
    caption: str
    kind: str
    namespace: str
    width: int
    height: int
    metadata: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as plain JSON values."""
        return asdict(self)


def hit_of(match: Match) -> Hit:
    """Return a row that a store found as a hit that is not re-ranked."""
    row = match.record
    return Hit(
        id=row.id, score=match.score, rerank_score=None, probability=None, source=row.source, caption=row.caption,
        kind=row.kind, namespace=row.namespace, width=row.width, height=row.height, metadata=row.metadata,
    )  # fmt: skip
