"""Cross-modal retrieval as a training objective: in-batch softmax over the scores of all pairs of a batch.

LightningDOT's CMR loss (section 3.3), for whatever scores a text with an image: :mod:`.dual` has the dot product,
:mod:`.rerank` the cross-attention. The batch is that of all processes together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldot_milvus.training.batches import Batch, by_length
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.processes import gathered, gathered_sequences
from ldot_milvus.training.recipe import Stage


class Scorer(nn.Module):
    """A model under training, reduced to what the contrastive loss needs of it."""

    model: Any
    """What is trained, as a transformers model."""

    def encode_images(self, features: Tensor, boxes: Tensor, region_mask: Tensor) -> Tensor:
        """What concerns the images alone, (P, ...), from regions as of :class:`~.batches.Batch`."""
        raise NotImplementedError

    def scores(self, ids: Tensor, mask: Tensor, images: Tensor, region_mask: Tensor) -> Tensor:
        """Logits (B, P) of texts (B, T) with what :meth:`encode_images` gave."""
        raise NotImplementedError

    def is_text(self, parameter: str) -> bool:
        """Whether the parameter of that name is of a text encoder that was trained before."""
        raise NotImplementedError


class ContrastiveObjective(nn.Module):
    """The loss of a stage for a scorer.

    Args:
        teacher: a scorer whose ranking of each batch is learned too, from whole captions and undisturbed regions
            (cross-attention into a dual encoder: Miech et al., CVPR 2021). It is no part of what is trained and saved.
    """

    def __init__(self, scorer: Scorer, stage: Stage, teacher: Scorer | None = None) -> None:
        super().__init__()
        self.scorer, self._stage = scorer, stage
        self._teacher = (teacher,)  # out of sight of nn.Module

    def forward(self, batch: Batch) -> Tensor:
        """Mean loss of the pairs of all processes, the same in each."""
        logits = all_scores(self.scorer, batch)
        loss = both_directions(logits, self._target(batch, logits))
        (teacher,) = self._teacher
        if teacher is None:
            return loss
        assert batch.whole is not None
        with torch.no_grad():
            taught = all_scores(teacher, batch.whole)
        imitation = distillation(logits, taught, self._stage.teacher_temperature)
        return (1 - self._stage.distilled) * loss + self._stage.distilled * imitation

    def _target(self, batch: Batch, logits: Tensor) -> Tensor:
        if batch.caption_embeddings is None:
            return torch.eye(len(logits), device=logits.device)
        return soft_targets(gathered(batch.caption_embeddings), self._stage.soft_targets, self._stage.soft_temperature)


def all_scores(scorer: Scorer, batch: Batch) -> Tensor:
    """Logits of all texts with all images of the batches of all processes, with gradients to each."""
    images = scorer.encode_images(batch.features, batch.boxes, batch.region_mask)
    everyone = gathered(images) if images.dim() == 2 else gathered_sequences(images)
    regions = gathered_sequences(batch.region_mask.float()).bool()
    rows, parts = [], []
    # A CPU saves time by padding less, a GPU by doing all at once.
    for indices, length in by_length(batch.mask, groups=4 if batch.ids.device.type == "cpu" else 1):
        rows.append(indices)
        parts.append(
            scorer.scores(batch.ids[indices, :length], batch.mask[indices, :length], everyone, regions).float()
        )
    return gathered(torch.cat(parts)[torch.cat(rows).argsort()])


def soft_targets(caption_embeddings: Tensor, share: float, temperature: float) -> Tensor:
    """(B, B): the own photo, but for a ``share`` that goes to photos whose ``caption_embeddings`` (B, dim) are near."""
    near = (caption_embeddings @ caption_embeddings.T / temperature).softmax(1)
    return (1 - share) * torch.eye(len(caption_embeddings), device=caption_embeddings.device) + share * near


def both_directions(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of the losses text to image and image to text."""
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target.T)) / 2


def distillation(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """How far the rankings of ``logits`` (B, B) are from those of ``taught``, both ways (Hinton et al., 2015)."""
    ways = [(logits / temperature, taught / temperature), (logits.T / temperature, taught.T / temperature)]
    return temperature**2 * sum(cross_entropy(ours, theirs.softmax(1)) for ours, theirs in ways) / 2  # type: ignore[return-value]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of rows of ``logits`` against rows of probabilities (normalised here)."""
    return -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()


def standardised(*photos: CaptionedPhotos) -> list[CaptionedPhotos]:
    """The photos with the channels' scale of the first: it preconditions the optimiser (see :func:`fold_scale`)."""
    scale = photos[0].measured()
    return [replace(some, scale=scale) for some in photos]


@torch.no_grad()
def fold_scale(linear: nn.Linear, photos: CaptionedPhotos) -> None:
    """Make the layer that reads region features, trained on standardised ones, read them as they are."""
    mean, deviation = _scale(photos, linear)
    linear.weight.div_(deviation)
    linear.bias.sub_(linear.weight @ mean)


@torch.no_grad()
def unfold_scale(linear: nn.Linear, photos: CaptionedPhotos) -> None:
    """The reverse of :func:`fold_scale`."""
    mean, deviation = _scale(photos, linear)
    linear.bias.add_(linear.weight @ mean)
    linear.weight.mul_(deviation)


def _scale(photos: CaptionedPhotos, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    assert photos.scale is not None
    mean, deviation = (torch.from_numpy(part).to(linear.weight) for part in photos.scale)
    return mean, deviation
