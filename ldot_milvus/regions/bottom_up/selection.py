"""Which of the proposals become regions, and with what confidence: the two published ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldot_milvus.regions.bottom_up.boxes import box_iou, nms
from ldot_milvus.regions.files import CONFIDENT

UNITER_OVERLAP = 0.3


@dataclass(frozen=True)
class Selection:
    """What is kept of a photo's proposals, by descending confidence.

    Attributes:
        kept: (k,) int64, places among the proposals.
        confidence: (k,) float32.
        classes: (k,) int64, the class that this confidence is of.
    """

    kept: Tensor
    confidence: Tensor
    classes: Tensor


def by_best_class(
    boxes: Tensor, scores: Tensor, classes: Tensor, *, overlaps: Sequence[float], least: int, most: int
) -> Selection:
    """The way of the public PyTorch code: one suppression over all proposals, whatever their classes.

    Args:
        boxes: (n, 4), each proposal's box as its best class shifts it.
        scores, classes: (n,), the probability of that class, and which it is.
        overlaps: tried in this order; the first that leaves ``least`` regions is taken. Where none does, the last one's
            regions are all there are (the reference fails there, or returns the photo before).
        most: regions are kept.
    """
    order = scores.sort(descending=True, stable=True).indices
    for threshold in overlaps:
        survivors = nms(boxes[order], threshold, most)
        if len(survivors) >= least:
            break
    kept = order[survivors]
    return Selection(kept, scores[kept], classes[kept])


def by_any_class(boxes: Tensor, probabilities: Tensor, *, least: int, most: int) -> Selection:
    """UNITER's way: a suppression for each class, and the best score with which a proposal survives in any.

    As many regions as are more confident than 0.2, but ``least`` at least (or all there are) and ``most`` at most.

    Args:
        boxes: (n, 4), the proposals as they are.
        probabilities: (n, classes), without the background.
    """
    n, count = probabilities.shape
    scores = probabilities.T
    order = scores.sort(dim=1, descending=True, stable=True).indices
    apart = ~(box_iou(boxes, boxes) > UNITER_OVERLAP)
    every = torch.arange(count, device=boxes.device)
    valid = torch.ones_like(scores, dtype=torch.bool)
    survives = torch.zeros_like(valid)
    for rank in range(n):  # all classes at once: each looks at its own next best proposal
        best = order[:, rank]
        wins = every[valid[every, best]]
        survives[wins, best[wins]] = True
        valid[wins] &= apart[best[wins]]
    confidence, classes = torch.where(survives, scores, 0).max(0)
    classes = torch.where(confidence > 0, classes, probabilities.argmax(1))  # one that survives nowhere has a name too
    confidence, kept = confidence.sort(descending=True, stable=True)
    number = (confidence > CONFIDENT).sum().clamp(least, most)
    kept, confidence = kept[:number], confidence[:number]
    return Selection(kept, confidence, classes[kept])
