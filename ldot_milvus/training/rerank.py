"""Training of the cross-attention re-ranker.

One that scores by "alignment" compares all pairs of a batch at once, so it learns by the contrastive loss. A "joint"
one (UNITER) needs a pass of its transformer for every pair: it learns to put the right pair above hard negatives.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldot_milvus.evaluation.evaluate import pair_scores
from ldot_milvus.evaluation.ranking import RerankedResult, search_both_ways
from ldot_milvus.evaluation.recall import both_ways
from ldot_milvus.models.lightningdot.bundle import Bundle
from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
from ldot_milvus.models.lightningdot.inputs import pad_regions, token_ids
from ldot_milvus.models.lightningdot.pretraining import triplet_loss
from ldot_milvus.training.batches import Batch, by_length, pad
from ldot_milvus.training.contrastive import Scorer
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.dual import Figures, some_at_a_time
from ldot_milvus.training.recipe import Stage

RERANKED = 20
"""So many of the first are re-ranked where comparing everything would take too long."""


class RerankScorer(Scorer):
    """The re-ranker's own scores of all pairs, which only an "alignment" has at once."""

    def __init__(self, model: CrossAttentionReranker) -> None:
        super().__init__()
        self.model = model

    def encode_images(self, features: Tensor, boxes: Tensor, region_mask: Tensor) -> Tensor:
        """Embedded regions (P, R, H)."""
        return self.model.embed_regions(features, boxes).float()

    def scores(self, ids: Tensor, mask: Tensor, images: Tensor, region_mask: Tensor) -> Tensor:
        """Scores (B, P)."""
        assert self.model.alignment is not None
        words = self.model.encode_words(ids, mask).float()
        return self.model.alignment.all_pairs(words, mask, images, region_mask)

    def is_text(self, parameter: str) -> bool:
        """The text encoder's own parameters."""
        return ".bert.encoder." in f".{parameter}" or ".bert.embeddings." in f".{parameter}"


class TripletObjective(nn.Module):
    """UNITER's fine-tuning: the right pair above the text with wrong photos and the photo with wrong texts.

    A batch is groups of a pair and its hard negatives (:class:`~.batches.Batches`); these are the wrong ones.
    """

    def __init__(self, scorer: RerankScorer, stage: Stage) -> None:
        super().__init__()
        self.scorer, self._stage = scorer, stage

    def forward(self, batch: Batch) -> Tensor:
        """Mean loss of the pairs of this process."""
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
    """Recall@1/5/10 of both directions, in percent.

    An "alignment" ranks all photos and one caption of each by itself; a "joint" one re-ranks the first
    :data:`RERANKED` that the dual encoder finds.
    """
    model = bundle.reranker
    assert model is not None
    if model.alignment is not None:
        scores = _all_pairs(bundle, RerankScorer(model), photos)
        return both_ways(scores, np.arange(len(photos)))
    return crossed_first(LightningDOTEmbedder(bundle), photos, RERANKED).recall(RERANKED, model.config.dot_weight)


def crossed_first(embedder: LightningDOTEmbedder, photos: CaptionedPhotos, first: int) -> RerankedResult:
    """What captions and photos find first by dot product, with the re-ranker's scores."""
    captions = [caption for captions in photos.captions for caption in captions]
    reranker = embedder.reranker
    assert reranker is not None
    vectors, kept = [], []
    for regions in some_at_a_time(photos):
        vectors.append(embedder.encode_features(regions))
        kept += reranker.keep(regions)
    found = search_both_ways(embedder.encode_texts(captions), np.concatenate(vectors), photos.owner, first)
    return found.rerank(pair_scores(reranker, captions, kept))


@torch.inference_mode()
def _all_pairs(bundle: Bundle, scorer: RerankScorer, photos: CaptionedPhotos) -> NDArray[np.float32]:
    """Scores (N, N) of the first caption of every photo with every photo."""
    device, limit = bundle.device, scorer.model.config.max_text_length
    tokens = token_ids(bundle.tokenizer, [first for first, *_ in photos.captions], limit)
    ids, mask = (part.to(device) for part in pad(tokens))
    scores = torch.empty(len(photos), len(photos))
    start = 0
    for regions in some_at_a_time(photos):
        features, boxes, region_mask = (part.to(device) for part in pad_regions(regions))
        images = scorer.encode_images(features, boxes, region_mask)
        for rows, length in by_length(mask, groups=max(1, len(ids) // 20)):
            part = scorer.scores(ids[rows, :length], mask[rows, :length], images, region_mask)
            scores[rows.cpu(), start : start + len(images)] = part.float().cpu()
        start += len(images)
    return scores.numpy()
