"""Training of the cross-attention re-ranker by the contrastive loss over its own scores of all pairs of a batch."""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..evaluation.evaluate import first_columns
from ..evaluation.recall import both_ways, image_to_text_ranks, recall_at, text_to_image_ranks
from ..model import CrossAttentionReranker, LightningDOT
from ..regions.grid import grid_boxes
from .batches import by_length, fast_precision, tokenize
from .contrastive import ContrastiveRecipe, Figures, Scorer, fold_scale, freeze_text, standardised, train_contrastive
from .data import CachedPhotos
from .dual import dual_vectors

log = logging.getLogger(__name__)

DOT_WEIGHTS = (0, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80)


class RerankScorer(Scorer):
    """The re-ranker's own scores; its ``scoring`` has to be "alignment", where all pairs at once are cheap."""

    def __init__(self, model: CrossAttentionReranker) -> None:
        super().__init__()
        assert model.alignment is not None
        self.model = model
        self.alignment = model.alignment

    def encode_images(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Embedded regions (P, R, H)."""
        return self.model.embed_regions(features, boxes).float()

    def scores(self, ids: Tensor, mask: Tensor, images: Tensor) -> Tensor:
        """Scores (B, P)."""
        words = self.model.encode_words(ids, mask).float()
        everything = torch.ones(images.shape[:2], dtype=torch.bool)
        return self.alignment.all_pairs(words, mask, images, everything)

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


def with_dot_weight(
    model: CrossAttentionReranker,
    dual: LightningDOT,
    tokenizer: PreTrainedTokenizerBase,
    dev: CachedPhotos,
    first: int = 20,
) -> CrossAttentionReranker:
    """The re-ranker with the weight of the dot product that gives the best R@1 of both directions on ``dev``."""
    texts, images = dual_vectors(dual, tokenizer, dev)
    dot, owner = (texts @ images.T).numpy(), dev.owner
    near_photos, near_captions = first_columns(dot, first), first_columns(dot.T, first).T
    rows, columns = np.nonzero(near_photos | near_captions)
    crossed = np.full_like(dot, -np.inf)
    crossed[rows, columns] = _pair_scores(model, tokenizer, dev, rows, columns)
    log.info("dot product alone: %s", both_ways(dot, owner))
    best = (-1.0, 0.0)
    for weight in DOT_WEIGHTS:
        mixed = crossed + weight * dot
        by_text = recall_at(text_to_image_ranks(np.where(near_photos, mixed, dot - 1e4), owner))
        by_image = recall_at(image_to_text_ranks(np.where(near_captions, mixed, dot - 1e4), owner))
        log.info("re-ranked, weight %s: %s %s", weight, by_text, by_image)
        best = max(best, (by_text["R@1"] + by_image["R@1"], float(weight)))
    model = copy.deepcopy(model)
    model.config.dot_weight = best[1]
    return model


@torch.inference_mode()
def _pair_scores(
    model: CrossAttentionReranker, tokenizer: PreTrainedTokenizerBase, photos: CachedPhotos,
    rows: NDArray[np.int64], columns: NDArray[np.int64],
) -> NDArray[np.float32]:  # fmt: skip
    """Scores of caption ``rows[i]`` with photo ``columns[i]``."""
    flat = [caption for captions in tokenize(tokenizer, photos.captions, 60) for caption in captions]
    images = embedded_regions(model, photos).half()
    out = np.empty(len(rows), np.float32)
    starts = np.flatnonzero(np.diff(rows, prepend=-1))  # np.nonzero gave the rows in order
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        ids = torch.tensor([flat[rows[start]]])
        words = model.encode_words(ids, torch.ones_like(ids)).expand(stop - start, -1, -1)
        regions = images[columns[start:stop]].float()
        everything = torch.ones(regions.shape[:2], dtype=torch.bool)
        mask = torch.ones(words.shape[:2], dtype=torch.bool)
        out[start:stop] = model.score(words, mask, regions, everything).float().numpy()
    return out
