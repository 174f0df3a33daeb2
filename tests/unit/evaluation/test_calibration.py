"""Probabilities: the fit, its measure, and the searches on which it is made."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ldot_milvus.evaluation.calibration import (
    COLLECTION,
    SHOWN,
    calibration_error,
    figures,
    fit,
    held_out,
    probabilities,
    reliability,
    search_collections,
)
from ldot_milvus.models.calibration import Calibration, sigmoid


def test_the_fit_finds_the_function_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(-40, 25, 20_000)
    truth = Calibration(0.12, 1.5)
    right = rng.random(20_000) < probabilities(truth, scores)
    found = fit(scores, right)
    assert (found.scale, found.bias) == (pytest.approx(0.12, rel=0.05), pytest.approx(1.5, rel=0.1))
    assert calibration_error(probabilities(found, scores), right) < 0.02


def test_the_fit_of_separable_scores_is_finite() -> None:
    """Platt's targets are not 0 and 1, so the likelihood has a maximum."""
    found = fit(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, False, True, True]))
    assert 0 < found.scale < 100
    assert found.probability(2.5) == pytest.approx(0.5)
    assert found.probability(-1e9) == 0.0
    assert found.probability(1e9) == 1.0
    nothing = fit(np.array([1.0, 2.0]), np.array([False, False]))
    assert nothing.probability(1.5) == pytest.approx(0.25)


def test_sigmoid() -> None:
    assert sigmoid(0) == 0.5
    assert sigmoid(2) == pytest.approx(1 / (1 + math.exp(-2)))


def test_expected_calibration_error_by_hand() -> None:
    likely = np.array([0.9, 0.9, 0.9, 0.9, 0.3, 0.3])
    right = np.array([True, True, True, False, False, True])
    assert calibration_error(likely, right) == pytest.approx(4 / 6 * 0.15 + 2 / 6 * 0.2)
    assert [one.count for one in reliability(likely, right)] == [2, 4]
    assert reliability(np.array([1.0]), np.array([True]))[0].right == 1


def test_searches_with_and_without_the_right_photo() -> None:
    photos, first = 2 * COLLECTION + 30, 8
    owner = np.repeat(np.arange(photos), 2)
    rng = np.random.default_rng(1)
    dots = rng.normal(size=(len(owner), photos)).astype(np.float32)
    dots[np.arange(len(owner)), owner] += 2
    crossed = rng.normal(size=dots.shape).astype(np.float32)
    by_dot, reranked = search_collections(dots, owner, lambda texts, own: crossed[texts, own], 3.0, first)
    assert reranked is not None
    total = crossed + 3 * dots
    for search in (0, 5, 2 * COLLECTION, len(owner) - 1):
        own = owner[search]
        start = min(own // COLLECTION * COLLECTION, photos - COLLECTION)
        collection = np.arange(start, start + COLLECTION)
        for absent in (False, True):
            present = collection[collection != own] if absent else collection
            nearest = present[np.argsort(-dots[search, present])][:first]
            best = nearest[np.argsort(-total[search, nearest])][:SHOWN]
            row = search + absent * len(owner)
            np.testing.assert_allclose(by_dot.scores[row], dots[search, nearest[:SHOWN]])
            np.testing.assert_allclose(reranked.scores[row], total[search, best], rtol=1e-6)
            assert list(reranked.right[row]) == list(best == own)
    assert not reranked.right[len(owner) :].any()
    assert held_out(reranked).shape == reranked.scores.shape
    assert figures(by_dot)["searches"] == 2 * len(owner)
    assert search_collections(dots, owner, None, 0.0, first)[1] is None
