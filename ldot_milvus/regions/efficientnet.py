"""EfficientNet-Lite: a small image classifier for processors without fast squeeze-and-excitation.

The network is MobileNetV2's inverted residuals (Sandler et al., CVPR 2018) in EfficientNet's sizes (Tan and Le, ICML
2019), with ReLU6 and without squeeze-and-excitation, as published with TensorFlow's padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import PretrainedConfig, PreTrainedModel

from ldot_milvus.weights import QuantizedStorage


class EfficientNetLiteConfig(PretrainedConfig):
    """Sizes of an :class:`EfficientNetLite` and the preparation of its photos.

    Args:
        image_size: side in pixels of the square photos.
        pixel_mean, pixel_std: the input is ``(x - pixel_mean) / pixel_std`` for RGB values x in 0..255.
        stem_channels: channels of the first convolution.
        head_channels: channels of the last feature map, the classifier's input.
        batch_norm_eps: epsilon of the batch norms.
        stages: of each stage the number of blocks ("repeats"), the side of the depthwise kernel ("kernel"), the
            "stride" of the first block, the factor of expansion ("expand") and the output's "channels".
        num_labels: number of classes.
    """

    model_type = "efficientnet-lite"

    def __init__(
        self,
        image_size: int = 260,
        pixel_mean: float = 127.0,
        pixel_std: float = 128.0,
        stem_channels: int = 32,
        head_channels: int = 1280,
        batch_norm_eps: float = 1e-3,
        stages: list[dict[str, int]] | None = None,
        num_labels: int = 2,
        **kwargs: Any,
    ) -> None:
        self.image_size = image_size
        self.pixel_mean = pixel_mean
        self.pixel_std = pixel_std
        self.stem_channels = stem_channels
        self.head_channels = head_channels
        self.batch_norm_eps = batch_norm_eps
        self.stages = stages or []
        super().__init__(**{"num_labels": num_labels, **kwargs})

    def to_dict(self) -> dict[str, Any]:
        """Return the values of ``config.json``: the number of labels, and not transformers' two maps of their names."""
        values: dict[str, Any] = super().to_dict()
        for name in ("id2label", "label2id"):
            values.pop(name, None)
        return values | {"num_labels": self.num_labels}


class ConvolutionNorm(nn.Module):
    """A convolution with TensorFlow's "same" padding, batch norm, and ReLU6 where ``activate`` is set.

    The output has ``ceil(side / stride)`` positions; where the padding is odd, the additional row and column of zeros
    lie at the bottom and at the right.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, config: EfficientNetLiteConfig,
        *, stride: int = 1, groups: int = 1, activate: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=config.batch_norm_eps)
        # The files lack this counter, which only a moving average without momentum uses.
        self.bn.register_buffer("num_batches_tracked", torch.tensor(0), persistent=False)
        self._kernel, self._stride, self._activate = kernel, stride, activate

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output (B, outputs, ceil(H / stride), ceil(W / stride)) of ``x`` (B, inputs, H, W)."""
        (top, bottom), (left, right) = (self._padding(side) for side in x.shape[-2:])
        padding = top, left
        if padding != (bottom, right):  # padding in the convolution copies nothing: 14 % less time for the network
            x, padding = nn.functional.pad(x, (left, right, top, bottom)), (0, 0)
        conv = self.conv
        x = self.bn(nn.functional.conv2d(x, conv.weight, conv.bias, conv.stride, padding, groups=conv.groups))
        return nn.functional.relu6(x, inplace=not self.training) if self._activate else x

    def fuse(self) -> None:
        """Fold the batch norm into the convolution, which halves the memory traffic. The network must not train."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv, self.bn = fuse_conv_bn_eval(self.conv, self.bn), nn.Identity()

    def _padding(self, side: int) -> tuple[int, int]:
        outputs = -(-side // self._stride)
        total = max(0, (outputs - 1) * self._stride + self._kernel - side)
        return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Expansion by a 1 x 1 convolution, a depthwise convolution, and projection, with a residual where sizes agree."""

    def __init__(
        self, inputs: int, outputs: int, config: EfficientNetLiteConfig, *, kernel: int, stride: int, expand: int
    ) -> None:
        super().__init__()
        wide = inputs * expand
        self.expand = ConvolutionNorm(inputs, wide, 1, config) if expand > 1 else None
        self.depthwise = ConvolutionNorm(wide, wide, kernel, config, stride=stride, groups=wide)
        self.project = ConvolutionNorm(wide, outputs, 1, config, activate=False)
        self._residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output (B, outputs, ceil(H / stride), ceil(W / stride))."""
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self._residual else y


class EfficientNetLite(QuantizedStorage, PreTrainedModel):
    """An EfficientNet-Lite classifier. Both stages are available: the last feature map, and classes of its features."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixels"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = ConvolutionNorm(3, config.stem_channels, 3, config, stride=2)
        blocks, inputs = [], config.stem_channels
        for stage in config.stages:
            for number in range(stage["repeats"]):
                stride = stage["stride"] if number == 0 else 1
                blocks.append(
                    InvertedResidual(
                        inputs, stage["channels"], config, kernel=stage["kernel"], stride=stride, expand=stage["expand"]
                    )
                )
                inputs = stage["channels"]
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvolutionNorm(inputs, config.head_channels, 1, config)
        assert config.num_labels is not None
        self.classifier = nn.Linear(config.head_channels, config.num_labels)
        self.post_init()

    def feature_map(self, pixels: Tensor) -> Tensor:
        """Compute the last feature map (B, head_channels, h, w) of normalised pixels (B, 3, H, W)."""
        return self.head(self.blocks(self.stem(pixels)))

    def forward(self, pixels: Tensor, **_: Any) -> Tensor:
        """Compute the logits (B, num_labels) of normalised pixels (B, 3, H, W)."""
        return self.classifier(self.feature_map(pixels).mean((2, 3)))

    def fused(self) -> EfficientNetLite:
        """Fold all batch norms into their convolutions, in place, for inference; returns the model."""
        for module in self.eval().modules():
            if isinstance(module, ConvolutionNorm):
                module.fuse()
        return self


def box_means(features: Tensor, corners: Tensor) -> Tensor:
    """Average a feature map over boxes, each position by the share of it that lies in the box.

    Args:
        features: (B, C, H, W).
        corners: (R, 4): x1, y1, x2, y2 as fractions of the map's sides. An empty box has the value of its position.

    Returns:
        (B, R, C).
    """
    left, top, right, bottom = corners.to(features.device).T
    rows, columns = (
        _overlaps(first, last, side).to(features.dtype)
        for first, last, side in zip((top, left), (bottom, right), features.shape[-2:], strict=True)
    )
    return torch.einsum("bchw,rh,rw->brc", features, rows, columns)


def _overlaps(first: Tensor, last: Tensor, positions: int) -> Tensor:
    """Return the weights (R, positions) of a side's positions in the intervals from ``first`` to ``last``."""
    first = first.clamp(0, 1 - 1e-4)
    last = torch.maximum(last, first + 1e-4)
    edges = torch.arange(positions + 1, device=first.device) / positions
    shares = (torch.minimum(last[:, None], edges[1:]) - torch.maximum(first[:, None], edges[:-1])).clamp_min(0)
    return shares / shares.sum(1, keepdim=True)
