"""Explanations: the words of a text, and how well each of them matches the regions of a photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.models.base import Array, KeptImage
from ldot_milvus.models.tokens import Word


@dataclass(frozen=True)
class Explanation:
    """How well each word of a text matches each region of a photo.

    Attributes:
        words: m words of the text, in order. Punctuation, and what the network does not read of a long text, is
            left out.
        regions: float32 (n, 4), the box of each region: x0, y0, x1, y1 as fractions of the photo's width and height.
        weights: float32 (m, n) from 0 to 1; a word without a match has zeros. They compare the words and the regions of
            one photo, and mean nothing across re-rankers.
        names: name of each region; None where the region data have none.
    """

    words: tuple[Word, ...]
    regions: Array
    weights: Array
    names: tuple[str | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as plain JSON values, with four decimal places."""
        return {
            "words": [{"text": word.text, "start": word.start, "end": word.end} for word in self.words],
            "regions": np.round(self.regions.astype(float), 4).tolist(),
            "weights": np.round(self.weights.astype(float), 4).tolist(),
            "names": list(self.names),
        }


@runtime_checkable
class Explains(Protocol):
    """A re-ranker that can say why a photo matches a text, from the photo's region data."""

    def explain(self, text: str, kept: KeptImage) -> Explanation:
        """Compare each word of a text with each region of a photo.

        Args:
            text: a text of at least one character.
            kept: the region data of one photo.

        Raises:
            UsageError: the text is empty.
            InputError: region data that :meth:`.base.Reranker.check` refuses.
        """
        ...


def explanation(
    words: Sequence[Word], weights: NDArray[Any], regions: NDArray[Any], names: Sequence[str | None] | None = None
) -> Explanation:
    """Return the explanation of a text, given the weights of its tokens.

    Args:
        words: the words of the text, with their tokens.
        weights: (tokens, n), from 0 to 1. A word has the largest weight of its tokens in each region.
        regions: (n, 4) or more columns, x0, y0, x1, y1 first.
        names: of the regions; None where they have none.
    """
    shown = [word for word in words if any(map(str.isalnum, word.text))]
    rows = [weights[list(word.tokens)].max(0) for word in shown]
    table = np.array(rows, np.float32).reshape(len(shown), len(regions)).clip(0, 1)
    named = (None,) * len(regions) if names is None else tuple(names)
    return Explanation(tuple(shown), np.asarray(regions[:, :4], np.float32), table, named)
