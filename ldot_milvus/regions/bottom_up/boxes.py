"""Boxes: anchors, how the network shifts them, and which of those that overlap survive.

A box is (x1, y1, x2, y2) in pixels of the resized photo; its width is x2 - x1. Everything here is float32, whatever
the network computes in, and stays on the network's device: no step waits for a value to reach the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ldot_milvus.regions.bottom_up.configuration import STRIDE

MOST_GROWTH = math.log(1000 / 16)
"""Clamp of the logarithm by which a box may grow."""


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """The anchors (A, 4) of the cell at the origin, sizes outermost; ratio is height / width."""
    widths = torch.tensor([size / math.sqrt(ratio) for size in sizes for ratio in ratios])
    heights = torch.tensor([size * math.sqrt(ratio) for size in sizes for ratio in ratios])
    return torch.stack([-widths, -heights, widths, heights], dim=1) / 2


def grid_anchors(cells: Tensor, height: int, width: int) -> Tensor:
    """Anchors (height * width * A, 4) of a whole feature map: row, column, then anchor; no shift by half a cell."""
    y, x = torch.meshgrid(
        torch.arange(height, device=cells.device) * STRIDE,
        torch.arange(width, device=cells.device) * STRIDE,
        indexing="ij",
    )
    return (torch.stack([x, y, x, y], dim=-1)[:, :, None] + cells).flatten(0, 2)


def decode_boxes(boxes: Tensor, deltas: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Boxes (n, 4) moved and stretched by ``deltas`` (n, 4): dx, dy, and the logarithms of the growth."""
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.unbind(1), weights, strict=True))
    x1, y1, x2, y2 = boxes.unbind(1)
    width, height = x2 - x1, y2 - y1
    x, y = x1 + 0.5 * width + dx * width, y1 + 0.5 * height + dy * height
    width, height = dw.clamp(max=MOST_GROWTH).exp() * width, dh.clamp(max=MOST_GROWTH).exp() * height
    return torch.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], dim=1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes cut at the edges of the resized photo; ``size`` is its height and width."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=1)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union (n, m)."""
    corner = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    opposite = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (opposite - corner).clamp(min=0).prod(2)
    return shared / (_area(boxes)[:, None] + _area(others)[None] - shared)


def nms(boxes: Tensor, threshold: float, most: int, valid: Tensor | None = None) -> Tensor:
    """Which boxes survive where two overlap by more than ``threshold``: the better one does.

    Args:
        boxes: (n, 4), best first.
        most: stop when so many have survived.
        valid: (n,) bool; others are as if they were not there.

    Returns:
        Their places in ``boxes``, best first.
    """
    n = len(boxes)
    valid = torch.ones(n, dtype=torch.bool, device=boxes.device) if valid is None else valid.clone()
    steps = min(most, n)
    chosen = torch.zeros(steps, dtype=torch.long, device=boxes.device)
    found = torch.zeros(steps, dtype=torch.bool, device=boxes.device)
    for step in range(steps):
        best = valid.byte().argmax(0, keepdim=True)  # the first that is valid, or 0 where none is
        chosen[step : step + 1], found[step : step + 1] = best, valid[best]
        # Not > threshold: a box without area overlaps with nothing, itself included, by a number.
        valid &= box_iou(boxes[best], boxes)[0] <= threshold
    return chosen[found]


def propose(
    logits: Tensor, deltas: Tensor, cells: Tensor, size: tuple[int, int], *,
    candidates: int, most: int, threshold: float, least_side: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The boxes in which there may be something.

    Args:
        logits: (A, h, w), how much each anchor looks like an object.
        deltas: (4 * A, h, w), what is to be done to it.
        cells: (A, 4), anchors of a cell.
        size: height and width of the resized photo.
        candidates: best anchors that are looked at.
        most: boxes that are returned at most.
        threshold: overlap above which only the better box is kept.
        least_side: pixels that a box must exceed in width and height.

    Returns:
        Boxes (n, 4) and their logits (n,), best first. n may be less than ``most``; where it would be 0, the one box
        is the whole photo.
    """
    anchors, height, width = logits.shape
    scores, order = logits.permute(1, 2, 0).flatten().sort(descending=True, stable=True)
    scores, order = scores[:candidates], order[:candidates]
    moves = deltas.view(anchors, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
    boxes = clip_boxes(decode_boxes(grid_anchors(cells, height, width)[order], moves[order]), size)
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = nms(boxes, threshold, most, valid=(sides > least_side).all(1))
    if not len(kept):
        whole = torch.tensor([[0, 0, size[1], size[0]]], dtype=boxes.dtype, device=boxes.device)
        return whole, scores[:1]
    return boxes[kept], scores[kept]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
