"""What the adapters share: the fields of a hit that a framework has no field for, and the score that ranks."""

from __future__ import annotations

from typing import Any

from ldot_milvus.search.hits import Hit


def metadata_of(hit: Hit) -> dict[str, Any]:
    """Return the fields of a hit apart from its id and caption, for frameworks with a score of their own.

    The dot product is named ``dot_product``, and the photo's own fields are together under ``metadata``.
    """
    fields = hit.to_dict()
    fields["dot_product"] = fields.pop("score")
    return {name: value for name, value in fields.items() if name not in ("id", "caption")}


def ranking_score(hit: Hit) -> float:
    """Return the score that orders the hits: that of the re-ranker, or the dot product if the hit was not re-ranked."""
    return hit.score if hit.rerank_score is None else hit.rerank_score
