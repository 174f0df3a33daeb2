"""Recall@K against a computation written for this test alone."""

from __future__ import annotations

import numpy as np
import pytest

from ldot_milvus.evaluation.evaluate import first_columns
from ldot_milvus.evaluation.recall import both_ways


def naive(scores: np.ndarray, owner: np.ndarray) -> dict:
    """Sort each row with the worst luck at ties: right answers last among equals."""
    captions, photos = scores.shape
    text = dict.fromkeys((1, 5, 10), 0)
    image = dict.fromkeys((1, 5, 10), 0)
    for c in range(captions):
        order = sorted(range(photos), key=lambda p: (-scores[c, p], p == owner[c]))
        for k in text:
            text[k] += owner[c] in order[:k]
    for p in range(photos):
        order = sorted(range(captions), key=lambda c: (-scores[c, p], owner[c] == p))
        for k in image:
            image[k] += any(owner[c] == p for c in order[:k])
    return {
        "text_to_image": {f"R@{k}": round(100 * n / captions, 2) for k, n in text.items()},
        "image_to_text": {f"R@{k}": round(100 * n / photos, 2) for k, n in image.items()},
    }


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_the_naive_computation_ties_included(seed: int) -> None:
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(30), rng.integers(1, 6, 30))
    # A few distinct values only, so that most ranks hang on how ties are treated.
    scores = rng.integers(0, 4 if seed % 2 else 1000, (len(owner), 30)).astype(np.float32)
    assert both_ways(scores, owner) == naive(scores, owner)


def test_a_model_that_scores_everything_the_same_finds_nothing() -> None:
    figures = both_ways(np.ones((50, 20), np.float32), np.arange(50) % 20)
    assert {value for way in figures.values() for value in way.values()} == {0.0}


def test_first_columns_marks_the_largest() -> None:
    scores = np.random.default_rng(0).normal(size=(7, 40))
    marks = first_columns(scores, 5)
    assert (marks.sum(1) == 5).all()
    for row, mark in zip(scores, marks, strict=True):
        assert row[mark].min() > row[~mark].max()
    assert first_columns(scores, 99).all()
