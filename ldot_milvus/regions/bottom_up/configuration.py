"""Configuration of the detector, read from the ``config.yaml`` of a published checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldot_milvus.errors import ModelError

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Number of blocks in res2, res3, res4 and res5, by the depth of the ResNet."""

STRIDE = 16
"""Side in pixels of the resized photo of a feature map's cell."""

FIXED = {
    "model.max_pool": True,
    "model.num_channels": 3,
    "input.format": "BGR",
    "anchor_generator.offset": 0,
    "rpn.bbox_reg_weights": [1.0, 1.0, 1.0, 1.0],
    "roi_box_head.pooler_resolution": 14,
    "roi_box_head.res5halve": False,
    "roi_box_head.attr": True,
    "roi_box_head.cls_agnostic_bbox_reg": False,
    "resnets.num_groups": 1,
    "resnets.norm": "BN",
    "resnets.stride_in_1x1": True,
}
"""Values that all published detectors of this kind share; other values are not supported.

``resnets.res5_dilation`` is not among them: it is 1 in the file, but the published network uses 2, because
``res5halve`` is False.
"""


@dataclass(frozen=True)
class DetectorConfig:
    """Sizes of the network, and limits on the number of regions. The defaults are the published values.

    Attributes:
        depth: of the ResNet: 50, 101 or 152.
        stem_width: channels of the stem's output.
        width: inner channels of res2's bottlenecks; each later stage has twice as many as the one before.
        res2_width: channels of res2's output; each later stage has twice as many as the one before.
        rpn_width: channels of the proposal head.
        anchor_sizes: square roots of the anchors' areas, in pixels.
        anchor_ratios: height / width of the anchors.
        classes: number of classes without the background.
        attributes: number of attributes without "no attribute".
        candidates: number of best anchors that become candidate proposals.
        proposals: maximum number of proposals.
        proposal_overlap: intersection over union above which the worse of two proposals is suppressed.
        proposal_side: length in pixels that a proposal must exceed in width and height.
        box_weights: divisors of the box head's four deltas.
        overlaps: thresholds of the reference's suppression; the first one that leaves ``least`` regions is used.
        least, most: minimum and maximum number of a photo's regions in the reference.
        short_side, long_side: photos are scaled to this short side in pixels, but to at most this long side.
        pixel_mean, pixel_std: mean and standard deviation of blue, green and red, in this order.
    """

    depth: int = 101
    stem_width: int = 64
    width: int = 64
    res2_width: int = 256
    rpn_width: int = 512
    anchor_sizes: tuple[float, ...] = (64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    classes: int = 1600
    attributes: int = 400
    candidates: int = 6000
    proposals: int = 300
    proposal_overlap: float = 0.7
    proposal_side: float = 0.0
    box_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)
    overlaps: tuple[float, ...] = (0.5, 0.6, 0.7)
    least: int = 36
    most: int = 36
    short_side: int = 800
    long_side: int = 1333
    pixel_mean: tuple[float, ...] = (102.9801, 115.9465, 122.7717)
    pixel_std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def dim(self) -> int:
        """Width of a region's feature vector."""
        return 8 * self.res2_width

    @property
    def anchors(self) -> int:
        """Number of anchors of a cell."""
        return len(self.anchor_sizes) * len(self.anchor_ratios)

    @classmethod
    def from_yaml(cls, path: str | Path) -> DetectorConfig:
        """Read a published ``config.yaml``.

        Raises:
            ModelError: the file cannot be read, lacks a value, or describes another kind of detector.
        """
        import yaml

        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ModelError(f"{path} cannot be read ({str(error).splitlines()[0]})") from error

        def value(name: str, default: Any = None) -> Any:
            node = content
            for key in name.split("."):
                if not isinstance(node, dict) or key not in node:
                    if default is not None:
                        return default
                    raise ModelError(f"{path} has no {name}: give the config.yaml of a bottom-up-attention detector")
                node = node[key]
            return node

        for name, needed in FIXED.items():
            if value(name) != needed:
                raise ModelError(f"{path}: {name} is {value(name)!r}; only {needed!r} is supported")
        if value("resnets.depth") not in DEPTHS:
            raise ModelError(f"{path}: resnets.depth is {value('resnets.depth')!r}; it must be 50, 101 or 152")
        overlaps = value("roi_heads.nms_thresh_test")
        if overlaps == []:
            raise ModelError(f"{path}: roi_heads.nms_thresh_test is empty: give at least one threshold")
        try:
            return cls(
                depth=int(value("resnets.depth")),
                stem_width=int(value("resnets.stem_out_channels")),
                width=int(value("resnets.width_per_group")),
                res2_width=int(value("resnets.res2_out_channels")),
                rpn_width=int(value("proposal_generator.hidden_channels")),
                anchor_sizes=tuple(map(float, value("anchor_generator.sizes")[0])),
                anchor_ratios=tuple(map(float, value("anchor_generator.aspect_ratios")[0])),
                classes=int(value("roi_heads.num_classes")),
                attributes=int(value("roi_box_head.num_attrs")),
                candidates=int(value("rpn.pre_nms_topk_test")),
                proposals=int(value("rpn.post_nms_topk_test")),
                proposal_overlap=float(value("rpn.nms_thresh")),
                proposal_side=float(value("proposal_generator.min_size")),
                box_weights=tuple(map(float, value("roi_box_head.bbox_reg_weights"))),
                overlaps=tuple(map(float, overlaps if isinstance(overlaps, list) else [overlaps])),
                least=int(value("min_detections", cls.least)),  # some copies of the file lack it
                most=int(value("max_detections", cls.most)),
                short_side=int(value("input.min_size_test")),
                long_side=int(value("input.max_size_test")),
                pixel_mean=tuple(map(float, value("model.pixel_mean"))),
                pixel_std=tuple(map(float, value("model.pixel_std"))),
            )
        except (TypeError, ValueError, IndexError) as error:
            raise ModelError(f"{path}: {error}") from error
