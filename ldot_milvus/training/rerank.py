"""Train the cross-attention re-ranker.

A re-ranker with "alignment" scoring scores all pairs of a batch at once, so it is trained with the contrastive loss. A
"joint" one (UNITER) needs a pass of its transformer for every pair, so it is trained to rank the matching pair above
hard negatives.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from ldot_milvus.evaluation.evaluate import pair_scores
from ldot_milvus.evaluation.ranking import RerankedResult, search_both_ways
from ldot_milvus.evaluation.recall import both_ways
from ldot_milvus.models.base import Reranker
from ldot_milvus.models.lightningdot.alignment import WordRegionAlignment
from ldot_milvus.models.lightningdot.bundle import Bundle
from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
from ldot_milvus.models.lightningdot.pretraining import triplet_loss
from ldot_milvus.models.texts import token_ids
from ldot_milvus.training.batches import Batch, by_length, pad, region_tensors
from ldot_milvus.training.contrastive import Scorer
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.dual import Figures, region_batches, vectors
from ldot_milvus.training.recipe import Stage

RERANKED = 20
"""Number of candidates that are re-ranked where scoring all pairs would take too long."""


class RerankScorer(Scorer):
    """Scores by the re-ranker; :meth:`scores` requires "alignment" scoring."""

    def __init__(self, model: CrossAttentionReranker) -> None:
        super().__init__()
        self.model = model

    @override
    def encode_images(
        self, features: Tensor, boxes: Tensor, region_mask: Tensor, label_probabilities: Tensor | None = None
    ) -> Tensor:
        return self.model.embed_regions(features, boxes).float()

    @override
    def scores(self, ids: Tensor, mask: Tensor, images: Tensor, region_mask: Tensor) -> Tensor:
        assert self.model.alignment is not None
        words = self.model.encode_words(ids, mask).float()
        return self.model.alignment.all_pairs(words, mask, images, region_mask)

    @override
    def is_text(self, parameter: str) -> bool:
        return ".bert.encoder." in f".{parameter}" or ".bert.embeddings." in f".{parameter}"

    @override
    def inputs(self) -> list[nn.Linear]:
        assert self.model.bert.img_embeddings is not None
        return [self.model.bert.img_embeddings.img_linear]


class TripletObjective(nn.Module):
    """UNITER's fine-tuning loss: a pair should score above its text with wrong photos and its photo with wrong texts.

    The wrong photos and texts are the pair's hard negatives: a batch consists of groups of a pair and its hard
    negatives (:class:`~.batches.Batches`).
    """

    def __init__(self, scorer: RerankScorer, stage: Stage) -> None:
        super().__init__()
        self.scorer, self._stage = scorer, stage

    def forward(self, batch: Batch) -> Tensor:
        """Compute the mean loss of the pairs of this process."""
        model, group = self.scorer.model, 1 + self._stage.hard_negatives
        words = model.encode_words(batch.ids, batch.mask)
        regions = model.embed_regions(batch.features, batch.boxes)
        members = torch.arange(len(words), device=words.device).view(-1, group)
        first = members[:, :1].expand(-1, group)
        texts = torch.cat([first, members[:, 1:]], dim=1).flatten()
        images = torch.cat([members, first[:, 1:]], dim=1).flatten()
        scores = model.score(words[texts], batch.mask[texts], regions[images], batch.region_mask[images])
        return triplet_loss(scores.float().view(len(members), -1), self._stage.margin).mean()


def evaluate_reranker(bundle: Bundle, photos: CaptionedPhotos) -> Figures:
    """Measure Recall@1/5/10 of both directions, in percent.

    With "alignment" scoring, the re-ranker alone ranks all photos and the first caption of each. With "joint" scoring,
    it re-ranks the first :data:`RERANKED` candidates of the dual encoder.
    """
    model = bundle.reranker
    assert model is not None
    if model.alignment is not None:
        return both_ways(_all_pairs(model, model.alignment, bundle, photos), np.arange(len(photos)))
    return rerank_first(LightningDOTEmbedder(bundle), photos, RERANKED).recall(RERANKED, model.config.dot_weight)


def rerank_first(embedder: LightningDOTEmbedder, photos: CaptionedPhotos, first: int) -> RerankedResult:
    """Search by dot product in both directions, and score the ``first`` candidates with the embedder's re-ranker."""
    reranker = embedder.reranker
    assert reranker is not None
    return rerank_vectors(*vectors(embedder, photos), reranker, photos, first)


def rerank_vectors(
    texts: NDArray[np.float32], images: NDArray[np.float32], reranker: Reranker, photos: CaptionedPhotos, first: int
) -> RerankedResult:
    """Search by dot product in both directions, and score the ``first`` candidates with a re-ranker.

    Args:
        texts: (C, dim), vectors of the captions, in order of photo.
        images: (N, dim), vectors of the photos.
        reranker: reads the photos' regions.
        photos: the photos with their captions.
        first: M, the number of candidates that are re-ranked.
    """
    captions = [caption for captions in photos.captions for caption in captions]
    kept = [record for regions in region_batches(photos) for record in reranker.keep(regions)]
    result = search_both_ways(texts, images, photos.owner, first)
    return result.rerank(pair_scores(reranker, captions, kept))


@torch.inference_mode()
def _all_pairs(
    model: CrossAttentionReranker, alignment: WordRegionAlignment, bundle: Bundle, photos: CaptionedPhotos
) -> NDArray[np.float32]:
    """Score the first caption of every photo with every photo, (N, N)."""
    device = bundle.device
    tokens = token_ids(bundle.tokenizer, [first for first, *_ in photos.captions], model.config.max_text_length)
    ids, mask = (tensor.to(device) for tensor in pad(tokens))
    # Encoded once, not for every batch of images: 28 s instead of 98 with 1,000 photos on two cores.
    texts = [
        (rows, model.encode_words(ids[rows, :length], mask[rows, :length]).float(), mask[rows, :length])
        for rows, length in by_length(mask, groups=max(1, len(ids) // 20))
    ]
    scores = torch.empty(len(photos), len(photos))
    start = 0
    for regions in region_batches(photos):
        features, boxes, region_mask = (tensor.to(device) for tensor in region_tensors(regions))
        images = model.embed_regions(features, boxes).float()
        for rows, words, shown in texts:
            block = alignment.all_pairs(words, shown, images, region_mask)
            scores[rows.cpu(), start : start + len(images)] = block.float().cpu()
        start += len(images)
    return scores.numpy()
