"""Fine-tuning of the dual encoder by cross-modal retrieval: in-batch softmax over the dot products."""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..evaluation.recall import both_ways
from ..model import LightningDOT, LightningDOTConfig
from ..regions.grid import grid_boxes
from .data import CachedPhotos, Scale

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ContrastiveRecipe:
    """What ``ldot-mini`` was trained with (figures in its model card)."""

    epochs: int = 6  # the fourth was the best for ldot-mini
    batch_size: int = 256
    text_learning_rate: float = 5e-5  # a pre-trained sentence encoder moves little
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    warmup: float = 0.05
    ema: float = 0.995  # the averaged weights are what is kept
    regions_kept: int = 36  # of 49: cheaper steps, and no cell can be relied upon
    text_tokens: int = 24
    words_dropped: float = 0.15
    feature_dropout: float = 0.1
    soft_targets: float = 0.1  # share of the target given to photos whose captions mean nearly the same
    soft_temperature: float = 0.05
    temperature: float = 0.07
    seed: int = 7


def train_dual_encoder(
    model: LightningDOT,
    tokenizer: PreTrainedTokenizerBase,
    train: CachedPhotos,
    dev: CachedPhotos,
    recipe: ContrastiveRecipe,
    log_file: Path | None = None,
    checkpoint: Path | None = None,
) -> LightningDOT:
    """Train and return the averaged model of the best epoch (mean of the six recalls on ``dev``)."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    # Standardised channels precondition the optimiser; the model that is returned reads features as they are.
    scale = train.measured()
    train, dev = replace(train, scale=scale), replace(dev, scale=scale)
    model.set_attn_implementation("eager")  # half the time of the fused kernel's backward pass on a CPU
    tokens = tokenize(tokenizer, train.captions, recipe.text_tokens)
    meanings = caption_meanings(model, tokens) if recipe.soft_targets else None
    log_scale = nn.Parameter(torch.tensor(math.log(1 / recipe.temperature)))
    optimizer = _optimizer(model, log_scale, recipe)
    batches = caption_batches(tokens, recipe.batch_size, rng)
    steps_per_epoch = len(train) // recipe.batch_size * min(map(len, tokens))
    total = steps_per_epoch * recipe.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(total, int(total * recipe.warmup)))
    average = copy.deepcopy(model).requires_grad_(False)
    best, best_state = -1.0, copy.deepcopy(average.state_dict())
    started = time.time()
    for epoch in range(recipe.epochs):
        model.train()
        losses = []
        for _ in range(steps_per_epoch):
            rows, turns = next(batches)
            features, boxes = sample_view(train, rows, recipe.regions_kept, rng)
            texts = [tokens[row][turn] for row, turn in zip(rows, turns, strict=True)]
            ids, mask = pad([drop_words(text, recipe.words_dropped, rng) for text in texts])
            features *= drop_features(features.shape, recipe.feature_dropout, rng)
            with torch.autocast("cpu", torch.bfloat16):
                text, image = model(ids, mask, features, boxes)
            logits = text.float() @ image.float().T * log_scale.exp().clamp(max=100)
            target = _targets(rows, meanings, recipe)
            loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target.T)) / 2
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            update_average(average, model, min(recipe.ema, (schedule.last_epoch + 1) / (schedule.last_epoch + 10)))
            losses.append(loss.item())
        figures = evaluate_dual(average, tokenizer, dev)
        if checkpoint is not None:
            average.save_pretrained(checkpoint)
        mean = float(np.mean([value for way in figures.values() for value in way.values()]))
        entry = {"epoch": epoch + 1, "loss": float(np.mean(losses)), "seconds": time.time() - started, **figures}
        log.info("%s", entry)
        if log_file:
            with log_file.open("a") as file:
                file.write(json.dumps(entry | ({"recipe": asdict(recipe)} if epoch == 0 else {})) + "\n")
        if mean > best:
            best, best_state = mean, copy.deepcopy(average.state_dict())
    average.load_state_dict(best_state)
    fold_scale(average, scale)
    average.set_attn_implementation("sdpa")
    return average.eval()


@torch.no_grad()
def fold_scale(model: LightningDOT, scale: Scale) -> None:
    """Make a model that was trained on standardised features read plain ones: both go into ``img_linear``."""
    assert model.image_model.img_embeddings is not None
    linear = model.image_model.img_embeddings.img_linear
    mean, deviation = (torch.from_numpy(value) for value in scale)
    linear.weight.div_(deviation)
    linear.bias.sub_(linear.weight @ mean)


def tokenize(tokenizer: PreTrainedTokenizerBase, captions: list[list[str]], limit: int) -> list[list[list[int]]]:
    """Token ids of every photo's captions, each cut to ``limit``."""
    flat = tokenizer([text for texts in captions for text in texts], truncation=True, max_length=limit)["input_ids"]
    ids = iter(flat)
    return [[next(ids) for _ in texts] for texts in captions]


