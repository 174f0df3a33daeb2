"""Canonical correlations: a linear path from photos to sentences, computed in closed form from frozen features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldot_milvus.models.lightningdot.layers import pool


class CanonicalCorrelations(nn.Module):
    """Compares the directions in which sentences and photos vary together (CCA: Hotelling, 1936).

    A text is the mean of its word embeddings, its vector by a frozen sentence encoder, and how often each of the
    frequent words of the captions is in it; a photo is the mean of its regions' features, the signed square root of
    each (power normalisation: Perronnin et al., ECCV 2010). Both are standardised and projected on canonical
    directions, each scaled by the square root of its correlation, and have length 1. Nothing here is trained by
    gradients, so it errs differently from networks that are (``benchmarks/ldot-mini.md``).

    Args:
        text_dim: width of a text's vector, word embeddings and sentence vector together.
        words: number of words that are counted.
        region_dim: number of a region's first features that are read.
        dim: number of directions.
        weight: weight of this comparison in the score of a text with a photo.
    """

    text_mean: Tensor
    text_scale: Tensor
    text_directions: Tensor
    words: Tensor
    word_directions: Tensor
    word_offset: Tensor
    image_mean: Tensor
    image_scale: Tensor
    image_directions: Tensor

    def __init__(self, text_dim: int, words: int, region_dim: int, dim: int, weight: float) -> None:
        super().__init__()
        for side, width in (("text", text_dim), ("image", region_dim)):
            self.register_buffer(f"{side}_mean", torch.zeros(width))
            self.register_buffer(f"{side}_scale", torch.zeros(width))
            self.register_buffer(f"{side}_directions", torch.zeros(dim, width))
        if words:
            self.register_buffer("words", torch.zeros(words, dtype=torch.int64))
            self.register_buffer("word_directions", torch.zeros(words, dim))
            self.register_buffer("word_offset", torch.zeros(dim))
        self.counted = words
        self.weight = weight

    def text_block(self, texts: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the block (B, dim) of texts.

        Args:
            texts: (B, text_dim).
            input_ids: (B, T) int64 WordPiece ids.
            attention_mask: (B, T), 1 = token, 0 = padding.
        """
        projected = _projected(texts, self.text_mean, self.text_scale, self.text_directions)
        if self.counted:
            counts = word_counts(input_ids, attention_mask, self.words)
            projected = projected + counts @ self.word_directions.float() - self.word_offset.float()
        return nn.functional.normalize(projected, dim=-1)

    def image_block(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the block (B, dim) of photos, given their regions as for :func:`photo_features`."""
        photos = photo_features(features[..., : len(self.image_mean)], mask)
        projected = _projected(photos, self.image_mean, self.image_scale, self.image_directions)
        return self.weight * nn.functional.normalize(projected, dim=-1)


def word_counts(input_ids: Tensor, attention_mask: Tensor, words: Tensor) -> Tensor:
    """Count words in texts, float32 (B, words).

    Args:
        input_ids, attention_mask: (B, T), as for :meth:`CanonicalCorrelations.text_block`.
        words: WordPiece ids of the words, (words,).
    """
    found = (input_ids.unsqueeze(-1) == words) & attention_mask.bool().unsqueeze(-1)
    return found.float().sum(1)


def photo_features(features: Tensor, mask: Tensor) -> Tensor:
    """Return the power-normalised mean of photos' regions, float32 (B, region_dim).

    Args:
        features: (B, R, region_dim).
        mask: (B, R), True = region, False = padding.
    """
    mean = pool(features.float(), mask, "mean")
    return mean.sign() * mean.abs().sqrt()


def _projected(values: Tensor, mean: Tensor, scale: Tensor, directions: Tensor) -> Tensor:
    return ((values.float() - mean.float()) * scale.float()) @ directions.float().T
