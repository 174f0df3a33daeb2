"""The network: a ResNet up to res4, a proposal head, and res5 with predictors on the pooled proposals.

Modules have the names of the published checkpoint's tensors, so that its state dict loads without translation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ldot_milvus.regions.bottom_up.boxes import cell_anchors
from ldot_milvus.regions.bottom_up.configuration import DEPTHS, DetectorConfig


class ConvNorm(nn.Conv2d):
    """A convolution followed by a batch norm; :meth:`fold` merges them to one convolution."""

    def __init__(self, inside: int, outside: int, size: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(
            inside, outside, size, stride=stride, padding=size // 2 * dilation, dilation=dilation, bias=False
        )
        self.norm: nn.Module = nn.BatchNorm2d(outside)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, inside, h, w) to (B, outside, h / stride, w / stride)."""
        return self.norm(super().forward(input))

    def fold(self) -> None:
        """Fold the batch norm into the convolution, which halves the memory traffic."""
        norm = self.norm
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            self.weight, self.bias = fuse_conv_bn_weights(
                self.weight, self.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            self.norm = nn.Identity()


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with a shortcut. The stride is in the first 1x1, as in Caffe's ResNets."""

    def __init__(self, inside: int, width: int, outside: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inside, width, 1, stride)
        self.conv2 = ConvNorm(width, width, 3, dilation=dilation)
        self.conv3 = ConvNorm(width, outside, 1)
        self.shortcut = ConvNorm(inside, outside, 1, stride) if inside != outside else None

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, inside, h, w) to (B, outside, h / stride, w / stride)."""
        output = self.conv3(self.conv2(self.conv1(input).relu_()).relu_())
        return (output + (input if self.shortcut is None else self.shortcut(input))).relu_()


def stage(blocks: int, inside: int, width: int, outside: int, stride: int, dilation: int = 1) -> nn.Sequential:
    """Create a stage of ``blocks`` bottlenecks; the first one changes size and channels."""
    first = Bottleneck(inside, width, outside, stride, dilation)
    rest = (Bottleneck(outside, width, outside, dilation=dilation) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class Stem(nn.Module):
    """7x7 convolution and Caffe's max pooling: without padding, windows that exceed the edge included."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, width, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=0, ceil_mode=True)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, 3, h, w) to (B, width, h / 4, w / 4)."""
        return self.pool(self.conv1(input).relu_())


class Backbone(nn.Module):
    """Computes the feature map of a photo, with stride 16."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        blocks, width, out = DEPTHS[config.depth], config.width, config.res2_width
        self.stem = Stem(config.stem_width)
        self.res2 = stage(blocks[0], config.stem_width, width, out, stride=1)
        self.res3 = stage(blocks[1], out, 2 * width, 2 * out, stride=2)
        self.res4 = stage(blocks[2], 2 * out, 4 * width, 4 * out, stride=2)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, 3, h, w) to (B, C, h / 16, w / 16)."""
        return self.res4(self.res3(self.res2(self.stem(input))))


class AnchorGenerator(nn.Module):
    """The anchors, which are part of the checkpoint."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        anchors = cell_anchors(config.anchor_sizes, config.anchor_ratios)
        self.cell_anchors = nn.ParameterList([nn.Parameter(anchors, requires_grad=False)])


class ProposalHead(nn.Module):
    """Predicts objectness and deltas of each anchor of each cell."""

    def __init__(self, inside: int, width: int, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, width, 3, padding=1)
        self.objectness_logits = nn.Conv2d(width, anchors, 1)
        self.anchor_deltas = nn.Conv2d(width, 4 * anchors, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, h, w) to objectness logits (B, A, h, w) and deltas (B, 4 * A, h, w), both float32."""
        shared = self.conv(features).relu_()
        return self.objectness_logits(shared).float(), self.anchor_deltas(shared).float()


class ProposalGenerator(nn.Module):
    """The anchors and the proposal head."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.anchor_generator = AnchorGenerator(config)
        self.rpn_head = ProposalHead(4 * config.res2_width, config.rpn_width, config.anchors)


class BoxPredictor(nn.Module):
    """Predicts a region's class, its box for each class, and its attribute from its feature vector."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.cls_score = nn.Linear(config.dim, config.classes + 1)
        self.bbox_pred = nn.Linear(config.dim, config.classes * 4)
        embedded = config.dim // 8  # 256 of 2,048
        self.cls_embedding = nn.Embedding(config.classes + 1, embedded)
        self.fc_attr = nn.Linear(config.dim + embedded, 2 * embedded)
        self.attr_score = nn.Linear(2 * embedded, config.attributes + 1)

    def class_logits(self, features: Tensor) -> Tensor:
        """Map features (n, dim) to logits (n, classes + 1), the background last."""
        return self.cls_score(features)

    def box_deltas(self, features: Tensor, classes: Tensor) -> Tensor:
        """Map features (n, dim) and classes (n,) to the deltas (n, 4) of the boxes for these classes."""
        deltas = self.bbox_pred(features).view(len(features), -1, 4)
        return deltas[torch.arange(len(features), device=features.device), classes]

    def attribute_logits(self, features: Tensor, class_logits: Tensor) -> Tensor:
        """Compute attribute logits from the features and the most probable class, the background included.

        Args:
            features: (n, dim).
            class_logits: (n, classes + 1).

        Returns:
            (n, attributes + 1), "no attribute" last.
        """
        best_class = self.cls_embedding(class_logits.argmax(1))
        return self.attr_score(self.fc_attr(torch.cat([features, best_class], dim=1)).relu_())

    def attribute_probabilities(self, features: Tensor, class_logits: Tensor) -> Tensor:
        """Compute the probabilities (n, attributes) of the attributes, given that the region has one."""
        return self.attribute_logits(features, class_logits)[:, :-1].softmax(1)


class RegionHeads(nn.Module):
    """res5, applied to every pooled region, and the predictors."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        blocks, width = DEPTHS[config.depth][3], 8 * config.width
        self.res5 = stage(blocks, 4 * config.res2_width, width, config.dim, stride=1, dilation=2)
        self.box_predictor = BoxPredictor(config)

    def features(self, pooled: Tensor) -> Tensor:
        """Map pooled regions (n, C, bins, bins) to float32 features (n, dim), the mean of res5's output."""
        return self.res5(pooled).float().mean((2, 3))

    def read_every_second_bin(self) -> None:
        """Change res5 to read regions that are pooled to the bins of even rows and columns only.

        A convolution dilated by 2 combines bins only with bins of the same parity, and all other layers of res5 read
        one bin at a time. The 14 x 14 bins are therefore four independent grids of 7 x 7, on each of which res5 equals
        a network with undilated convolutions. The mean over one grid is computed exactly, and estimates the mean over
        all four.
        """
        for module in self.res5.modules():
            if isinstance(module, ConvNorm) and module.kernel_size == (3, 3):
                module.dilation = module.padding = (1, 1)


class Detector(nn.Module):
    """The complete network. It has no ``forward``: the extractor calls its modules."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.proposal_generator = ProposalGenerator(config)
        self.roi_heads = RegionHeads(config)

    @property
    def anchors(self) -> Tensor:
        """Anchors (A, 4) of the cell at the origin, in pixels."""
        return self.proposal_generator.anchor_generator.cell_anchors[0]

    def prepare(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Detector:
        """Prepare the network for inference, in place.

        Batch norms are folded; convolutions run in ``dtype`` with channels last, the predictors in float32.
        """
        self.eval().requires_grad_(False)
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        self.to(device)
        for module in (self.backbone, self.proposal_generator.rpn_head, self.roi_heads.res5):
            module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self
