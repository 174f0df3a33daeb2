"""Regions, the form in which LightningDOT reads photos, and the interface of region extractors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Regions:
    """A photo as n regions. Arrays that only a detector produces are None for other extractors.

    Attributes:
        features: (n, d) float32, the feature vector of each region.
        boxes: (n, 7) float32: x1, y1, x2, y2, width, height as fractions of the photo, and width * height.
        confidence: (n,) float32 in 0..1, the probability of the region's class; all ones for a grid.
        soft_labels: (n, classes) float32, a detector's class probabilities, background first.
        objects: (n,) int64, the id of the region's class; ids do not count the background.
        attributes: (n,) int64, the id of the most probable attribute.
        attribute_confidence: (n,) float32 in 0..1, the probability of that attribute.
        label_probabilities: (places, labels) float32, a classifier's probabilities of its labels in the whole photo,
            then in the cells of a grid, row by row (:class:`~ldot_milvus.regions.labels.LabelClassifier`); None for a
            model without label names. They do not belong to single regions.

    Raises:
        InputError: an array has a wrong shape, or n is 0.
    """

    features: Array
    boxes: Array
    confidence: Array
    soft_labels: Array | None = None
    objects: Ids | None = None
    attributes: Ids | None = None
    attribute_confidence: Array | None = None
    label_probabilities: Array | None = None

    def __post_init__(self) -> None:
        n = len(self.features)
        if self.features.ndim != 2 or self.boxes.shape != (n, 7) or self.confidence.shape != (n,) or n == 0:
            raise InputError(
                f"regions need features (n, d), boxes (n, 7) and confidence (n,) with n >= 1; got "
                f"{self.features.shape}, {self.boxes.shape} and {self.confidence.shape}"
            )
        if self.soft_labels is not None and (self.soft_labels.ndim != 2 or len(self.soft_labels) != n):
            raise InputError(f"{n} regions need soft_labels ({n}, classes); got {self.soft_labels.shape}")
        for name in ("objects", "attributes", "attribute_confidence"):
            values = getattr(self, name)
            if values is not None and values.shape != (n,):
                raise InputError(f"{n} regions need {name} ({n},); got {values.shape}")
        labels = self.label_probabilities
        if labels is not None and (labels.ndim != 2 or len(labels) == 0):
            raise InputError(f"label_probabilities need the shape (places, labels); got {labels.shape}")

    def __len__(self) -> int:
        return len(self.features)

    @property
    def label_places(self) -> Ids:
        """For each region, the row of ``label_probabilities`` of the cell in which its centre is, (n,)."""
        assert self.label_probabilities is not None
        cells = math.isqrt(len(self.label_probabilities) - 1)
        if not cells:
            return np.zeros(len(self), np.int64)
        centres = (self.boxes[:, :2] + self.boxes[:, 2:4]) / 2
        x, y = np.clip((centres * cells).astype(np.int64), 0, cells - 1).T
        places: Ids = 1 + y * cells + x  # row 0 is the whole photo
        return places

    def first(self, count: int) -> Regions:
        """Return the first ``count`` regions, or all regions if there are fewer."""
        return self if count >= len(self) else self.select(np.arange(count))

    def select(self, indices: NDArray[np.int64]) -> Regions:
        """Return the regions at ``indices``, in that order, and the photo's label probabilities."""
        arrays = {name: array for name, array in vars(self).items() if array is not None}
        return Regions(
            **{name: array if name == "label_probabilities" else array[indices] for name, array in arrays.items()}
        )


class RegionExtractor(Protocol):
    """Extracts regions from photos.

    Attributes:
        dim: width of a region's feature vector.
        least_side: minimum length in pixels of both sides of a photo that is decoded at a reduced size; None if photos
            must be decoded at full size.
    """

    dim: int

    @property
    def least_side(self) -> int | None: ...  # noqa: D102

    def __call__(self, images: Sequence[Image]) -> list[Regions]:
        """Extract the regions of RGB photos.

        Returns:
            One entry for each photo, in order. It does not depend on the other photos in the call.
        """
        ...


def boxes7(corners: Array) -> Array:
    """Convert corners (n, 4), x1, y1, x2, y2 as fractions of the photo, to the float32 boxes (n, 7) of a Regions."""
    x1, y1, x2, y2 = corners.T
    width, height = x2 - x1, y2 - y1
    return np.stack([x1, y1, x2, y2, width, height, width * height], axis=1).astype(np.float32)
