"""Cross-modal retrieval as a training objective: in-batch softmax over the scores of all pairs of a batch.

LightningDOT's CMR loss (section 3.3), for whatever scores a text with an image: :mod:`.dual` has the dot product,
:mod:`.rerank` the cross-attention.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..model.layers import BertBody
from .batches import Tokens, by_length, caption_batches, drop_features, drop_words, fast_precision, sample_view
from .data import CachedPhotos

log = logging.getLogger(__name__)

Figures = dict[str, dict[str, float]]


class Scorer(nn.Module):
    """A model under training, reduced to what the contrastive loss needs of it."""

    def encode_images(self, features: Tensor, boxes: Tensor) -> Tensor:
        """What concerns the images alone, from features (P, R, d) and boxes (P, R, 7)."""
        raise NotImplementedError

    def scores(self, ids: Tensor, mask: Tensor, images: Tensor) -> Tensor:
        """Logits (B, P) of texts (B, T) with what :meth:`encode_images` gave."""
        raise NotImplementedError

    def is_text(self, parameter: str) -> bool:
        """Whether the parameter of that name is of a text encoder that was trained before."""
        raise NotImplementedError


_S = TypeVar("_S", bound=Scorer)


@dataclass(frozen=True)
class ContrastiveRecipe:
    """How a scorer is trained; the defaults are those of ``ldot-mini`` (figures in its model card)."""

    epochs: int = 10  # of the learning rate's schedule
    stop: int = 10  # the epoch after which it ends at the latest: a high rate to the end generalises better
    patience: int = 2  # epochs without a better dev recall after which it ends
    batch_size: int = 128
    frozen_text_layers: int = 2  # the first, which stay as they came, like the word embeddings
    text_learning_rate: float = 5e-5  # a pre-trained sentence encoder moves little
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    warmup: float = 0.05
    ema: float = 0.995  # the averaged weights are what is kept
    regions_kept: int = 28  # of 49: cheaper steps, and no cell can be relied upon
    text_tokens: int = 24
    words_dropped: float = 0.15
    feature_dropout: float = 0.1
    soft_targets: float = 0.1  # share of the target given to photos whose captions mean nearly the same
    soft_temperature: float = 0.05
    distilled: float = 0.7  # weight of the teacher's ranking, where there is a teacher
    teacher_temperature: float = 2.0
    seed: int = 7


def train_contrastive(
    scorer: _S,
    tokens: Tokens,
    meanings: Tensor,
    train: CachedPhotos,
    evaluate: Callable[[_S], Figures],
    recipe: ContrastiveRecipe,
    log_file: Path | None = None,
    teacher: Scorer | None = None,
) -> _S:
    """Train and return the averaged scorer of the best epoch (mean of all recalls that ``evaluate`` gives).

    Args:
        tokens: of every photo's captions.
        meanings: (N, dim) what each photo's captions mean, at length 1, for the soft targets.
        teacher: a scorer whose ranking of each batch is learned too, from whole captions and undisturbed regions
            (cross-attention into a dual encoder: Miech et al., CVPR 2021).
    """
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    optimizer = _optimizer(scorer, recipe)
    batches = caption_batches(tokens, recipe.batch_size, rng)
    steps_per_epoch = len(train) // recipe.batch_size * min(map(len, tokens))
    total = steps_per_epoch * recipe.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(total, int(total * recipe.warmup)))
    average = copy.deepcopy(scorer).requires_grad_(False)
    best, best_epoch, best_state = -1.0, 0, copy.deepcopy(average.state_dict())
    started = time.time()
    for epoch in range(1, min(recipe.stop, recipe.epochs) + 1):
        scorer.train()
        losses = []
        for _ in range(steps_per_epoch):
            rows, turns = next(batches)
            features, boxes = sample_view(train, rows, recipe.regions_kept, rng)
            whole = [tokens[row][turn] for row, turn in zip(rows, turns, strict=True)]
            texts = [drop_words(text, recipe.words_dropped, rng) for text in whole]
            dropped = features * drop_features(features.shape, recipe.feature_dropout, rng)
            logits = _logits(scorer, texts, dropped, boxes)
            target = soft_targets(meanings[rows], recipe.soft_targets, recipe.soft_temperature)
            loss = both_directions(logits, target)
            if teacher is not None:
                with torch.inference_mode():
                    taught = _logits(teacher, whole, features, boxes)
                imitation = distillation(logits, taught.clone(), recipe.teacher_temperature)
                loss = (1 - recipe.distilled) * loss + recipe.distilled * imitation
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(scorer.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            update_average(average, scorer, min(recipe.ema, (schedule.last_epoch + 1) / (schedule.last_epoch + 10)))
            losses.append(loss.item())
            if len(losses) % 20 == 0:
                log.info("epoch %d, step %d of %d: loss %.3f, %.0f s", epoch, len(losses), steps_per_epoch,
                         np.mean(losses[-20:]), time.time() - started)  # fmt: skip
        figures = evaluate(average.eval())
        entry = {"epoch": epoch, "loss": float(np.mean(losses)), "seconds": time.time() - started, **figures}
        log.info("%s", entry)
        if log_file:
            with log_file.open("a") as file:
                file.write(json.dumps(entry | ({"recipe": asdict(recipe)} if epoch == 1 else {})) + "\n")
        mean = float(np.mean([value for way in figures.values() for value in way.values()]))
        if mean > best:
            best, best_epoch, best_state = mean, epoch, copy.deepcopy(average.state_dict())
        elif epoch - best_epoch >= recipe.patience:
            break
    average.load_state_dict(best_state)
    return average.eval()


def freeze_text(body: BertBody, recipe: ContrastiveRecipe) -> None:
    """Keep the word embeddings and the first layers of a text encoder as they came: cheaper, and less to forget."""
    for part in (body.embeddings, *body.encoder.layer[: recipe.frozen_text_layers]):
        part.requires_grad_(False)


def standardised(*photos: CachedPhotos) -> list[CachedPhotos]:
    """The photos with the channels' scale of the first: it preconditions the optimiser (see :func:`fold_scale`)."""
    scale = photos[0].measured()
    return [replace(some, scale=scale) for some in photos]


