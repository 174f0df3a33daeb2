"""The network: ResNet-101 up to res4, a proposal head on it, and res5 with its predictors on the pooled proposals.

Module names are those of the published checkpoint's tensors, so its state dict loads as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ldot_milvus.regions.bottom_up.boxes import cell_anchors
from ldot_milvus.regions.bottom_up.configuration import DEPTHS, DetectorConfig


class ConvNorm(nn.Conv2d):
    """A convolution and its batch norm; :meth:`fold` makes one convolution of the two."""

    def __init__(self, inside: int, outside: int, size: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(
            inside, outside, size, stride=stride, padding=size // 2 * dilation, dilation=dilation, bias=False
        )
        self.norm: nn.Module = nn.BatchNorm2d(outside)

    def forward(self, input: Tensor) -> Tensor:
        """(B, inside, h, w) to (B, outside, h / stride, w / stride)."""
        return self.norm(super().forward(input))

    def fold(self) -> None:
        """The same function in half the memory traffic."""
        norm = self.norm
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            self.weight, self.bias = fuse_conv_bn_weights(
                self.weight, self.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            self.norm = nn.Identity()


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution beside a shortcut. The stride is in the first 1x1, as Caffe's ResNets have it."""

    def __init__(self, inside: int, width: int, outside: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inside, width, 1, stride)
        self.conv2 = ConvNorm(width, width, 3, dilation=dilation)
        self.conv3 = ConvNorm(width, outside, 1)
        self.shortcut = ConvNorm(inside, outside, 1, stride) if inside != outside else None

    def forward(self, input: Tensor) -> Tensor:
        """(B, inside, h, w) to (B, outside, h / stride, w / stride)."""
        hidden = self.conv2(self.conv1(input).relu_()).relu_()
        return (self.conv3(hidden) + (input if self.shortcut is None else self.shortcut(input))).relu_()


def stage(blocks: int, inside: int, width: int, outside: int, stride: int, dilation: int = 1) -> nn.Sequential:
    """Bottlenecks, the first of which changes the size."""
    first = Bottleneck(inside, width, outside, stride, dilation)
    rest = (Bottleneck(outside, width, outside, dilation=dilation) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class Stem(nn.Module):
    """7x7 convolution and Caffe's pooling: no padding, and a window that is cut at the edge still counts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, width, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=0, ceil_mode=True)

    def forward(self, input: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, width, h / 4, w / 4)."""
        return self.pool(self.conv1(input).relu_())


class Backbone(nn.Module):
    """A photo to its feature map of stride 16."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        blocks, width, out = DEPTHS[config.depth], config.width, config.res2_width
        self.stem = Stem(config.stem_width)
        self.res2 = stage(blocks[0], config.stem_width, width, out, stride=1)
        self.res3 = stage(blocks[1], out, 2 * width, 2 * out, stride=2)
        self.res4 = stage(blocks[2], 2 * out, 4 * width, 4 * out, stride=2)

    def forward(self, input: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, C, h / 16, w / 16)."""
        return self.res4(self.res3(self.res2(self.stem(input))))


class AnchorGenerator(nn.Module):
    """Holds the anchors, which are part of the checkpoint."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        anchors = cell_anchors(config.anchor_sizes, config.anchor_ratios)
        self.cell_anchors = nn.ParameterList([nn.Parameter(anchors, requires_grad=False)])


class ProposalHead(nn.Module):
    """How much each anchor of each cell looks like an object, and how it should be shifted."""

    def __init__(self, inside: int, width: int, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, width, 3, padding=1)
        self.objectness_logits = nn.Conv2d(width, anchors, 1)
        self.anchor_deltas = nn.Conv2d(width, 4 * anchors, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) to logits (B, A, h, w) and deltas (B, 4 * A, h, w), both float32."""
        hidden = self.conv(features).relu_()
        return self.objectness_logits(hidden).float(), self.anchor_deltas(hidden).float()


class ProposalGenerator(nn.Module):
    """The anchors and the proposal head."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.anchor_generator = AnchorGenerator(config)
        self.rpn_head = ProposalHead(4 * config.res2_width, config.rpn_width, config.anchors)


class BoxPredictor(nn.Module):
    """What a region's feature says: its class, its box for each class, its attribute."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.cls_score = nn.Linear(config.dim, config.classes + 1)
        self.bbox_pred = nn.Linear(config.dim, config.classes * 4)
        embedded = config.dim // 8  # 256 of 2,048
        self.cls_embedding = nn.Embedding(config.classes + 1, embedded)
        self.fc_attr = nn.Linear(config.dim + embedded, 2 * embedded)
        self.attr_score = nn.Linear(2 * embedded, config.attributes + 1)

    def class_logits(self, features: Tensor) -> Tensor:
        """(n, dim) to (n, classes + 1), the background last."""
        return self.cls_score(features)

    def box_deltas(self, features: Tensor, classes: Tensor) -> Tensor:
        """(n, dim) and a class for each to (n, 4)."""
        deltas = self.bbox_pred(features).view(len(features), -1, 4)
        return deltas[torch.arange(len(features), device=features.device), classes]

    def attribute_logits(self, features: Tensor, class_logits: Tensor) -> Tensor:
        """(n, dim) and (n, classes + 1) to (n, attributes + 1), "none" last; the best class, or background, is read."""
        guess = self.cls_embedding(class_logits.argmax(1))
        return self.attr_score(self.fc_attr(torch.cat([features, guess], dim=1)).relu_())

    def attribute_probabilities(self, features: Tensor, class_logits: Tensor) -> Tensor:
        """The same to (n, attributes): how likely each is if there is one."""
        return self.attribute_logits(features, class_logits)[:, :-1].softmax(1)


class RegionHeads(nn.Module):
    """res5 on every pooled region, and the predictors."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        blocks, width = DEPTHS[config.depth][3], 8 * config.width
        self.res5 = stage(blocks, 4 * config.res2_width, width, config.dim, stride=1, dilation=2)
        self.box_predictor = BoxPredictor(config)

    def features(self, pooled: Tensor) -> Tensor:
        """Pooled regions (n, C, bins, bins) to features (n, dim): the mean over what res5 gives; float32."""
        return self.res5(pooled).float().mean((2, 3))

    def read_every_second_bin(self) -> None:
        """From now on, expect regions pooled to bins of even row and column alone.

        A convolution dilated by 2 joins bins only with bins of the same parity, and everything else in res5 sees one
        bin at a time. So the 14 x 14 bins are four grids of 7 x 7 that never meet, and each is a case for ordinary
        convolutions: the mean over one of them is computed exactly, and is an estimate of the mean over all four.
        """
        for module in self.res5.modules():
            if isinstance(module, ConvNorm) and module.kernel_size == (3, 3):
                module.dilation = module.padding = (1, 1)


class Detector(nn.Module):
    """The whole network; it is used part by part."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.proposal_generator = ProposalGenerator(config)
        self.roi_heads = RegionHeads(config)

    @property
    def anchors(self) -> Tensor:
        """Of a cell, (A, 4)."""
        return self.proposal_generator.anchor_generator.cell_anchors[0]

    def prepare(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Detector:
        """Ready to run: batch norms folded, convolutions in ``dtype`` and channels last, the predictors in float32."""
        self.eval().requires_grad_(False)
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        self.to(device)
        for part in (self.backbone, self.proposal_generator.rpn_head, self.roi_heads.res5):
            part.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self
