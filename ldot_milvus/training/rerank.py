"""Training of the cross-attention re-ranker by the contrastive loss over its own scores of all pairs of a batch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..evaluation.recall import both_ways
from ..model import CrossAttentionReranker
from ..regions.grid import grid_boxes
from .batches import by_length, fast_precision, tokenize
from .contrastive import ContrastiveRecipe, Figures, Scorer, fold_scale, freeze_text, standardised, train_contrastive
from .data import CachedPhotos


class RerankScorer(Scorer):
    """The re-ranker's own scores; its ``scoring`` has to be "alignment", where all pairs at once are cheap."""

    def __init__(self, model: CrossAttentionReranker) -> None:
        super().__init__()
        self.model = model

    def encode_images(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Embedded regions (P, R, H)."""
        return self.model.embed_regions(features, boxes).float()

    def scores(self, ids: Tensor, mask: Tensor, images: Tensor) -> Tensor:
        """Scores (B, P)."""
        assert self.model.alignment is not None
        words = self.model.encode_words(ids, mask).float()
        everything = torch.ones(images.shape[:2], dtype=torch.bool)
        return self.model.alignment.all_pairs(words, mask, images, everything)

    def is_text(self, parameter: str) -> bool:
        """The text encoder's own parameters."""
        return parameter.startswith(("model.bert.encoder", "model.bert.embeddings"))


def train_reranker(
    model: CrossAttentionReranker,
    tokenizer: PreTrainedTokenizerBase,
    meanings: Tensor,
    train: CachedPhotos,
    dev: CachedPhotos,
    recipe: ContrastiveRecipe,
    log_file: Path | None = None,
) -> CrossAttentionReranker:
    """Train ``model`` and return its averaged weights of the best epoch (mean of six recalls on ``dev``)."""
    train, dev = standardised(train, dev)
    model.set_attn_implementation("eager")  # half the time of the fused kernel's backward pass on a CPU
    freeze_text(model.bert, recipe)
    tokens = tokenize(tokenizer, train.captions, recipe.text_tokens)
    dev_tokens = tokenize(tokenizer, [captions[:1] for captions in dev.captions], 60)
    best = train_contrastive(
        RerankScorer(model), tokens, meanings, train,
        lambda scorer: _evaluate(scorer, dev, dev_tokens), recipe, log_file,
    ).model  # fmt: skip
    assert best.bert.img_embeddings is not None
    fold_scale(best.bert.img_embeddings.img_linear, train)
    best.set_attn_implementation("sdpa")
    return best


@torch.inference_mode()
def _evaluate(scorer: RerankScorer, dev: CachedPhotos, tokens: list[list[list[int]]]) -> Figures:
    """Recall both ways among all photos and one caption of each, by the re-ranker alone."""
    captions = [first for (first,) in tokens]
    images = embedded_regions(scorer.model, dev)
    scores = torch.empty(len(captions), len(images))
    for rows, ids, mask in by_length(captions, groups=len(captions) // 20):
        for start in range(0, len(images), 200):
            scores[rows, start : start + 200] = scorer.scores(ids, mask, images[start : start + 200])
    return both_ways(scores.numpy(), np.arange(len(captions)))


@torch.inference_mode()
def embedded_regions(model: CrossAttentionReranker, photos: CachedPhotos, batch_size: int = 100) -> Tensor:
    """(N, R, H) of photos, as the region store would keep them."""
    boxes = torch.from_numpy(grid_boxes(math.isqrt(photos.views[0].shape[1])))
    parts = []
    for start in range(0, len(photos), batch_size):
        features = torch.from_numpy(photos.standardised(photos.views[0][start : start + batch_size]))
        with fast_precision():
            parts.append(model.embed_regions(features, boxes.expand(len(features), -1, -1)).float())
    return torch.cat(parts)
