"""Canonical correlations: a linear path from photos to sentences, computed in closed form from frozen features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldot_milvus.models.lightningdot.layers import pool


class CanonicalCorrelations(nn.Module):
    """Compares the directions in which sentences and photos vary together (CCA: Hotelling, 1936).

    A text is the mean of its word embeddings and its vector by a frozen sentence encoder; a photo is the mean of its
    regions' features, the signed square root of each (power normalisation: Perronnin et al., ECCV 2010). Both are
    standardised and projected on canonical directions, each scaled by the square root of its correlation, and have
    length 1. Nothing here is trained by gradients, so it errs differently from networks that are
    (``benchmarks/ldot-mini.md``).

    Args:
        text_dim: width of a text, word embeddings and sentence vector together.
        region_dim: number of a region's first features that are read.
        dim: number of directions.
        weight: weight of this comparison in the score of a text with a photo.
    """

    text_mean: Tensor
    text_scale: Tensor
    text_directions: Tensor
    image_mean: Tensor
    image_scale: Tensor
    image_directions: Tensor

    def __init__(self, text_dim: int, region_dim: int, dim: int, weight: float) -> None:
        super().__init__()
        for side, width in (("text", text_dim), ("image", region_dim)):
            self.register_buffer(f"{side}_mean", torch.zeros(width))
            self.register_buffer(f"{side}_scale", torch.zeros(width))
            self.register_buffer(f"{side}_directions", torch.zeros(dim, width))
        self.weight = weight

    def text_block(self, texts: Tensor) -> Tensor:
        """Return the block (B, dim) of texts (B, text_dim)."""
        return _projected(texts, self.text_mean, self.text_scale, self.text_directions)

    def image_block(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the block (B, dim) of photos, given their regions as for :func:`photo_features`."""
        photos = photo_features(features[..., : len(self.image_mean)], mask)
        return self.weight * _projected(photos, self.image_mean, self.image_scale, self.image_directions)


def photo_features(features: Tensor, mask: Tensor) -> Tensor:
    """Return the power-normalised mean of photos' regions, float32 (B, region_dim).

    Args:
        features: (B, R, region_dim).
        mask: (B, R), True = region, False = padding.
    """
    mean = pool(features.float(), mask, "mean")
    return mean.sign() * mean.abs().sqrt()


def _projected(values: Tensor, mean: Tensor, scale: Tensor, directions: Tensor) -> Tensor:
    standardised = (values.float() - mean.float()) * scale.float()
    return nn.functional.normalize(standardised @ directions.float().T, dim=-1)
