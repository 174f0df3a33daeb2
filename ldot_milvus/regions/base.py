"""The one form in which photos reach the model: regions."""

from __future__ import annotations

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
    """A photo as n regions.

    Attributes:
        features: (n, d) float32, what the extractor saw in each region.
        boxes: (n, 7) float32: x1, y1, x2, y2, width, height as fractions of the photo, and width * height.
        confidence: (n,) float32 in 0..1; all ones for a grid.
        soft_labels: (n, classes) float32, a detector's class probabilities, background first.
        objects: (n,) int64, the class that the confidence is of, without counting the background.
        attributes, attribute_confidence: (n,) int64 and float32, the likeliest attribute, and how likely it is.

    What only a detector gives is None where there is none.
    """

    features: Array
    boxes: Array
    confidence: Array
    soft_labels: Array | None = None
    objects: Ids | None = None
    attributes: Ids | None = None
    attribute_confidence: Array | None = None

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

    def __len__(self) -> int:
        return len(self.features)

    def first(self, count: int) -> Regions:
        """The first ``count`` regions, or all where there are fewer."""
        return self if count >= len(self) else self.some(np.arange(count))

    def some(self, rows: NDArray[np.int64]) -> Regions:
        """These regions, in this order."""
        taken = {name: array[rows] for name, array in vars(self).items() if array is not None}
        return Regions(**taken)


class RegionExtractor(Protocol):
    """Pixels to regions.

    Attributes:
        dim: width of a region's feature.
        least_side: pixels; a photo may come reduced as long as both sides stay at least this long. None: it may not.
    """

    dim: int

    @property
    def least_side(self) -> int | None:
        """See above."""
        ...

    def __call__(self, images: Sequence[Image]) -> list[Regions]:
        """Regions of RGB photos; a photo's result does not depend on the others in the call."""
        ...


def boxes7(corners: Array) -> Array:
    """(n, 4) corners as fractions of the photo to the (n, 7) boxes that the models read."""
    x1, y1, x2, y2 = corners.T
    width, height = x2 - x1, y2 - y1
    return np.stack([x1, y1, x2, y2, width, height, width * height], axis=1).astype(np.float32)
