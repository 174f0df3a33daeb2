"""Train an EDJE re-ranker: image-text matching with hard negatives, and distillation (EDJE, ICLR 2026, section 3.3).

The joint encoder needs a pass for every pair, so a batch of B right pairs is trained with 2 B wrong ones: each text
with the wrong photo that the first stage finds nearest in the batch, and each photo with the nearest wrong text.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from typing_extensions import override

from ldot_milvus.errors import UsageError
from ldot_milvus.models.edje.adapters import TokenCompression
from ldot_milvus.models.edje.joint_encoder import EdjeReranker
from ldot_milvus.training.batches import Batch
from ldot_milvus.training.contrastive import Scorer
from ldot_milvus.training.recipe import Stage
from ldot_milvus.training.rerank import RerankScorer


class PairScorer(Protocol):
    """Scores chosen pairs of a batch, as a student or as its teacher."""

    def pairs(self, batch: Batch, texts: Tensor, photos: Tensor) -> Tensor:
        """Return logits (P,) of text ``texts[i]`` with photo ``photos[i]`` of the batch."""
        ...


class EdjeScorer(Scorer):
    """Scores by an EDJE re-ranker, over the first stage's tokens (the "regions" of a batch)."""

    def __init__(self, model: EdjeReranker) -> None:
        super().__init__()
        self.model = model

    def pairs(self, batch: Batch, texts: Tensor, photos: Tensor) -> Tensor:
        """See :class:`PairScorer`. The adapter runs once for each photo."""
        images, mask = self.model.adapt(batch.features, batch.region_mask, batch.boxes)
        logits: Tensor = self.model.score(batch.ids, batch.mask, images[photos], mask[photos], texts)
        return logits.float()

    @override
    def encode_images(
        self, features: Tensor, boxes: Tensor, region_mask: Tensor, label_probabilities: Tensor | None = None
    ) -> Tensor:
        images: Tensor = self.model.adapt(features, region_mask, boxes)[0]
        return images.float()

    @override
    def scores(self, ids: Tensor, mask: Tensor, images: Tensor, region_mask: Tensor) -> Tensor:
        """Score all pairs by the alignment alone; the joint layers would need a pass for each."""
        assert self.model.alignment is not None
        words = self.model.encode_words(ids, mask).float()
        return self.model.alignment.all_pairs(words, mask, images, images.new_ones(images.shape[:2]))

    @override
    def is_text(self, parameter: str) -> bool:
        name = f".{parameter}"
        if ".bert.encoder.layer." in name and self.model.config.text_layers:
            return int(name.split(".layer.")[1].split(".")[0]) < self.model.config.text_layers
        return ".bert.encoder." in name or ".bert.embeddings." in name

    def align_alone(self) -> None:
        """Train the adapter and the alignment, and leave all that the start took over, and the joint layers."""
        self.model.requires_grad_(False)
        for module in (self.model.adapter, self.model.alignment):
            module.requires_grad_(True)

    @torch.no_grad()
    def set_zero(self, batch: Batch) -> None:
        """Move the zero of the logits half-way between right and wrong pairs, where the head has learned nothing yet.

        The alignment ranks but has no zero, and the bias would take many steps to find one.
        """
        assert batch.similarities is not None
        if self.model.alignment is None or bool(self.model.classifier.weight.any()):
            return
        logits = self.eval().pairs(batch, *matched_and_nearest(batch.similarities))
        self.model.classifier.bias.sub_(middle(logits, len(batch.ids)))

    @override
    def inputs(self) -> list[nn.Linear]:
        if self.model.bert.img_embeddings is not None:
            return [self.model.bert.img_embeddings.img_linear]
        adapter = self.model.adapter
        return [adapter.key, adapter.value] if isinstance(adapter, TokenCompression) else [adapter.mlp.fc1]


class AlignmentTeacher(RerankScorer):
    """Scores by an alignment re-ranker, such as ldot-mini's.

    Its scores rank, but have no zero: it was trained to rank the photos of a batch by a softmax. Their zero is taken
    half-way between the mean right pair and the mean wrong pair of the batch, which are the first B and the other 2 B.
    """

    def pairs(self, batch: Batch, texts: Tensor, photos: Tensor) -> Tensor:
        """See :class:`PairScorer`."""
        words = self.model.encode_words(batch.ids, batch.mask)
        regions = self.model.embed_regions(batch.features, batch.boxes)
        scores = self.model.score(words[texts], batch.mask[texts], regions[photos], batch.region_mask[photos]).float()
        return scores - middle(scores, len(words))


Teacher = EdjeScorer | AlignmentTeacher


class MatchingObjective(nn.Module):
    """The loss of a stage: matching, and distillation from a teacher.

    Args:
        scorer: the model in training.
        stage: the share of distillation.
        teacher: reads captions and tokens without dropout. It is neither trained nor saved.
    """

    def __init__(self, scorer: EdjeScorer, stage: Stage, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.scorer, self._stage = scorer, stage
        self._teacher = (teacher,)  # a tuple hides it from nn.Module

    def forward(self, batch: Batch) -> Tensor:
        """Compute the mean loss of the pairs of this process."""
        assert batch.similarities is not None
        texts, photos = matched_and_nearest(batch.similarities)
        logits = self.scorer.pairs(batch, texts, photos)
        labels = (texts == photos).to(logits.dtype)
        loss = binary_cross_entropy_with_logits(logits, labels)
        (teacher,) = self._teacher
        if teacher is None:
            return loss
        assert batch.complete is not None
        with torch.no_grad():
            probabilities = teacher.pairs(batch.complete, texts, photos).sigmoid()
        distilled = binary_cross_entropy_with_logits(logits, probabilities)
        return (1 - self._stage.distilled) * loss + self._stage.distilled * distilled


def middle(scores: Tensor, count: int) -> Tensor:
    """Return the value half-way between the mean right pair, of which there are ``count``, and the mean wrong one."""
    return (scores[:count].mean() + scores[count:].mean()) / 2


def matched_and_nearest(similarities: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the pairs of a batch.

    Args:
        similarities: (B, B), the first stage's score of text i with photo j; the pairs (i, i) are right.

    Returns:
        Indices of texts and photos, (3 B,) each: the right pairs, each text with its nearest wrong photo, each photo
        with its nearest wrong text.
    """
    own = torch.arange(len(similarities), device=similarities.device)
    wrong = similarities.clone().fill_diagonal_(-torch.inf)
    return torch.cat([own, own, wrong.argmax(0)]), torch.cat([own, wrong.argmax(1), own])


def check_vocabulary(teacher: str, its: dict[str, int], ours: dict[str, int]) -> None:
    """Refuse a teacher that reads other token ids than the model in training.

    Raises:
        UsageError: the vocabularies differ.
    """
    if its != ours:
        raise UsageError(
            f"teacher {teacher!r} has another vocabulary than the re-ranker in training: name a teacher that was "
            "trained from the same text encoder"
        )
