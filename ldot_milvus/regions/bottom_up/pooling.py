"""RoIPool (Girshick, Fast R-CNN, 2015): the part of a feature map under a box as a fixed number of bins.

Edges are rounded to whole cells and each bin is the maximum of its cells, as the weights were trained with. RoIAlign,
which interpolates instead, gives other features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldot_milvus.regions.bottom_up.configuration import STRIDE

BINS = 14


def round_half_up(values: Tensor) -> Tensor:
    """As C rounds what is not negative; ``torch.round`` would round a half to the even neighbour."""
    whole = values.floor()
    return whole + (values - whole >= 0.5)


def bin_edges(first: Tensor, last: Tensor, length: int, step: int = 1) -> tuple[Tensor, Tensor]:
    """Where the bins of each box begin and end, in cells of one direction of a map of ``length`` cells.

    Args:
        first, last: (n,) edges of the boxes, in pixels.
        step: 2 gives every second bin.

    Returns:
        Two int64 (n, bins): first cell, and the one after the last. A bin is empty where they are equal.
    """
    start, end = round_half_up(first / STRIDE), round_half_up(last / STRIDE)
    size = (end - start + 1).clamp(min=1) / BINS  # in float32 and in this order, like the published kernel
    bins = torch.arange(0, BINS, step, device=first.device)
    low = start[:, None] + (bins * size[:, None]).floor()
    high = start[:, None] + ((bins + 1) * size[:, None]).ceil()
    return low.clamp(0, length).long(), high.clamp(0, length).long()


class MaximumTable:
    """Maxima of all windows of 1, 2, 4, ... cells of a feature map, so that any bin is the maximum of four of them.

    Args:
        features: (C, h, w).
        step: 2 pools every second bin in each direction, a quarter of the work.
    """

    def __init__(self, features: Tensor, step: int = 1) -> None:
        channels, self.height, self.width = features.shape
        self.step = step
        # A bin's height is at most that of a fourteenth of the whole map, and one cell on either side.
        self.levels = math.ceil((max(self.height, self.width) + 1) / BINS + 1).bit_length()
        rows = self.levels**2 * self.height * self.width
        self._rows = features.new_empty(rows + 1, channels)
        self._rows[-1] = 0  # for bins that are empty
        maxima = self._rows[:-1].view(self.levels, self.levels, self.height, self.width, channels)
        maxima[0, 0] = features.permute(1, 2, 0)
        for level in range(1, self.levels):
            _double(maxima[level, 0], maxima[level - 1, 0], 1 << (level - 1), direction=0)
        for level in range(1, self.levels):
            _double(maxima[:, level], maxima[:, level - 1], 1 << (level - 1), direction=2)

    def pool(self, boxes: Tensor) -> Tensor:
        """Boxes (n, 4) in pixels to (n, C, bins, bins), the channels innermost in memory."""
        left, right = bin_edges(boxes[:, 0], boxes[:, 2], self.width, self.step)
        top, bottom = bin_edges(boxes[:, 1], boxes[:, 3], self.height, self.step)
        (top, bottom, ky), (left, right, kx) = _windows(top, bottom), _windows(left, right)
        level = ky[:, :, None] * self.levels + kx[:, None, :]
        empty = (ky < 0)[:, :, None] | (kx < 0)[:, None, :]
        pooled: Tensor | None = None
        for y in (top, bottom):
            for x in (left, right):
                rows = (level * self.height + y[:, :, None]) * self.width + x[:, None, :]
                found = self._rows.index_select(0, rows.masked_fill(empty, len(self._rows) - 1).flatten())
                pooled = found if pooled is None else torch.maximum(pooled, found, out=pooled)
        assert pooled is not None
        return pooled.unflatten(0, empty.shape).permute(0, 3, 1, 2)


def _double(target: Tensor, source: Tensor, length: int, direction: int) -> None:
    """Maxima of windows of ``length`` cells to those of twice as many; what would leave the map is never asked for."""
    target.copy_(source)
    inside = source.shape[direction] - length
    if inside > 0:
        first, second = source.narrow(direction, 0, inside), source.narrow(direction, length, inside)
        torch.maximum(first, second, out=target.narrow(direction, 0, inside))


def _windows(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two windows of a power of two that cover each bin: where they begin, and the power (-1: an empty bin)."""
    powers = torch.arange(32, device=low.device)
    power = ((high - low)[..., None] >= (1 << powers)).sum(-1) - 1
    return low, high - (1 << power.clamp(min=0)), power
