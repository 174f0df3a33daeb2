"""Label probabilities: what a classifier sees in a whole photo and in each of its cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ldot_milvus.forks import computation
from ldot_milvus.images import ImageSource, each_image, open_image
from ldot_milvus.regions.base import Array, RegionExtractor, Regions
from ldot_milvus.regions.efficientnet import EfficientNetLite, cell_means
from ldot_milvus.regions.registry import both_least_sides, classifier_least_side

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 8
"""Photos in a pass of the network: with more, its first feature maps do not fit into a processor's cache."""


class LabelClassifier:
    """Computes the probabilities of a classifier's labels in photos.

    Args:
        network: the classifier, as loaded; its batch norms are fused here.
        temperature: of the softmax. Below 1, fewer labels share the probability.
        cells: number of cells along each side of a photo.
        device, dtype: where the network runs and in which precision.

    Attributes:
        count: number of labels.
        least_side: minimum length in pixels of both sides of a photo that is decoded at a reduced size.
    """

    def __init__(
        self,
        network: EfficientNetLite,
        *,
        temperature: float = 1.0,
        cells: int = 3,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        config = network.config
        assert config.num_labels is not None
        self.count = config.num_labels
        self.least_side = classifier_least_side(config.image_size)
        self._size, self._mean, self._std = config.image_size, config.pixel_mean, config.pixel_std
        self._temperature, self._cells = temperature, cells
        self._device, self._dtype = torch.device(device), dtype
        network = nn.Module.to(network.float().fused(), self._device, dtype)
        self._network = nn.Module.to(network, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_pretrained(cls, folder: str, **kwargs: Any) -> LabelClassifier:
        """Load the network from a folder or hub id; ``kwargs`` are the constructor's other arguments."""
        return cls(EfficientNetLite.from_pretrained(folder), **kwargs)

    @computation
    @torch.inference_mode()
    def __call__(self, images: Sequence[Image]) -> Array:
        """Compute the probabilities of all labels in photos of any size.

        Returns:
            float32 (n, 1 + cells², count): of the whole photo, then of its cells, row by row. Each sums to 1.
        """
        parts = [self._probabilities(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, 1 + self._cells**2, self.count), np.float32)

    def _probabilities(self, images: Sequence[Image]) -> Array:
        pixels = torch.from_numpy(np.stack([self._pixels(image) for image in images])).to(self._device)
        planes = ((pixels.float() - self._mean) / self._std).permute(0, 3, 1, 2).to(self._dtype)
        features = self._network.feature_map(planes.contiguous(memory_format=torch.channels_last))
        places = torch.cat([cell_means(features, 1), cell_means(features, self._cells)], dim=1)
        logits = self._network.classifier(places).float()
        return (logits / self._temperature).softmax(-1).cpu().numpy()

    def _pixels(self, image: Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        from PIL.Image import Resampling

        square = image.convert("RGB")
        if square.size != (self._size, self._size):
            square = square.resize((self._size, self._size), Resampling.BICUBIC, reducing_gap=3.0)
        return np.array(square, dtype=np.uint8)


class LabelledExtractor:
    """Adds label probabilities to the regions of another extractor: one pass over the pixels gives both.

    Args:
        extractor: extracts the regions.
        classifier: computes the probabilities.

    Attributes:
        dim: width of a region's feature vector.
    """

    def __init__(self, extractor: RegionExtractor, classifier: LabelClassifier) -> None:
        self._extractor, self._classifier = extractor, classifier
        self.dim = extractor.dim

    @property
    def least_side(self) -> int | None:
        """Minimum length in pixels of both sides of a photo decoded at a reduced size; None: decode at full size."""
        return both_least_sides(self._extractor.least_side, self._classifier.least_side)

    def __call__(self, images: Iterable[ImageSource]) -> list[Regions]:
        """Extract the regions of photos, with ``label_probabilities``."""
        opened = [open_image(image, draft_to=self.least_side).image for image in each_image(images)]
        regions, labels = self._extractor(opened), self._classifier(opened)
        return [replace(its, label_probabilities=row) for its, row in zip(regions, labels, strict=True)]
