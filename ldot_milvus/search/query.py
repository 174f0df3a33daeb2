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
from ldot_milvus.models.base import Array, ImageInput
from ldot_milvus.regions.base import Regions


@dataclass(frozen=True)
class RowId:
    """The id of a row, whose stored vector is the query or a part of it."""

    id: str


Part = tuple[float, ImageInput | RowId]
"""A weight, and a text (``str``), a photo (in the forms of ``image=``, but a path is a ``Path``) or a row."""

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


def composed_query(parts: Sequence[Part], vectors: Sequence[Array]) -> TextQuery:
    """Add up the parts of a query.

    Args:
        parts: parts that :func:`check_parts` returned.
        vectors: float32 (dim,) of each part, as the model gives it.

    Raises:
        UsageError: the parts cancel each other.
    """
    rows = np.stack(vectors).astype(np.float64)
    weights = np.array([weight for weight, _ in parts])
    lengths = np.linalg.norm(rows, axis=1)
    vector: Array = (weights @ (rows / np.where(lengths > 0, lengths, 1.0)[:, None])).astype(np.float32)
    if not np.linalg.norm(vector) > CANCELLED * np.abs(weights).sum():
        raise UsageError("the parts of the query cancel each other, so nothing is left to search for: change a weight")

    texts = {index: text for index, (weight, text) in enumerate(parts) if isinstance(text, str) and weight > 0}
    if not texts:
        return TextQuery(vector, [], [], 1.0)
    positive = list(texts)
    total = weights[positive].sum()
    shares = weights[positive] / total
    # A single positive text is re-ranked as if it were searched for alone, whatever its weight.
    dot_scale = float(shares @ lengths[positive] / total)
    return TextQuery(vector, list(texts.values()), shares.tolist(), dot_scale)


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
        elif isinstance(content, RowId):
            if not isinstance(content.id, str):
                raise UsageError(f"{where}: the id is {described(content.id)}: give the id of a row")
        else:
            content = photo_of(content, where)
        if weight:
            checked.append((weight, content))
    if not checked:
        raise UsageError("the query has no part with a weight other than 0: give at least one")
    return checked


def photo_of(content: ImageInput, where: str) -> ImageInput:
    """Return a photo in a form that is no ``str``, which would be a text.

    Args:
        content: what the caller gave as a photo.
        where: in the query, for the message.

    Raises:
        InputError: it is no photo, or an open file cannot be read.
    """
    photo = content if isinstance(content, Regions) else as_image(content, where)
    return Path(photo) if isinstance(photo, str) else photo


def has_positive_text(parts: Sequence[Part]) -> bool:
    """Return whether a re-ranker has a text to compare photos with."""
    return any(isinstance(content, str) and weight > 0 for weight, content in parts)
