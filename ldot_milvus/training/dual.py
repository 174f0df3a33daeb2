"""Training of the dual encoder: contrastive loss over dot products, then hubness calibration."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..evaluation.recall import both_ways
from ..model import CrossAttentionReranker, LightningDOT, LightningDOTConfig
from ..regions.grid import grid_boxes
from .batches import Tokens, by_length, fast_precision, tokenize
from .contrastive import (
    ContrastiveRecipe,
    Figures,
    Scorer,
    fold_scale,
    freeze_text,
    standardised,
    train_contrastive,
    unfold_scale,
)
from .data import CachedPhotos
from .rerank import RerankScorer

TEMPERATURE = 0.07
"""Where the learned temperature of the softmax starts."""


class DualScorer(Scorer):
    """Dot products at a learned temperature, which is of no use after training."""

    def __init__(self, model: LightningDOT) -> None:
        super().__init__()
        self.model = model
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))

    def encode_images(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Vectors (P, dim)."""
        return self.model.encode_image(features, boxes).float()

    def scores(self, ids: Tensor, mask: Tensor, images: Tensor) -> Tensor:
        """Logits (B, P)."""
        return self.model.encode_text(ids, mask).float() @ images.T * self.log_scale.exp().clamp(max=100)

    def is_text(self, parameter: str) -> bool:
        """The text encoder's own parameters."""
        return parameter.startswith("model.text_model")


def train_dual_encoder(
    model: LightningDOT,
    tokenizer: PreTrainedTokenizerBase,
    meanings: Tensor,
    train: CachedPhotos,
    dev: CachedPhotos,
    recipes: Sequence[ContrastiveRecipe],
    log_file: Path | None = None,
    teacher: CrossAttentionReranker | None = None,
) -> LightningDOT:
    """Train ``model`` by one recipe after the other, each from the averaged weights of the one before at its best.

    Args:
        model: freshly made; what is returned reads features as they are.
        teacher: a re-ranker that reads features as they are; its ranking is learned in all recipes but the first.
    """
    train, dev = standardised(train, dev)
    model.set_attn_implementation("eager")  # half the time of the fused kernel's backward pass on a CPU
    tokens = tokenize(tokenizer, train.captions, recipes[0].text_tokens)
    scorer = DualScorer(model)
    teaching = None if teacher is None else _teacher(teacher, train)
    for number, recipe in enumerate(recipes):
        scorer.requires_grad_(True)
        freeze_text(scorer.model.text_model, recipe)
        scorer = train_contrastive(
            scorer, tokens, meanings, train, lambda scorer: evaluate_dual(scorer.model, tokenizer, dev), recipe,
            log_file, teaching if number else None,
        )  # fmt: skip
    best = scorer.model
    assert best.image_model.img_embeddings is not None
    fold_scale(best.image_model.img_embeddings.img_linear, train)
    best.set_attn_implementation("sdpa")
    return best


def _teacher(reranker: CrossAttentionReranker, train: CachedPhotos) -> RerankScorer:
    scorer = RerankScorer(copy.deepcopy(reranker).eval())
    assert scorer.model.bert.img_embeddings is not None
    unfold_scale(scorer.model.bert.img_embeddings.img_linear, train)
    return scorer


@torch.inference_mode()
def caption_meanings(model: LightningDOT, tokens: Tokens) -> Tensor:
    """(N, dim) mean of each photo's caption vectors under the sentence encoder as it came, at length 1."""
    model.eval()
    flat = [caption for captions in tokens for caption in captions]
    vectors = torch.empty(len(flat), model.config.projection_dim)
    for rows, ids, mask in by_length(flat, groups=math.ceil(len(flat) / 256)):
        with fast_precision():
            vectors[rows] = nn.functional.normalize(model.encode_text(ids, mask).float(), dim=-1)
    means = [part.mean(0) for part in vectors.split([len(captions) for captions in tokens])]
    return nn.functional.normalize(torch.stack(means), dim=-1)


def calibrate(
    model: LightningDOT, tokenizer: PreTrainedTokenizerBase, photos: CachedPhotos, anchors: int = 1000
) -> LightningDOT:
    """The model with hubness calibration, its anchors the vectors of some training photos and of a caption of each."""
    rows = np.linspace(0, len(photos) - 1, anchors).astype(int)
    some = CachedPhotos([photos.names[row] for row in rows], [photos.captions[row][:1] for row in rows],
                        [photos.views[0][rows]])  # fmt: skip
    texts, images = dual_vectors(model, tokenizer, some)
    config: LightningDOTConfig = copy.deepcopy(model.config)  # type: ignore[assignment]
    config.calibration_anchors = anchors
    calibrated = LightningDOT(config)
    calibrated.load_state_dict(model.state_dict(), strict=False)
    assert calibrated.text_calibration is not None
    assert calibrated.image_calibration is not None
    calibrated.text_calibration.anchors.copy_(images)
    calibrated.image_calibration.anchors.copy_(texts)
    return calibrated.eval()


@torch.inference_mode()
def dual_vectors(
    model: LightningDOT, tokenizer: PreTrainedTokenizerBase, photos: CachedPhotos, batch_size: int = 100
) -> tuple[Tensor, Tensor]:
    """Vectors of all captions (in order of photo) and of all photos (view 0)."""
    model.eval()
    boxes = torch.from_numpy(grid_boxes(math.isqrt(photos.views[0].shape[1])))
    flat = [caption for captions in photos.captions for caption in captions]
    texts, images = [], []
    with fast_precision():
        for start in range(0, len(flat), batch_size):
            batch = tokenizer(flat[start : start + batch_size], padding=True, truncation=True, max_length=60)
            texts.append(model.encode_text(torch.tensor(batch["input_ids"]), torch.tensor(batch["attention_mask"])))
        for start in range(0, len(photos), batch_size):
            features = torch.from_numpy(photos.standardised(photos.views[0][start : start + batch_size]))
            images.append(model.encode_image(features, boxes.expand(len(features), -1, -1)))
    return torch.cat(texts).float(), torch.cat(images).float()


def evaluate_dual(model: LightningDOT, tokenizer: PreTrainedTokenizerBase, photos: CachedPhotos) -> Figures:
    """Recall@1/5/10 of both directions, in percent."""
    texts, images = dual_vectors(model, tokenizer, photos)
    return both_ways((texts @ images.T).numpy(), photos.owner)
