"""The probability of a hit, and the least one that a search may ask for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from ldot_milvus.arguments import real_number
from ldot_milvus.errors import UsageError
from ldot_milvus.models.base import Embedder, Reranker
from ldot_milvus.models.calibration import Calibration, MatchingReranker, calibration_of

if TYPE_CHECKING:
    from ldot_milvus.search.retriever import Hit


def check_minimum(
    minimum: float | None, embedder: Embedder, reranker: Reranker | None, *, crosses: bool
) -> float | None:
    """Return a least probability as a float; refuse one that cannot be compared with anything.

    Args:
        minimum: the least probability; None asks for none.
        embedder: the first stage.
        reranker: the re-ranker if the search re-ranks, else None.
        crosses: whether the search compares texts with images.

    Raises:
        UsageError: ``minimum`` is not from 0 to 1, or the scores of this search have no probability.
    """
    if minimum is None:
        return None
    least = real_number(minimum, "min_probability", 0, 1)
    if not crosses:
        raise UsageError(
            "min_probability: a probability is that of a text with a photo, and this search compares rows of one kind: "
            "leave it out"
        )
    if reranker is None and calibration_of(embedder) is None:
        raise UsageError(
            f"min_probability: model {embedder.name!r} has no calibration of its dot product: take a model that has "
            "one (ldot-mini, SigLIP), or re-rank with BLIP or EDJE (LDOT_RERANKER)"
        )
    if reranker is not None and not isinstance(reranker, MatchingReranker) and calibration_of(reranker) is None:
        raise UsageError(
            f"min_probability: re-ranker {reranker.name!r} has no calibration for model {embedder.name!r}: fit one "
            "(probability = true in [finish] of ldot train), or take BLIP or EDJE"
        )
    return least


def with_probability(hits: Iterable[Hit], calibration: Calibration | None) -> list[Hit]:
    """Add the probability of the dot product to hits that were not re-ranked."""
    if calibration is None:
        return list(hits)
    return [
        hit if hit.rerank_score is not None else replace(hit, probability=calibration.probability(hit.score))
        for hit in hits
    ]


def at_least(hits: Iterable[Hit], minimum: float | None) -> list[Hit]:
    """Return the hits with at least this probability, without those whose probability is not known; None: all."""
    return [hit for hit in hits if is_at_least(hit, minimum)]


def is_at_least(hit: Hit, minimum: float | None) -> bool:
    """Return whether a hit has at least this probability; False if it is not known, True if ``minimum`` is None."""
    return minimum is None or (hit.probability is not None and hit.probability >= minimum)
