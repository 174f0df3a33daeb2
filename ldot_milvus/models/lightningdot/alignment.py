"""Word-region alignment: how well each word of a text matches the regions of an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class WordRegionAlignment(nn.Module):
    """Stacked cross attention, text to image (SCAN: Lee et al., ECCV 2018, section 3.1).

    Every word attends to the regions and is compared by cosine with the attended region vector. The score of the pair
    is the mean over the words, weighted by a learned importance of each word, times a learned scale.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.importance = nn.Linear(hidden_size, 1)
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
        unit_regions = nn.functional.normalize(regions, dim=-1)
        cosines = self.cosines(words, unit_regions)
        return self._score(cosines, self._weights(words, text_mask), text_mask, unit_regions, region_mask)

    def cosines(self, words: Tensor, regions: Tensor) -> Tensor:
        """Compare words (B, T, H) with regions (B, R, H) of length 1: (B, T, R). Those below 0 count as no match."""
        return nn.functional.normalize(words, dim=-1) @ regions.transpose(1, 2)

    def all_pairs(self, words: Tensor, text_mask: Tensor, regions: Tensor, region_mask: Tensor) -> Tensor:
        """Score each of B texts with each of P images: (B, P). The arguments are those of :meth:`forward`."""
        unit_words, unit_regions = nn.functional.normalize(words, dim=-1), nn.functional.normalize(regions, dim=-1)
        cosines = unit_words.flatten(0, 1) @ unit_regions.flatten(0, 1).T
        cosines = cosines.view(*words.shape[:2], *regions.shape[:2]).transpose(1, 2)  # (B, P, T, R)
        weights = self._weights(words, text_mask)[:, None]
        return self._score(cosines, weights, text_mask[:, None], unit_regions, region_mask)

    def _weights(self, words: Tensor, text_mask: Tensor) -> Tensor:
        importance = self.importance(words).squeeze(-1).float()
        return importance.masked_fill(~text_mask.bool(), -torch.inf).softmax(-1)

    def _score(
        self, cosines: Tensor, weights: Tensor, text_mask: Tensor, unit_regions: Tensor, region_mask: Tensor
    ) -> Tensor:
        """Compute scores (...) from ``cosines`` (..., T, R); ``weights`` and the masks broadcast against them."""
        # The cosines are normalised over the words of each region (equation 2), then each word attends (equation 3).
        similarity = cosines.clamp_min(0).masked_fill(~text_mask.bool()[..., None], 0)
        similarity = nn.functional.normalize(similarity, dim=-2, eps=1e-6)
        logits = (similarity * self.log_sharpness.exp()).masked_fill(~region_mask.bool()[..., None, :], -torch.inf)
        attention = logits.softmax(-1)
        # The attended vector a = attention @ regions is not computed: w.a = attention . cosines, and
        # |a|^2 = attention G attention with the regions' inner products G.
        inner = unit_regions @ unit_regions.transpose(-1, -2)
        length = ((attention @ inner) * attention).sum(-1).clamp_min(1e-6).sqrt()
        relevance = (attention * cosines).sum(-1) / length
        return (relevance * weights).sum(-1) * self.log_scale.exp()