@torch.no_grad()
def fold_scale(linear: nn.Linear, photos: CachedPhotos) -> None:
    """Make the layer that reads region features, trained on standardised ones, read them as they are."""
    mean, deviation = _scale(photos)
    linear.weight.div_(deviation)
    linear.bias.sub_(linear.weight @ mean)


@torch.no_grad()
def unfold_scale(linear: nn.Linear, photos: CachedPhotos) -> None:
    """The reverse of :func:`fold_scale`."""
    mean, deviation = _scale(photos)
    linear.bias.add_(linear.weight @ mean)
    linear.weight.mul_(deviation)


def _scale(photos: CachedPhotos) -> tuple[Tensor, Tensor]:
    assert photos.scale is not None
    return torch.from_numpy(photos.scale[0]), torch.from_numpy(photos.scale[1])


def soft_targets(meanings: Tensor, share: float, temperature: float) -> Tensor:
    """(B, B): the own photo, but for a ``share`` that goes to photos whose ``meanings`` (B, dim) are near."""
    near = (meanings @ meanings.T / temperature).softmax(1)
    return (1 - share) * torch.eye(len(meanings)) + share * near


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


def cosine(total: int, warmup: int) -> Callable[[int], float]:
    """Factor of the learning rate at each step: linear warm-up, then half a cosine to zero."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return factor


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights."""
    for kept, new in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)


def _logits(scorer: Scorer, texts: list[list[int]], features: Tensor, boxes: Tensor) -> Tensor:
    rows: list[int] = []
    parts = []
    with fast_precision():
        images = scorer.encode_images(features, boxes)
        for indices, ids, mask in by_length(texts, groups=4):
            rows += indices
            parts.append(scorer.scores(ids, mask, images).float())
    return torch.cat(parts)[torch.argsort(torch.tensor(rows))]


def _optimizer(scorer: Scorer, recipe: ContrastiveRecipe) -> torch.optim.AdamW:
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in scorer.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((scorer.is_text(name), parameter.dim() >= 2), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": recipe.text_learning_rate if text else recipe.learning_rate,
                "weight_decay": recipe.weight_decay if matrix else 0.0,
            }
            for (text, matrix), parameters in groups.items()
        ],
        betas=(0.9, 0.98),
    )
