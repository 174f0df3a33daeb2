"""Composed queries: several texts and photos with weights, as one query vector.

Each part's vector is scaled to unit length before it is weighted, as in rclip and Marqo. Otherwise a part would count
the more the longer its vector, which says nothing about its importance, and texts and photos have different lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldot_milvus.arguments import described, real_number
from ldot_milvus.errors import UsageError
from ldot_milvus.images import as_image, is_one_image
from ldot_milvus.models.base import Array, Embedder, ImageInput
from ldot_milvus.regions.base import Regions

Part = tuple[float, ImageInput]
"""A weight, and a text (``str``) or a photo (in the forms of ``image=``, but a path is a ``Path``)."""

MAX_WEIGHT = 1e6
CANCELLED = 1e-4
"""A sum shorter than this, relative to the sum of the absolute weights, is rounding error: nothing is left of it."""


@dataclass(frozen=True)
class TextQuery:
    """One query vector, and the texts by which its hits are re-ranked.

    Attributes:
        vector: float32 (dim,).
        texts: n texts for the re-ranker.
        shares: float64 (n,), weights of their scores, which sum to 1.
        dot_scale: factor of the dot product where it is added to the score of the re-ranker, whose ``dot_weight`` is
            meant for the vector of one text as the model returns it.
        composed: whether the query has parts with weights.
    """

    vector: Array
    texts: Sequence[str]
    shares: Sequence[float]
    dot_scale: float
    composed: bool = True


def text_query(text: str, embedder: Embedder) -> TextQuery:
    """Encode a single text, whose vector is the model's own output.

    Raises:
        UsageError: the text is empty.
    """
    return TextQuery(embedder.encode_texts([text])[0], [text], [1.0], 1.0, composed=False)


def composed_query(parts: Sequence[Part], embedder: Embedder) -> TextQuery:
    """Encode the parts of a query, and add them up.

    Args:
        parts: parts that :func:`check_parts` returned.
        embedder: model that encodes them.

    Raises:
        InputError: a photo cannot be read.
        UsageError: the parts cancel each other.
    """
    texts = [(weight, content) for weight, content in parts if isinstance(content, str)]
    photos = [(weight, content) for weight, content in parts if not isinstance(content, str)]
    vectors = []
    if texts:
        vectors.append(embedder.encode_texts([text for _, text in texts]))
    if photos:
        vectors.append(embedder.encode_images([photo for _, photo in photos]))
    rows = np.concatenate(vectors).astype(np.float64)
    weights = np.array([weight for weight, _ in [*texts, *photos]])
    lengths = np.linalg.norm(rows, axis=1)
    vector: Array = (weights @ (rows / np.where(lengths > 0, lengths, 1.0)[:, None])).astype(np.float32)
    if not np.linalg.norm(vector) > CANCELLED * np.abs(weights).sum():
        raise UsageError("the parts of the query cancel each other, so nothing is left to search for: change a weight")

    positive = np.flatnonzero(weights[: len(texts)] > 0)
    if not len(positive):
        return TextQuery(vector, [], [], 1.0)
    total = weights[positive].sum()
    shares = weights[positive] / total
    # A single positive text is re-ranked as if it were searched for alone, whatever its weight.
    dot_scale = float(shares @ lengths[positive] / total)
    return TextQuery(vector, [texts[index][1] for index in positive], shares.tolist(), dot_scale)


def check_parts(parts: object) -> list[Part]:
    """Check the parts of a composed query without encoding anything.

    Args:
        parts: what the caller gave as a list of parts.

    Returns:
        The parts with a weight other than 0.

    Raises:
        InputError: a photo is none, or an open file cannot be read.
        UsageError: a part is not a pair of a weight and a text or photo, or no part has a weight.
    """
    if not isinstance(parts, Iterable) or is_one_image(parts) or isinstance(parts, (Mapping, Set, np.ndarray)):
        raise UsageError(
            f"search takes a text or a list of (weight, text or photo), not {described(parts)}; a photo is given as "
            '"image="'
        )
    checked: list[Part] = []
    for number, part in enumerate(parts, start=1):
        where = f"part {number} of the query"
        if not isinstance(part, (tuple, list)) or len(part) != 2:
            raise UsageError(
                f'{where} is no pair but {described(part)}: give (weight, text or photo), as in (0.5, "snow")'
            )
        weight = real_number(part[0], f"the weight of {where}", -MAX_WEIGHT, MAX_WEIGHT)
        content = part[1]
        if isinstance(content, str):
            if not content.strip():
                raise UsageError(f"{where} is an empty text: describe what to look for")
        elif not isinstance(content, Regions):
            content = as_image(content, where)
            if isinstance(content, str):
                content = Path(content)  # a str is a text
        if weight:
            checked.append((weight, content))
    if not checked:
        raise UsageError("the query has no part with a weight other than 0: give at least one")
    return checked


def has_positive_text(parts: Sequence[Part]) -> bool:
    """Return whether a re-ranker has a text to compare photos with."""
    return any(isinstance(content, str) and weight > 0 for weight, content in parts)
