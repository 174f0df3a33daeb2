"""Grid regions: the cells of a ResNet's last feature map, each with its box in the photo."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import ResNetConfig, ResNetModel

from ldot_milvus.forks import computation
from ldot_milvus.images import ImageSource, each_image, open_image
from ldot_milvus.regions.base import Array, Regions, boxes7
from ldot_milvus.weights import QuantizedStorage

if TYPE_CHECKING:
    from PIL.Image import Image

# Caffe's preprocessing, with which the packaged ResNet-50 was trained: RGB, 0..255, minus the ImageNet mean.
PIXEL_MEAN = (123.68, 116.779, 103.939)


class GridBackbone(QuantizedStorage, ResNetModel):
    """transformers' ResNet, which can also be loaded from int8 storage."""

    config_class = ResNetConfig


class GridExtractor:
    """Extracts the cells of a ResNet's last feature map: 7 x 7 regions of 2,048 features with ResNet-50 and size 224.

    Args:
        backbone: the network whose last feature map is used.
        size: side in pixels of the square to which photos are resized, whatever their aspect ratio.
        mirror: average each cell with the corresponding cell of the mirrored photo: twice the time, for one to two
            points of recall with ldot-mini.
        device, dtype: where the network runs and in which precision.

    Attributes:
        dim: width of a region's feature vector.
        least_side: minimum length in pixels of both sides of a photo that is decoded at a reduced size.
    """

    def __init__(
        self,
        backbone: ResNetModel,
        *,
        size: int = 224,
        mirror: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.size = size
        self.mirror = mirror
        self.least_side = 2 * size  # leaves the last reduction, which smooths, to _pixels
        sizes = backbone.config.hidden_sizes
        assert sizes is not None
        self.dim = int(sizes[-1])
        self.device = torch.device(device)
        self.dtype = dtype
        backbone = _for_inference(backbone.float().eval())
        backbone = nn.Module.to(backbone, self.device, dtype)
        self._backbone = nn.Module.to(backbone, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean = torch.tensor(PIXEL_MEAN, device=self.device, dtype=dtype).view(1, 3, 1, 1)

    @classmethod
    def from_pretrained(cls, folder: str, **kwargs: Any) -> GridExtractor:
        """Load the backbone from a folder or hub id; ``kwargs`` are the constructor's other arguments."""
        return cls(GridBackbone.from_pretrained(folder), **kwargs)

    @computation
    @torch.inference_mode()
    def __call__(self, images: Iterable[ImageSource]) -> list[Regions]:
        """Extract the regions of photos of any size.

        Args:
            images: photos in any form of :data:`~ldot_milvus.images.ImageSource`.

        Returns:
            One entry for each photo, in order: n = (size / 32)² regions with features (n, dim) and boxes (n, 7), row by
            row.
        """
        prepared = [self._pixels(open_image(image, draft_to=self.least_side).image) for image in each_image(images)]
        if not prepared:
            return []
        pixels = torch.from_numpy(np.stack(prepared)).to(self.device)
        if self.mirror:  # in one batch: of a single photo, it takes 6 % less time than two
            cells, mirrored = self.feature_map(torch.cat([pixels, pixels.flip(2)])).chunk(2)
            cells = (cells + mirrored.flip(3)) / 2
        else:
            cells = self.feature_map(pixels)
        features = cells.flatten(2).transpose(1, 2).float().cpu().numpy()
        boxes = grid_boxes(self.size // 32)
        confidence = np.ones(len(boxes), np.float32)
        return [Regions(feature, boxes, confidence) for feature in features]

    def feature_map(self, pixels: Tensor) -> Tensor:
        """Compute the last feature map (B, dim, size / 32, size / 32) of uint8 RGB pixels (B, size, size, 3)."""
        planes = pixels.permute(0, 3, 1, 2).to(self.dtype) - self._mean
        return self._backbone(planes.contiguous(memory_format=torch.channels_last)).last_hidden_state

    def _pixels(self, image: Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        from PIL.Image import Resampling

        square = image
        if square.size != (self.size, self.size):
            # A coarse reduction first keeps huge photos cheap; the result differs by less than one grey level.
            square = square.resize((self.size, self.size), Resampling.BILINEAR, reducing_gap=3.0)
        return np.array(square, dtype=np.uint8)


def grid_boxes(cells: int) -> Array:
    """Return the float32 boxes (cells * cells, 7) of a square grid, row by row."""
    edges = np.arange(cells + 1, dtype=np.float32) / cells
    y, x = np.meshgrid(np.arange(cells), np.arange(cells), indexing="ij")
    corners = np.stack([edges[x], edges[y], edges[x + 1], edges[y + 1]], axis=-1).astype(np.float32)
    return boxes7(corners.reshape(-1, 4))


def _for_inference(backbone: ResNetModel) -> ResNetModel:
    """Fold each batch norm into the convolution before it, and rectify in place: less than half the memory traffic."""
    for module in backbone.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
        convolution = getattr(module, "convolution", None)
        normalization = getattr(module, "normalization", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(normalization, nn.BatchNorm2d):
            module.convolution = fuse_conv_bn_eval(convolution, normalization)
            module.normalization = nn.Identity()
    return backbone
