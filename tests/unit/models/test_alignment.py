"""Word-region alignment against the paper's equations, written as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ldot_milvus.model import CrossAttentionReranker, RerankerConfig
from ldot_milvus.models.lightningdot.alignment import WordRegionAlignment

TEXTS, IMAGES, WIDTH = 3, 4, 8


@pytest.fixture(scope="module", params=[False, True], ids=["from words", "both directions"])
def alignment(request: pytest.FixtureRequest) -> WordRegionAlignment:
    torch.manual_seed(0)
    return WordRegionAlignment(WIDTH, both=request.param).eval()


@pytest.fixture(scope="module")
def sides() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    words = torch.randn(TEXTS, 6, WIDTH, generator=generator)
    regions = torch.randn(IMAGES, 5, WIDTH, generator=generator)
    text_mask = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
    region_mask = torch.arange(5) < torch.tensor([5, 1, 3, 4])[:, None]
    return words, text_mask, regions, region_mask


def by_hand(alignment: WordRegionAlignment, words: np.ndarray, regions: np.ndarray) -> float:
    """SCAN (Lee et al., ECCV 2018), text to image, and the mean with image to text."""
    sharpness = math.exp(alignment.log_sharpness)
    score = one_direction(alignment.importance, sharpness, words, regions)
    if alignment.region_importance is not None:
        score = (score + one_direction(alignment.region_importance, sharpness, regions, words)) / 2
    return score * math.exp(alignment.log_scale)


def one_direction(importance: torch.nn.Linear, sharpness: float, queries: np.ndarray, context: np.ndarray) -> float:
    """Equations 1 to 3, then a weighted mean over the queries."""
    unit = [v / np.linalg.norm(v) for v in context]
    cosine = np.array([[q @ v / np.linalg.norm(q) for v in unit] for q in queries])
    positive = np.maximum(cosine, 0)
    shown = positive / np.maximum(np.sqrt((positive**2).sum(0)), 1e-6)
    found = []
    for query, row in zip(queries, shown, strict=True):
        attention = np.exp(row * sharpness)
        attention /= attention.sum()
        attended = sum(a * v for a, v in zip(attention, unit, strict=True))
        found.append(query @ attended / np.linalg.norm(query) / np.linalg.norm(attended))
    logits = queries @ importance.weight[0].numpy() + importance.bias.numpy()
    weights = np.exp(logits) / np.exp(logits).sum()
    return float(weights @ np.array(found))


@torch.inference_mode()
def test_every_pair_scores_as_the_equations_say(alignment: WordRegionAlignment, sides: tuple[Tensor, ...]) -> None:
    words, text_mask, regions, region_mask = sides
    scores = alignment.all_pairs(words, text_mask, regions, region_mask)
    for text in range(TEXTS):
        for image in range(IMAGES):
            expected = by_hand(alignment, words[text][text_mask[text]].numpy(),
                               regions[image][region_mask[image]].numpy())  # fmt: skip
            assert float(scores[text, image]) == pytest.approx(expected, abs=1e-4)


@torch.inference_mode()
def test_single_pairs_score_as_all_pairs(alignment: WordRegionAlignment, sides: tuple[Tensor, ...]) -> None:
    words, text_mask, regions, region_mask = sides
    scores = alignment.all_pairs(words, text_mask, regions, region_mask)
    text, image = torch.cartesian_prod(torch.arange(TEXTS), torch.arange(IMAGES)).T
    pairs = alignment(words[text], text_mask[text], regions[image], region_mask[image])
    torch.testing.assert_close(pairs.view(TEXTS, IMAGES), scores, atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("both", [False, True])
def test_text_and_image_encoded_separately_have_the_same_score(both: bool) -> None:
    """Words and regions encoded separately score as the complete model does, and padding changes nothing."""
    torch.manual_seed(2)
    body = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
            "vocab_size": 200, "max_position_embeddings": 16}  # fmt: skip
    config = RerankerConfig(bert_config=body, region_dim=24, scoring="alignment", region_alignment=both)
    model = CrossAttentionReranker(config).eval()
    ids, features, boxes = torch.randint(1, 200, (3, 7)), torch.randn(3, 5, 24), torch.rand(3, 5, 7)
    mask = torch.arange(7) < torch.tensor([7, 4, 2])[:, None]
    present = torch.arange(5) < torch.tensor([2, 5, 3])[:, None]
    whole = model(ids, mask, features, boxes, present)
    apart = model.score(model.encode_words(ids, mask), mask, model.embed_regions(features, boxes), present)
    assert torch.equal(whole, apart)
    for row in range(3):
        t, r = int(mask[row].sum()), int(present[row].sum())
        alone = model(ids[row : row + 1, :t], None, features[row : row + 1, :r], boxes[row : row + 1, :r])
        torch.testing.assert_close(alone[0], whole[row], atol=1e-4, rtol=0)
