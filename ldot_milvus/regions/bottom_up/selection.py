"""Select the proposals that become regions, by one of the two published rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldot_milvus.regions.bottom_up.boxes import box_iou, nms
from ldot_milvus.regions.files import CONFIDENT

UNITER_OVERLAP = 0.3
"""Intersection over union above which the worse of two proposals is suppressed."""


@dataclass(frozen=True)
class Selection:
    """The selected proposals of a photo, by descending confidence.

    Attributes:
        kept: (k,) int64, indices of the proposals.
        confidence: (k,) float32, the probability of the class.
        classes: (k,) int64, the class.
    """

    kept: Tensor
    confidence: Tensor
    classes: Tensor


def by_best_class(
    boxes: Tensor, scores: Tensor, classes: Tensor, *, overlaps: Sequence[float], least: int, most: int
) -> Selection:
    """Select regions as the public PyTorch code does: one suppression over all proposals, regardless of class.

    Args:
        boxes: (n, 4), each proposal's box, shifted for its best class.
        scores: (n,), the probability of that class.
        classes: (n,), that class.
        overlaps: thresholds of suppression in the order in which they are tried; the first one that leaves ``least``
            regions is used, or else the last one (there the reference fails or returns the previous photo's regions).
        least: minimum number of regions, if there are enough proposals.
        most: maximum number of regions.
    """
    order = scores.sort(descending=True, stable=True).indices
    for threshold in overlaps:
        survivors = nms(boxes[order], threshold, most)
        if len(survivors) >= least:
            break
    kept = order[survivors]
    return Selection(kept, scores[kept], classes[kept])


def by_any_class(boxes: Tensor, probabilities: Tensor, *, least: int, most: int) -> Selection:
    """Select regions as UNITER does: suppress for each class, and score a proposal by the best class it survives in.

    The number of regions is that of the proposals with a confidence above 0.2, but at least ``least`` (or all
    proposals, if there are fewer) and at most ``most``.

    Args:
        boxes: (n, 4), the proposals' unshifted boxes.
        probabilities: (n, classes), without the background.
        least, most: minimum and maximum number of regions.
    """
    n, count = probabilities.shape
    scores = probabilities.T
    order = scores.sort(dim=1, descending=True, stable=True).indices
    compatible = ~(box_iou(boxes, boxes) > UNITER_OVERLAP)
    all_classes = torch.arange(count, device=boxes.device)
    valid = torch.ones_like(scores, dtype=torch.bool)
    survives = torch.zeros_like(valid)
    for rank in range(n):  # all classes at once: each considers its own next best proposal
        best = order[:, rank]
        wins = all_classes[valid[all_classes, best]]
        survives[wins, best[wins]] = True
        valid[wins] &= compatible[best[wins]]
    confidence, classes = torch.where(survives, scores, 0).max(0)
    # A proposal that survives in no class gets its most probable one.
    classes = torch.where(confidence > 0, classes, probabilities.argmax(1))
    confidence, kept = confidence.sort(descending=True, stable=True)
    number = (confidence > CONFIDENT).sum().clamp(least, most)
    kept, confidence = kept[:number], confidence[:number]
    return Selection(kept, confidence, classes[kept])
