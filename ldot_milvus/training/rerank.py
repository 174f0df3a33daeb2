"""Training of the cross-attention re-ranker on hard negatives that the dual encoder finds."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..evaluation.evaluate import first_columns
from ..evaluation.recall import recall_at, text_to_image_ranks
from ..model import CrossAttentionReranker, LightningDOT, RerankerConfig
from ..regions.grid import grid_boxes
from .contrastive import caption_batches, cosine, dual_vectors, pad, tokenize
from .data import CachedPhotos

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RerankRecipe:
    """What ``ldot-mini``'s re-ranker was trained with (figures in its model card)."""

    joint_layers: int = 2  # on top of the dual encoder's text layers, which stay frozen
    passes: int = 4  # over the photos, each with one of its captions
    photos_per_step: int = 32
    negatives: int = 3  # photos for each caption, and captions for each photo
    mined: int = 30  # negatives are drawn from the first so many wrong answers of the dual encoder
    mined_from: float = 0.3  # share of the training after which all negatives are mined ones, none random
    learning_rate: float = 4e-4
    weight_decay: float = 0.05
    warmup: float = 0.05
    regions_kept: int = 32
    text_tokens: int = 24
    seed: int = 11


def train_reranker(
    dual: LightningDOT,
    tokenizer: PreTrainedTokenizerBase,
    train: CachedPhotos,
    dev: CachedPhotos,
    recipe: RerankRecipe,
    log_file: Path | None = None,
) -> CrossAttentionReranker:
    """Train a re-ranker over the dual encoder's projected regions; the last weights are returned."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = start_from_dual(dual, recipe)
    model.set_attn_implementation("eager")  # half the time of the fused kernel's backward pass on a CPU
    tokens = tokenize(tokenizer, train.captions, recipe.text_tokens)
    wrong_photos, wrong_captions = mine(dual, tokenizer, train, recipe.mined)
    flat = [caption for captions in tokens for caption in captions]
    first_caption = np.cumsum([0] + [len(captions) for captions in tokens])
    states = [projected_regions(dual, view) for view in train.views]
    boxes = grid_boxes(math.isqrt(states[0].shape[1]))
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay,
    )  # fmt: skip
    total = recipe.passes * (len(train) // recipe.photos_per_step)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(total, int(total * recipe.warmup)))
    batches = caption_batches(tokens, recipe.photos_per_step, rng)
    started, losses = time.time(), []
    model.train()
    for step in range(total):
        rows, turns = next(batches)
        captions = first_caption[rows] + turns
        n, m = len(rows), recipe.negatives
        hard = min(1.0, step / (recipe.mined_from * total))
        photos = np.concatenate([rows[:, None], _draw(wrong_photos[captions], m, hard, len(train), rng)], axis=1)
        texts = np.concatenate([captions[:, None], _draw(wrong_captions[rows], m, hard, len(flat), rng)], axis=1)
        # One positive pair, then m wrong photos for its caption, then m wrong captions for its photo.
        pair_photos = np.concatenate([photos, np.repeat(rows[:, None], m, axis=1)], axis=1).ravel()
        places = np.arange(n * (m + 1)).reshape(n, m + 1)  # of each caption's words among those encoded below
        pair_texts = np.concatenate([np.repeat(places[:, :1], m + 1, axis=1), places[:, 1:]], axis=1).ravel()
        features, cells = _sample(states, boxes, pair_photos, recipe.regions_kept, rng)
        ids, mask = pad([flat[index] for index in texts.ravel()])
        with torch.autocast("cpu", torch.bfloat16):
            words = model.encode_words(ids, mask)
            everything = torch.ones(features.shape[:2], dtype=torch.bool)
            scores = model.score(words[pair_texts], mask[pair_texts], features, cells, everything)
        scores = scores.float().view(n, 2 * m + 1)
        by_photo, by_text = scores[:, : m + 1], torch.cat([scores[:, :1], scores[:, m + 1 :]], dim=1)
        loss = -(by_photo.log_softmax(1)[:, 0] + by_text.log_softmax(1)[:, 0]).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == total:
            entry: dict[str, object] = {"step": step + 1, "of": total, "loss": float(np.mean(losses[-100:]))}
            entry["seconds"] = time.time() - started
            if (step + 1) % 370 == 0:
                entry |= probe(model, dual, tokenizer, dev)
                model.train()
            log.info("%s", entry)
            if log_file:
                with log_file.open("a") as file:
                    file.write(json.dumps(entry | ({"recipe": asdict(recipe)} if step < 100 else {})) + "\n")
    model.set_attn_implementation("sdpa")
    return model.eval()


def start_from_dual(dual: LightningDOT, recipe: RerankRecipe) -> CrossAttentionReranker:
    """A re-ranker on top of the dual encoder's text encoder, which stays as it is.

    The joint layers start as copies of the text encoder's last ones, and regions enter as they are: both sides are in
    the space in which the dual encoder compares them.
    """
    text = dual.config.text_config
    depth, width = text.num_hidden_layers, dual.config.projection_dim
    body = text.to_dict() | {"num_hidden_layers": depth + recipe.joint_layers}
    model = CrossAttentionReranker(
        RerankerConfig(bert_config=body, region_dim=width, region_input="projected", text_layers=depth)
    )
    state = dual.text_model.state_dict()
    for layer in range(recipe.joint_layers):
        copied = f"encoder.layer.{depth - recipe.joint_layers + layer}."
        new = f"encoder.layer.{depth + layer}."
        state |= {new + name.removeprefix(copied): value for name, value in state.items() if name.startswith(copied)}
    model.bert.load_state_dict(state, strict=False)
    assert model.bert.img_embeddings is not None
    nn.init.eye_(model.bert.img_embeddings.img_linear.weight)
    for name, parameter in model.bert.named_parameters():
        layer_number = int(name.split(".")[2]) if name.startswith("encoder.layer.") else depth
        parameter.requires_grad = not (name.startswith("embeddings.") or layer_number < depth)
    return model


def mine(
    dual: LightningDOT, tokenizer: PreTrainedTokenizerBase, photos: CachedPhotos, first: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ``first`` wrong photos of each caption and the ``first`` wrong captions of each photo, as row numbers."""
    texts, images = dual_vectors(dual, tokenizer, photos)
    owner = torch.from_numpy(np.repeat(np.arange(len(photos)), [len(captions) for captions in photos.captions]))
    wrong_photos = []
    for start in range(0, len(texts), 2000):
        part, own = texts[start : start + 2000], owner[start : start + 2000]
        scores = part @ images.T
        scores[torch.arange(len(part)), own] = -torch.inf
        wrong_photos.append(scores.topk(first).indices)
    wrong_captions = []
    for start in range(0, len(images), 500):
        scores = images[start : start + 500] @ texts.T
        scores[owner[None] == torch.arange(start, start + len(scores))[:, None]] = -torch.inf
        wrong_captions.append(scores.topk(first).indices)
    return torch.cat(wrong_photos).numpy(), torch.cat(wrong_captions).numpy()


