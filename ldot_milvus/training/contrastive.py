"""Cross-modal retrieval as a training objective: in-batch softmax over the scores of all pairs of a batch.

This is LightningDOT's CMR loss (section 3.3) for any scorer of a text with an image: dot product (:mod:`.dual`) or
cross-attention (:mod:`.rerank`). The batch is the joint batch of all processes.
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
    """Interface of a model in training, as the contrastive loss uses it.

    Attributes:
        model: the transformers model that is trained.
    """

    model: Any

    def encode_images(
        self, features: Tensor, boxes: Tensor, region_mask: Tensor, label_probabilities: Tensor | None = None
    ) -> Tensor:
        """Encode P images alone as (P, ...), from the regions of a :class:`~.batches.Batch`."""
        raise NotImplementedError

    def scores(self, ids: Tensor, mask: Tensor, images: Tensor, region_mask: Tensor) -> Tensor:
        """Score texts with images.

        Args:
            ids, mask: (B, T).
            images: the output of :meth:`encode_images` for P images.
            region_mask: (P, R).

        Returns:
            Logits (B, P).
        """
        raise NotImplementedError

    def is_text(self, parameter: str) -> bool:
        """Return True if the parameter of that name belongs to the pre-trained text encoder."""
        raise NotImplementedError

    def inputs(self) -> list[nn.Linear]:
        """Return the layers that read the features of regions, or the first stage's tokens."""
        raise NotImplementedError


class ContrastiveObjective(nn.Module):
    """The contrastive loss of a stage.

    Args:
        scorer: the model in training.
        stage: soft targets and distillation.
        teacher: a scorer whose ranking of each batch is distilled, computed from captions and regions without dropout
            (cross-attention to dual encoder: Miech et al., CVPR 2021). It is neither trained nor saved.
    """

    def __init__(self, scorer: Scorer, stage: Stage, teacher: Scorer | None = None) -> None:
        super().__init__()
        self.scorer, self._stage = scorer, stage
        self._teacher = (teacher,)  # a tuple hides it from nn.Module

    def forward(self, batch: Batch) -> Tensor:
        """Compute the mean loss of the pairs of all processes, which is the same in each process.

        In the direction from an image to texts, the n captions of an image share the target.
        """
        logits = all_scores(self.scorer, batch)
        captions_per_photo = len(logits) // logits.shape[1]
        loss = both_directions(logits, self._target(batch, logits).repeat_interleave(captions_per_photo, 0))
        (teacher,) = self._teacher
        if teacher is None:
            return loss
        assert batch.complete is not None
        with torch.no_grad():
            teacher_logits = all_scores(teacher, batch.complete)
        distilled = distillation(logits, teacher_logits, self._stage.teacher_temperature)
        return (1 - self._stage.distilled) * loss + self._stage.distilled * distilled

    def _target(self, batch: Batch, logits: Tensor) -> Tensor:
        """Return the target (B, B) of one caption of each photo."""
        if batch.caption_embeddings is None:
            return torch.eye(logits.shape[1], device=logits.device)
        return soft_targets(gathered(batch.caption_embeddings), self._stage.soft_targets, self._stage.soft_temperature)


def all_scores(scorer: Scorer, batch: Batch) -> Tensor:
    """Compute the logits (B n, B) of all texts with all images of the joint batch, with gradients to every process."""
    images = scorer.encode_images(batch.features, batch.boxes, batch.region_mask, batch.label_probabilities)
    all_images = gathered(images) if images.dim() == 2 else gathered_sequences(images)
    regions = gathered_sequences(batch.region_mask.float()).bool()
    rows, scores = [], []
    # A CPU is faster with less padding, a GPU with a single group.
    for indices, length in by_length(batch.mask, groups=4 if batch.ids.device.type == "cpu" else 1):
        rows.append(indices)
        scores.append(
            scorer.scores(batch.ids[indices, :length], batch.mask[indices, :length], all_images, regions).float()
        )
    return gathered(torch.cat(scores)[torch.cat(rows).argsort()])


def soft_targets(caption_embeddings: Tensor, share: float, temperature: float) -> Tensor:
    """Compute target probabilities that include photos with captions of similar meaning.

    Args:
        caption_embeddings: (B, dim), of each photo.
        share: of the target that is distributed by similarity; the rest belongs to the text's own photo.
        temperature: of the softmax over similarities.

    Returns:
        (B, B).
    """
    similarity = (caption_embeddings @ caption_embeddings.T / temperature).softmax(1)
    return (1 - share) * torch.eye(len(caption_embeddings), device=caption_embeddings.device) + share * similarity


def both_directions(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the mean of the losses text to image and image to text."""
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target.T)) / 2


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Compute the distillation loss of both directions (Hinton et al., 2015); logits are (B n, B)."""
    student, teacher = logits / temperature, teacher_logits / temperature
    losses = cross_entropy(student, teacher.softmax(1)) + cross_entropy(student.T, teacher.T.softmax(1))
    return temperature**2 * losses / 2


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the mean cross-entropy of rows of ``logits`` with rows of probabilities, which are normalised here."""
    return -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()


def standardised(*data: CaptionedPhotos) -> list[CaptionedPhotos]:
    """Set the scale of all data to the channels' scale of the first; this conditions the optimiser's problem.

    :func:`fold_scale` removes the scale from the trained model.
    """
    scale = data[0].measured()
    return [replace(photos, scale=scale) for photos in data]


@torch.no_grad()
def fold_scale(linear: nn.Linear, photos: CaptionedPhotos) -> None:
    """Convert the layer that reads region features from standardised features to the original ones, in place."""
    mean, deviation = _scale(photos, linear)
    linear.weight.div_(deviation)
    linear.bias.sub_(linear.weight @ mean)


@torch.no_grad()
def unfold_scale(linear: nn.Linear, photos: CaptionedPhotos) -> None:
    """Invert :func:`fold_scale`."""
    mean, deviation = _scale(photos, linear)
    linear.bias.add_(linear.weight @ mean)
    linear.weight.mul_(deviation)


def _scale(photos: CaptionedPhotos, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    assert photos.scale is not None
    read = linear.in_features  # all of a region's features, or the first ones
    mean, deviation = (torch.from_numpy(values[:read]).to(linear.weight) for values in photos.scale)
    return mean, deviation
