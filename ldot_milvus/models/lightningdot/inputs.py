"""Prepare the networks' input: padded batches of regions. ``models/tokens.py`` does the same for texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ldot_milvus.models.base import Array
from ldot_milvus.regions import Regions


def pad_regions(
    regions: Sequence[Regions], dtype: DTypeLike = np.float32
) -> tuple[NDArray[Any], Array, NDArray[np.bool_]]:
    """Pad the regions of B photos.

    Args:
        regions: of the photos.
        dtype: of the features that are returned.

    Returns:
        Features (B, R, d), float32 boxes (B, R, 7) and a bool mask (B, R), True = region.
    """
    shape = len(regions), max(map(len, regions))
    features = np.zeros((*shape, regions[0].features.shape[1]), dtype)
    boxes, mask = np.zeros((*shape, 7), np.float32), np.zeros(shape, bool)
    for photo, its in enumerate(regions):
        features[photo, : len(its)], boxes[photo, : len(its)], mask[photo, : len(its)] = its.features, its.boxes, True
    return features, boxes, mask


def stack_labels(regions: Sequence[Regions]) -> Array | None:
    """Stack the label probabilities of B photos, float32 (B, places, labels); None if a photo has none."""
    labels = [its.label_probabilities for its in regions]
    present = [array for array in labels if array is not None]
    return np.stack(present).astype(np.float32) if len(present) == len(labels) else None
