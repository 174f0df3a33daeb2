"""Label probabilities: what a classifier sees in a whole photo and in each of its cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ldot_milvus.batches import batched
from ldot_milvus.forks import computation
from ldot_milvus.images import ImageSource, each_image, open_image
from ldot_milvus.regions.base import Array, RegionExtractor, Regions
from ldot_milvus.regions.efficientnet import EfficientNetLite, box_means
from ldot_milvus.regions.grid import grid_boxes
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
        dim: channels of the last feature map.
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
        self.count, self.dim = config.num_labels, config.head_channels
        self.least_side = classifier_least_side(config.image_size)
        self._size, self._mean, self._std = config.image_size, config.pixel_mean, config.pixel_std
        self._temperature, self._cells = temperature, cells
        places = [grid_boxes(1), grid_boxes(cells)]
        self._places = torch.from_numpy(np.concatenate(places)[:, :4])
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
        parts = [self._probabilities(maps) for maps in self._feature_maps(images)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self._places), self.count), np.float32)

    @computation
    @torch.inference_mode()
    def with_features(self, images: Sequence[Image], boxes: Sequence[Array]) -> tuple[Array, list[Array]]:
        """Compute the probabilities, and the mean of the last feature map in each of a photo's boxes.

        Args:
            images: n photos of any size.
            boxes: (R, 7) of each photo, as of :class:`~ldot_milvus.regions.base.Regions`; R may differ.

        Returns:
            The probabilities, as a call returns them, and float32 (R, dim) of each photo.
        """
        probabilities: list[Array] = []
        features: list[Array] = []
        for maps in self._feature_maps(images):
            probabilities.append(self._probabilities(maps))
            for single in maps.split(1):
                corners = torch.from_numpy(boxes[len(features)][:, :4])
                features.append(box_means(single, corners)[0].float().cpu().numpy())
        return np.concatenate(probabilities), features

    def _feature_maps(self, images: Sequence[Image]) -> Iterator[Tensor]:
        for batch in batched(images, BATCH):
            pixels = torch.from_numpy(np.stack([self._pixels(image) for image in batch])).to(self._device)
            planes = ((pixels.float() - self._mean) / self._std).permute(0, 3, 1, 2).to(self._dtype)
            yield self._network.feature_map(planes.contiguous(memory_format=torch.channels_last))

    def _probabilities(self, maps: Tensor) -> Array:
        logits = self._network.classifier(box_means(maps, self._places)).float()
        return (logits / self._temperature).softmax(-1).cpu().numpy()

    def _pixels(self, image: Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        from PIL.Image import Resampling

        square = image.convert("RGB")
        if square.size != (self._size, self._size):
            square = square.resize((self._size, self._size), Resampling.BICUBIC, reducing_gap=3.0)
        return np.array(square, dtype=np.uint8)


class LabelledExtractor:
    """Adds label probabilities to the regions of another extractor: one pass over the pixels gives both.

    With ``names``, a region's features are followed by what the classifier sees in it: the classifier's own features,
    then the place in the space of label names of the cell in which its centre is, and that of the whole photo.

    Args:
        extractor: extracts the regions.
        classifier: computes the probabilities.
        names: float32 (count, width), the vectors of the labels' names
            (:class:`~ldot_milvus.models.lightningdot.label_names.LabelNames`); None leaves the features as they are.

    Attributes:
        dim: width of a region's feature vector.
    """

    def __init__(self, extractor: RegionExtractor, classifier: LabelClassifier, names: Array | None = None) -> None:
        self._extractor, self._classifier, self._names = extractor, classifier, names
        self.dim = extractor.dim + (0 if names is None else classifier.dim + 2 * names.shape[1])

    @property
    def least_side(self) -> int | None:
        """Minimum length in pixels of both sides of a photo decoded at a reduced size; None: decode at full size."""
        return both_least_sides(self._extractor.least_side, self._classifier.least_side)

    def __call__(self, images: Iterable[ImageSource]) -> list[Regions]:
        """Extract the regions of photos, with ``label_probabilities``."""
        opened = [open_image(image, draft_to=self.least_side).image for image in each_image(images)]
        regions = self._extractor(opened)
        if self._names is None or not regions:
            labels = self._classifier(opened)
            return [replace(its, label_probabilities=row) for its, row in zip(regions, labels, strict=True)]
        labels, features = self._classifier.with_features(opened, [its.boxes for its in regions])
        return [
            _extended(replace(its, label_probabilities=row), seen, self._names)
            for its, row, seen in zip(regions, labels, features, strict=True)
        ]


def _extended(regions: Regions, seen: Array, names: Array) -> Regions:
    """Append the classifier's features (n, dim) and the names' vectors to the regions' features."""
    assert regions.label_probabilities is not None
    # NumPy's product has threads of its own, which still wait for work on the cores that torch's next step needs.
    places = (torch.from_numpy(regions.label_probabilities) @ torch.from_numpy(names)).numpy()
    whole = np.broadcast_to(places[0], (len(regions), places.shape[1]))
    features = np.concatenate([regions.features, seen, places[regions.label_places], whole], axis=1)
    return replace(regions, features=features)