@torch.inference_mode()
def caption_meanings(model: LightningDOT, tokens: list[list[list[int]]]) -> Tensor:
    """(N, dim) mean of each photo's caption vectors under the sentence encoder as it came, at length 1."""
    model.eval()
    out = []
    for start in range(0, len(tokens), 64):
        group = tokens[start : start + 64]
        ids, mask = pad([caption for captions in group for caption in captions])
        with torch.autocast("cpu", torch.bfloat16):
            vectors = nn.functional.normalize(model.encode_text(ids, mask).float(), dim=-1)
        sizes = [len(captions) for captions in group]
        out.append(torch.stack([part.mean(0) for part in vectors.split(sizes)]))
    return nn.functional.normalize(torch.cat(out), dim=-1)


def _targets(rows: np.ndarray, meanings: Tensor | None, recipe: ContrastiveRecipe) -> Tensor:
    target = torch.eye(len(rows))
    if meanings is None:
        return target
    near = meanings[rows] @ meanings[rows].T
    soft = (near / recipe.soft_temperature).softmax(1)
    return (1 - recipe.soft_targets) * target + recipe.soft_targets * soft


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of rows of ``logits`` against rows of probabilities (normalised here)."""
    return -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()


def _optimizer(model: LightningDOT, scale: nn.Parameter, recipe: ContrastiveRecipe) -> torch.optim.AdamW:
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith("text_model"), parameter.dim() >= 2), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": recipe.text_learning_rate if text else recipe.learning_rate,
                "weight_decay": recipe.weight_decay if matrix else 0.0,
            }
            for (text, matrix), parameters in groups.items()
        ]
        + [{"params": [scale], "lr": recipe.learning_rate, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )


def cosine(total: int, warmup: int) -> Callable[[int], float]:
    """Factor of the learning rate at each step: linear warm-up, then half a cosine to zero."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return factor


def caption_batches(
    tokens: list[list[list[int]]], size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless batches of different photos (rows), each with one of its captions (which one).

    Captions of all lengths meet in a batch: sorted by length they would cost less padding, but the model would
    never learn to compare a short one with a long one.
    """
    rounds = min(map(len, tokens))
    while True:
        turns = np.stack([rng.permutation(len(captions))[:rounds] for captions in tokens])
        for turn in turns.T:
            order = rng.permutation(len(tokens))
            for start in range(0, len(order) - size + 1, size):
                rows = order[start : start + size]
                yield rows, turn[rows]


def drop_words(tokens: list[int], share: float, rng: np.random.Generator) -> list[int]:
    """``tokens`` without a random share of the words; [CLS] and [SEP] stay."""
    kept = rng.random(len(tokens)) >= share
    kept[[0, -1]] = True
    return [token for token, keep in zip(tokens, kept, strict=True) if keep]


def drop_features(shape: Sequence[int], share: float, rng: np.random.Generator) -> Tensor:
    """Factors of dropout; from random bytes, since torch's own takes a tenth of a step on a CPU."""
    cut = round(256 * share)
    kept = np.frombuffer(rng.bytes(math.prod(shape)), np.uint8).reshape(shape) >= cut
    return torch.from_numpy(kept).float() * (256 / (256 - cut))


def sample_view(photos: CachedPhotos, rows: np.ndarray, keep: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Features (B, keep, d) and boxes (B, keep, 7): a random view of each photo, ``keep`` random regions of it."""
    regions = photos.views[0].shape[1]
    choices = np.where(rng.random(len(rows)) < 0.5, 0, rng.integers(len(photos.views), size=len(rows)))
    cells = rng.random((len(rows), regions)).argsort(1)[:, :keep]
    features = np.stack([photos.views[view][row] for view, row in zip(choices, rows, strict=True)])
    features = np.take_along_axis(features, cells[:, :, None], axis=1)
    boxes = grid_boxes(math.isqrt(regions))[cells]
    return torch.from_numpy(photos.standardised(features)), torch.from_numpy(boxes)


def pad(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token lists to ids (B, T) and mask (B, T), padded with 0 on the right."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(sequence) for sequence in sequences], batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(sequence) for sequence in sequences])[:, None]
    return ids, mask


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights."""
    for kept, new in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)


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
    with torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(flat), batch_size):
            batch = tokenizer(flat[start : start + batch_size], padding=True, truncation=True, max_length=60)
            texts.append(model.encode_text(torch.tensor(batch["input_ids"]), torch.tensor(batch["attention_mask"])))
        for start in range(0, len(photos), batch_size):
            features = torch.from_numpy(photos.standardised(photos.views[0][start : start + batch_size]))
            images.append(model.encode_image(features, boxes.expand(len(features), -1, -1)))
    return torch.cat(texts).float(), torch.cat(images).float()


def evaluate_dual(
    model: LightningDOT, tokenizer: PreTrainedTokenizerBase, photos: CachedPhotos
) -> dict[str, dict[str, float]]:
    """Recall@1/5/10 of both directions, in percent."""
    texts, images = dual_vectors(model, tokenizer, photos)
    owner = np.repeat(np.arange(len(photos)), [len(captions) for captions in photos.captions])
    return both_ways((texts @ images.T).numpy(), owner)
