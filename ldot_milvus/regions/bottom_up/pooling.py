"""RoIPool (Girshick, Fast R-CNN, ICCV 2015): pool the section of a feature map inside a box to a fixed number of bins.

Edges are rounded to whole cells and each bin is the maximum of its cells, as in the training of the weights. RoIAlign,
which interpolates instead, produces other features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldot_milvus.regions.bottom_up.configuration import STRIDE

BINS = 14


def round_half_up(values: Tensor) -> Tensor:
    """Round non-negative values as C does; ``torch.round`` would round a half to the even neighbour."""
    floor = values.floor()
    return floor + (values - floor >= 0.5)


def bin_edges(first: Tensor, last: Tensor, length: int, step: int = 1) -> tuple[Tensor, Tensor]:
    """Compute where the bins of each box start and end along one axis of the feature map.

    Args:
        first, last: (n,) edges of the boxes, in pixels.
        length: of the feature map along this axis, in cells.
        step: 2 returns every second bin.

    Returns:
        Two int64 tensors (n, bins): the first cell of each bin, and the cell after its last. They are equal for an
        empty bin.
    """
    start, end = round_half_up(first / STRIDE), round_half_up(last / STRIDE)
    size = (end - start + 1).clamp(min=1) / BINS  # in float32 and in this order, as in the published kernel
    bins = torch.arange(0, BINS, step, device=first.device)
    low = start[:, None] + (bins * size[:, None]).floor()
    high = start[:, None] + ((bins + 1) * size[:, None]).ceil()
    return low.clamp(0, length).long(), high.clamp(0, length).long()


class MaximumTable:
    """Maxima of all windows of 1, 2, 4, ... cells of a feature map. The maximum of any bin is that of four of them.

    Args:
        features: (C, h, w).
        step: 2 pools every second bin along each axis, a quarter of the work.
    """

    def __init__(self, features: Tensor, step: int = 1) -> None:
        channels, self.height, self.width = features.shape
        self.step = step
        # A bin's height is at most a fourteenth of the map's, plus one cell on either side.
        self.levels = math.ceil((max(self.height, self.width) + 1) / BINS + 1).bit_length()
        rows = self.levels**2 * self.height * self.width
        self._rows = features.new_empty(rows + 1, channels)
        self._rows[-1] = 0  # for empty bins
        maxima = self._rows[:-1].view(self.levels, self.levels, self.height, self.width, channels)
        maxima[0, 0] = features.permute(1, 2, 0)
        for level in range(1, self.levels):
            _double(maxima[level, 0], maxima[level - 1, 0], 1 << (level - 1), direction=0)
        for level in range(1, self.levels):
            _double(maxima[:, level], maxima[:, level - 1], 1 << (level - 1), direction=2)

    def pool(self, boxes: Tensor) -> Tensor:
        """Pool the regions inside ``boxes`` (n, 4), in pixels, to (n, C, bins, bins) with channels last in memory."""
        left, right = bin_edges(boxes[:, 0], boxes[:, 2], self.width, self.step)
        top, bottom = bin_edges(boxes[:, 1], boxes[:, 3], self.height, self.step)
        (top, bottom, ky), (left, right, kx) = _windows(top, bottom), _windows(left, right)
        level = ky[:, :, None] * self.levels + kx[:, None, :]
        empty = (ky < 0)[:, :, None] | (kx < 0)[:, None, :]
        pooled: Tensor | None = None
        for y in (top, bottom):
            for x in (left, right):
                rows = (level * self.height + y[:, :, None]) * self.width + x[:, None, :]
                maxima = self._rows.index_select(0, rows.masked_fill(empty, len(self._rows) - 1).flatten())
                pooled = maxima if pooled is None else torch.maximum(pooled, maxima, out=pooled)
        assert pooled is not None
        return pooled.unflatten(0, empty.shape).permute(0, 3, 1, 2)


def _double(target: Tensor, source: Tensor, length: int, direction: int) -> None:
    """Compute maxima of windows of twice ``length`` cells from those of ``length``; windows stay inside the map."""
    target.copy_(source)
    inside = source.shape[direction] - length
    if inside > 0:
        first, second = source.narrow(direction, 0, inside), source.narrow(direction, length, inside)
        torch.maximum(first, second, out=target.narrow(direction, 0, inside))


def _windows(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the start cells of the two windows that cover each bin, and the log2 of their length (-1: empty bin)."""
    powers = torch.arange(32, device=low.device)
    power = ((high - low)[..., None] >= (1 << powers)).sum(-1) - 1
    return low, high - (1 << power.clamp(min=0)), power
