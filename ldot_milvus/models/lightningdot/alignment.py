"""Word-region alignment: how well each word of a text matches the regions of an image."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class WordRegionAlignment(nn.Module):
    """Stacked cross attention (SCAN: Lee et al., ECCV 2018, section 3.1): text to image, or both directions.

    Every word attends to the regions and is compared by cosine with the attended region vector. The score of the pair
    is the mean over the words, weighted by a learned importance of each word, times a learned scale. With both
    directions, every region attends to the words likewise, and the score is the mean of both.

    Args:
        hidden_size: width of words and regions.
        both: compare in both directions; else from the words to the regions alone.
    """

    def __init__(self, hidden_size: int, *, both: bool = False) -> None:
        super().__init__()
        self.importance = nn.Linear(hidden_size, 1)
        self.region_importance = nn.Linear(hidden_size, 1) if both else None
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(9.0)))  # SCAN's lambda_1
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, words: Tensor, text_mask: Tensor, regions: Tensor, region_mask: Tensor) -> Tensor:
        """Score text i with image i.

        Args:
            words: (B, T, H) hidden states.
            text_mask: (B, T), True = word.
            regions: (B, R, H) hidden states.
            region_mask: (B, R), True = region.

        Returns:
            (B,); higher is better.
        """
        unit_words, unit_regions = nn.functional.normalize(words, dim=-1), nn.functional.normalize(regions, dim=-1)
        return self._score(
            unit_words @ unit_regions.transpose(1, 2),
            _Side(unit_words, text_mask.bool(), _importance(self.importance, words, text_mask)),
            self._regions(regions, unit_regions, region_mask),
        )

    def cosines(self, words: Tensor, regions: Tensor) -> Tensor:
        """Compare words (B, T, H) with regions (B, R, H) of length 1: (B, T, R). Those below 0 count as no match."""
        return nn.functional.normalize(words, dim=-1) @ regions.transpose(1, 2)

    def all_pairs(self, words: Tensor, text_mask: Tensor, regions: Tensor, region_mask: Tensor) -> Tensor:
        """Score each of B texts with each of P images: (B, P). The arguments are those of :meth:`forward`."""
        unit_words, unit_regions = nn.functional.normalize(words, dim=-1), nn.functional.normalize(regions, dim=-1)
        cosines = unit_words.flatten(0, 1) @ unit_regions.flatten(0, 1).T
        cosines = cosines.view(*words.shape[:2], *regions.shape[:2]).transpose(1, 2)  # (B, P, T, R)
        weights = _importance(self.importance, words, text_mask)
        texts = _Side(unit_words[:, None], text_mask.bool()[:, None], weights[:, None])
        return self._score(cosines, texts, self._regions(regions, unit_regions, region_mask))

    def _regions(self, regions: Tensor, unit: Tensor, mask: Tensor) -> _Side:
        layer = self.region_importance
        return _Side(unit, mask.bool(), None if layer is None else _importance(layer, regions, mask))

    def _score(self, cosines: Tensor, words: _Side, regions: _Side) -> Tensor:
        """Compute scores (...) from ``cosines`` (..., T, R); the sides' tensors broadcast against them."""
        score = self._attended(cosines, words, regions)
        if self.region_importance is not None:
            score = (score + self._attended(cosines.transpose(-1, -2), regions, words)) / 2
        return score * self.log_scale.exp()

    def _attended(self, cosines: Tensor, queries: _Side, context: _Side) -> Tensor:
        """Compare each of Q queries with what it attends to of C vectors; ``cosines`` are (..., Q, C)."""
        # Normalised over the queries for each vector of the context (equation 2), then each query attends (equation 3).
        similarity = cosines.clamp_min(0).masked_fill(~queries.mask[..., None], 0)
        similarity = nn.functional.normalize(similarity, dim=-2, eps=1e-6)
        logits = (similarity * self.log_sharpness.exp()).masked_fill(~context.mask[..., None, :], -torch.inf)
        attention = logits.softmax(-1)
        # The attended vector a = attention @ context is not computed: q.a = attention . cosines, and
        # |a|^2 = attention G attention with the context's inner products G.
        inner = context.unit @ context.unit.transpose(-1, -2)
        length = ((attention @ inner) * attention).sum(-1).clamp_min(1e-6).sqrt()
        relevance = (attention * cosines).sum(-1) / length
        assert queries.weights is not None
        return (relevance * queries.weights).sum(-1)


class _Side(NamedTuple):
    """The words of texts, or the regions of images.

    Attributes:
        unit: (..., n, H), of length 1.
        mask: bool (..., n), True = word or region.
        weights: (..., n), importance of each in the score; None if it only is attended to.
    """

    unit: Tensor
    mask: Tensor
    weights: Tensor | None


def _importance(layer: nn.Linear, states: Tensor, mask: Tensor) -> Tensor:
    return layer(states).squeeze(-1).float().masked_fill(~mask.bool(), -torch.inf).softmax(-1)
