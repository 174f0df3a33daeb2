"""The contrastive recipe learns, and what it returns reads features as they are."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from ldot_milvus.model import CrossAttentionReranker, LightningDOT, LightningDOTConfig, RerankerConfig
from ldot_milvus.training.batches import by_length, tokenize
from ldot_milvus.training.contrastive import ContrastiveRecipe, fold_scale, soft_targets, standardised, unfold_scale
from ldot_milvus.training.data import CachedPhotos
from ldot_milvus.training.dot_weight import with_dot_weight
from ldot_milvus.training.dual import calibrate, caption_meanings, evaluate_dual, train_dual_encoder
from ldot_milvus.training.rerank import RerankScorer, train_reranker

PHOTOS, REGIONS, WIDTH = 48, 9, 24
RECIPE = ContrastiveRecipe(
    epochs=6, patience=6, batch_size=16, frozen_text_layers=0, text_learning_rate=3e-3, learning_rate=3e-3, ema=0.9,
    regions_kept=6, words_dropped=0.0,
)  # fmt: skip
BODY = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1,
        "max_position_embeddings": 32}  # fmt: skip


def photos() -> CachedPhotos:
    """Each photo shows three of twelve things, each in a region of its own, and its captions name them."""
    rng = np.random.default_rng(0)
    looks = rng.normal(3, 2, (12, WIDTH))
    captions, features = [], []
    for _ in range(PHOTOS):
        things = rng.choice(12, 3, replace=False)
        captions.append([" ".join(chr(ord("a") + thing) for thing in rng.permutation(things)) for _ in range(2)])
        cells = rng.normal(3, 0.3, (REGIONS, WIDTH))
        cells[rng.permutation(REGIONS)] += np.resize(np.repeat(looks[things], 3, axis=0), (REGIONS, WIDTH))
        features.append(cells)
    names = [f"photo {n}" for n in range(PHOTOS)]
    return CachedPhotos(names, captions, [np.array(features, np.float16)])


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def start(tokenizer) -> LightningDOT:
    torch.manual_seed(0)
    body = {**BODY, "vocab_size": len(tokenizer)}
    config = LightningDOTConfig(text_config=body, image_config=body, region_dim=WIDTH, projection_dim=16,
                                normalize=True, pooling="mean")  # fmt: skip
    return LightningDOT(config)


def mean_recall(figures: dict[str, dict[str, float]]) -> float:
    return float(np.mean([value for way in figures.values() for value in way.values()]))


@pytest.fixture(scope="module")
def trained(start: LightningDOT, tokenizer) -> LightningDOT:
    some = photos()
    meanings = caption_meanings(start, tokenize(tokenizer, some.captions, 24))
    return train_dual_encoder(start, tokenizer, meanings, some, some, [RECIPE])


def test_the_dual_encoder_learns(start: LightningDOT, trained: LightningDOT, tokenizer) -> None:
    chance = mean_recall({"either way": {f"R@{k}": 100 * k / PHOTOS for k in (1, 5, 10)}})
    assert mean_recall(evaluate_dual(trained, tokenizer, photos())) > 2 * chance


def test_calibration_keeps_the_vectors_and_adds_two_values(trained: LightningDOT, tokenizer) -> None:
    calibrated = calibrate(trained, tokenizer, photos(), anchors=10)
    features, boxes = torch.randn(2, 4, WIDTH), torch.rand(2, 4, 7)
    with torch.inference_mode():
        plain, more = trained.encode_image(features, boxes), calibrated.encode_image(features, boxes)
    assert more.shape[1] == plain.shape[1] + 2
    torch.testing.assert_close(more[:, :16], plain)


def test_the_reranker_learns_and_its_weight_is_chosen(trained: LightningDOT, start: LightningDOT, tokenizer) -> None:
    torch.manual_seed(1)
    some = photos()
    body = {**BODY, "vocab_size": len(tokenizer)}
    config = RerankerConfig(bert_config=body, region_dim=WIDTH, scoring="alignment", region_input="embedded")
    meanings = caption_meanings(start, tokenize(tokenizer, some.captions, 24))
    model = train_reranker(CrossAttentionReranker(config), tokenizer, meanings, some, some, replace(RECIPE, epochs=10))
    model = with_dot_weight(model, trained, tokenizer, some)
    things = "abcdefghijkl"
    right = [text for (text, *_) in some.captions]
    wrong = [" ".join(thing for thing in things if thing not in text)[:5] for text in right]
    with torch.inference_mode():
        images = torch.from_numpy(some.views[0].astype(np.float32)), torch.rand(PHOTOS, REGIONS, 7)
        scores = [model(torch.tensor(tokenizer(texts)["input_ids"]), None, *images) for texts in (right, wrong)]
    assert float((scores[0] > scores[1]).float().mean()) > 0.8
    assert model.config.dot_weight >= 0


def test_a_dual_encoder_learns_from_a_reranker(start: LightningDOT, tokenizer) -> None:
    """The second recipe starts from the first one's best and comes nearer to the teacher's ranking."""
    torch.manual_seed(2)
    some = photos()
    body = {**BODY, "vocab_size": len(tokenizer)}
    teacher = CrossAttentionReranker(RerankerConfig(bert_config=body, region_dim=WIDTH, scoring="alignment"))
    meanings = caption_meanings(start, tokenize(tokenizer, some.captions, 24))
    recipes = [replace(RECIPE, epochs=1), replace(RECIPE, epochs=8, distilled=1.0, teacher_temperature=1.0)]
    students = [
        train_dual_encoder(copy.deepcopy(start), tokenizer, meanings, some, some, stages, teacher=teacher)
        for stages in (recipes[:1], recipes)
    ]
    tokens = [tokenizer(texts[0])["input_ids"] for texts in some.captions]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in tokens], batch_first=True)
    features, boxes = torch.from_numpy(some.views[0].astype(np.float32)), torch.rand(PHOTOS, REGIONS, 7)
    with torch.inference_mode():
        taught = RerankScorer(teacher.eval()).scores(ids, ids > 0, teacher.embed_regions(features, boxes))
        agreement = []
        for student in students:
            ours = student.encode_text(ids, ids > 0) @ student.encode_image(features, boxes).T
            agreement.append(float(torch.corrcoef(torch.stack([ours.flatten(), taught.flatten()]))[0, 1]))
    assert agreement[1] > agreement[0] + 0.1


def test_scale_is_folded_in_and_out() -> None:
    (some,) = standardised(photos())
    linear = torch.nn.Linear(WIDTH, 5)
    before = copy.deepcopy(linear.state_dict())
    plain, scaled = (torch.from_numpy(f) for f in (some.views[0].astype(np.float32), some.standardised(some.views[0])))
    with torch.inference_mode():
        expected = linear(scaled)
        fold_scale(linear, some)
        torch.testing.assert_close(linear(plain), expected, atol=1e-4, rtol=1e-4)
        unfold_scale(linear, some)
    for name, tensor in linear.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=1e-5, rtol=1e-4)


def test_lengths_are_sorted_and_nothing_is_lost() -> None:
    texts = [[1] * n for n in (5, 2, 9, 1, 7, 3, 3)]
    seen = []
    for rows, ids, mask in by_length(texts, groups=3):
        assert mask.sum(1).tolist() == [len(texts[row]) for row in rows]
        assert ids.shape == mask.shape
        seen += rows
    assert sorted(seen) == list(range(7))


def test_soft_targets_share_with_what_means_the_same() -> None:
    meanings = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]]), dim=1)
    target = soft_targets(meanings, 0.2, 0.05)
    assert target[0, 1] == pytest.approx(0.1, abs=1e-3)
    assert target[0, 2] < 1e-6
    torch.testing.assert_close(target.sum(1), torch.ones(3))