@torch.inference_mode()
def projected_regions(dual: LightningDOT, features: NDArray[np.float16], batch_size: int = 100) -> NDArray[np.float16]:
    """The dual encoder's projected regions (N, R, dim) of N photos, float16, as the region store keeps them."""
    dual.eval()
    boxes = torch.from_numpy(grid_boxes(math.isqrt(features.shape[1])))
    parts = []
    for start in range(0, len(features), batch_size):
        batch = torch.from_numpy(np.asarray(features[start : start + batch_size], np.float32))
        with torch.autocast("cpu", torch.bfloat16):
            projected = dual.project_regions(batch, boxes.expand(len(batch), -1, -1))
        parts.append(projected.float().numpy().astype(np.float16))
    return np.concatenate(parts)


@torch.inference_mode()
def probe(
    model: CrossAttentionReranker,
    dual: LightningDOT,
    tokenizer: PreTrainedTokenizerBase,
    dev: CachedPhotos,
    captions: int = 500,
    first: int = 20,
) -> dict[str, object]:
    """Text-to-image recall on some captions of ``dev``: dot product, re-ranked, and re-ranked with the dot product."""
    model.eval()
    texts, images = dual_vectors(dual, tokenizer, dev)
    chosen = np.linspace(0, len(texts) - 1, captions).astype(int)
    owner = np.repeat(np.arange(len(dev)), [len(c) for c in dev.captions])[chosen]
    flat = [caption for group in dev.captions for caption in group]
    scores = (texts[chosen] @ images.T).numpy()
    rows, columns = np.nonzero(first_columns(scores, first))
    states = projected_regions(dual, dev.views[0])
    boxes = torch.from_numpy(grid_boxes(math.isqrt(states.shape[1])))
    crossed = np.full_like(scores, -np.inf)
    for start in range(0, len(rows), 200):
        row, column = rows[start : start + 200], columns[start : start + 200]
        batch = tokenizer([flat[chosen[i]] for i in row], padding=True, truncation=True, max_length=60)
        with torch.autocast("cpu", torch.bfloat16):
            crossed[row, column] = model(
                torch.tensor(batch["input_ids"]), torch.tensor(batch["attention_mask"]),
                torch.from_numpy(states[column].astype(np.float32)), boxes.expand(len(column), -1, -1),
            ).float()  # fmt: skip
    result: dict[str, object] = {"dot": recall_at(text_to_image_ranks(scores, owner))}
    for weight in (0, 5, 10, 20, 40):
        mixed = np.where(np.isinf(crossed), scores - 1e4, crossed + weight * scores)
        result[f"dot_weight {weight}"] = recall_at(text_to_image_ranks(mixed, owner))
    return result


def _draw(mined: NDArray[np.int64], count: int, hard: float, total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``count`` negatives for each row: a share of ``hard`` from its ``mined`` ones, the rest at random."""
    picks = np.take_along_axis(mined, rng.random(mined.shape).argsort(1)[:, :count], axis=1)
    return np.where(rng.random(picks.shape) < hard, picks, rng.integers(total, size=picks.shape))


def _sample(
    states: list[NDArray[np.float16]], boxes: NDArray[np.float32], rows: NDArray[np.int64], keep: int,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Projected regions (P, keep, H) and boxes of a random view and random regions of each photo."""
    views = np.where(rng.random(len(rows)) < 0.5, 0, rng.integers(len(states), size=len(rows)))
    cells = rng.random((len(rows), len(boxes))).argsort(1)[:, :keep]
    features = np.stack([states[view][row][pick] for view, row, pick in zip(views, rows, cells, strict=True)])
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(boxes[cells])
