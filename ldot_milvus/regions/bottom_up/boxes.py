"""Boxes: anchors, their decoding, non-maximum suppression and proposals.

A box is (x1, y1, x2, y2) in pixels of the resized photo; its width is x2 - x1. Everything here is float32, whatever
the network's dtype, and stays on the network's device: no step waits for a value to be copied to the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ldot_milvus.regions.bottom_up.configuration import STRIDE

MOST_GROWTH = math.log(1000 / 16)
"""Upper limit of the logarithm of a box's growth."""


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Return the anchors (A, 4) of the cell at the origin, sizes outermost.

    Args:
        sizes: square roots of the anchors' areas, in pixels.
        ratios: height / width.
    """
    widths = torch.tensor([size / math.sqrt(ratio) for size in sizes for ratio in ratios])
    heights = torch.tensor([size * math.sqrt(ratio) for size in sizes for ratio in ratios])
    return torch.stack([-widths, -heights, widths, heights], dim=1) / 2


def grid_anchors(cells: Tensor, height: int, width: int) -> Tensor:
    """Return the anchors (height * width * A, 4) of a feature map, ordered by row, column and anchor.

    Args:
        cells: (A, 4), the anchors of the cell at the origin. They are not shifted by half a cell.
        height, width: of the feature map, in cells.
    """
    y, x = torch.meshgrid(
        torch.arange(height, device=cells.device) * STRIDE,
        torch.arange(width, device=cells.device) * STRIDE,
        indexing="ij",
    )
    return (torch.stack([x, y, x, y], dim=-1)[:, :, None] + cells).flatten(0, 2)


def decode_boxes(boxes: Tensor, deltas: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Shift and scale boxes.

    Args:
        boxes: (n, 4).
        deltas: (n, 4): shifts in x and y as fractions of the box's size, and logarithms of the growth in width and
            height.
        weights: divisors of the four deltas.

    Returns:
        (n, 4).
    """
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.unbind(1), weights, strict=True))
    x1, y1, x2, y2 = boxes.unbind(1)
    width, height = x2 - x1, y2 - y1
    x, y = x1 + 0.5 * width + dx * width, y1 + 0.5 * height + dy * height
    width, height = dw.clamp(max=MOST_GROWTH).exp() * width, dh.clamp(max=MOST_GROWTH).exp() * height
    return torch.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], dim=1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip boxes (n, 4) to the resized photo; ``size`` is its height and width in pixels."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=1)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union (n, m) of ``boxes`` (n, 4) and ``others`` (m, 4)."""
    corner = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    opposite = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (opposite - corner).clamp(min=0).prod(2)
    return shared / (_area(boxes)[:, None] + _area(others)[None] - shared)


def nms(boxes: Tensor, threshold: float, most: int, valid: Tensor | None = None) -> Tensor:
    """Non-maximum suppression: of two boxes that overlap by more than ``threshold``, the better one survives.

    Args:
        boxes: (n, 4), best first.
        threshold: intersection over union.
        most: maximum number of boxes returned.
        valid: (n,) bool, False = ignore the box; None uses all boxes.

    Returns:
        int64 indices of the surviving boxes, best first.
    """
    n = len(boxes)
    valid = torch.ones(n, dtype=torch.bool, device=boxes.device) if valid is None else valid.clone()
    steps = min(most, n)
    indices = torch.zeros(steps, dtype=torch.long, device=boxes.device)
    survives = torch.zeros(steps, dtype=torch.bool, device=boxes.device)
    for step in range(steps):
        best = valid.byte().argmax(0, keepdim=True)  # the first valid box, or 0 if none is valid
        indices[step : step + 1], survives[step : step + 1] = best, valid[best]
        # Not "> threshold": the overlap of a box without area is NaN, also with itself.
        valid &= box_iou(boxes[best], boxes)[0] <= threshold
    return indices[survives]


def propose(
    logits: Tensor, deltas: Tensor, cells: Tensor, size: tuple[int, int], *,
    candidates: int, most: int, threshold: float, least_side: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the proposals, boxes that may contain an object.

    Args:
        logits: (A, h, w), objectness of each anchor.
        deltas: (4 * A, h, w), see :func:`decode_boxes`.
        cells: (A, 4), the anchors of the cell at the origin.
        size: height and width of the resized photo, in pixels.
        candidates: number of best anchors that are considered.
        most: maximum number of proposals.
        threshold: intersection over union above which only the better proposal is kept.
        least_side: length in pixels that a proposal must exceed in width and height.

    Returns:
        Boxes (n, 4) and their logits (n,), best first. If no anchor qualifies, the only box is the whole photo.
    """
    anchors, height, width = logits.shape
    scores, order = logits.permute(1, 2, 0).flatten().sort(descending=True, stable=True)
    scores, order = scores[:candidates], order[:candidates]
    rows = deltas.view(anchors, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
    boxes = clip_boxes(decode_boxes(grid_anchors(cells, height, width)[order], rows[order]), size)
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = nms(boxes, threshold, most, valid=(sides > least_side).all(1))
    if not len(kept):
        photo = torch.tensor([[0, 0, size[1], size[0]]], dtype=boxes.dtype, device=boxes.device)
        return photo, scores[:1]
    return boxes[kept], scores[kept]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
