"""Recall@K and the ranks after re-ranking, compared with independent computations."""

from __future__ import annotations

import numpy as np
import pytest

from ldot_milvus.evaluation import ranking
from ldot_milvus.evaluation.ranking import first_columns, search_both_ways
from ldot_milvus.evaluation.recall import both_ways
from tests.tolerance import rank_bounds, slack

CUTS = (1, 5, 10)


def numpy_recall(scores: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Sort each query's candidates, correct ones last among equals, and count queries with one in the first K."""
    order = np.lexsort((right, -scores), axis=1)
    hits = np.take_along_axis(right, order, 1)
    return {f"R@{k}": round(100 * hits[:, :k].any(1).mean(), 2) for k in CUTS}


def numpy_both(scores: np.ndarray, owner: np.ndarray) -> dict[str, dict[str, float]]:
    right = owner[:, None] == np.arange(scores.shape[1])
    return {"text_to_image": numpy_recall(scores, right), "image_to_text": numpy_recall(scores.T, right.T)}


def numpy_reranked(scores: np.ndarray, crossed: np.ndarray, right: np.ndarray, count: int) -> dict[str, float]:
    """Return the first ``count`` by ``scores`` in order of ``crossed``, then the others in their old order."""
    order = np.lexsort((right, -scores), axis=1)
    hits = np.zeros((len(scores), max(CUTS)), bool)
    for row, columns in enumerate(order):
        first = columns[:count]
        again = first[np.lexsort((right[row, first], -crossed[row, first]))]
        ranked = np.concatenate([again, columns[count:]])[: max(CUTS)]
        hits[row, : len(ranked)] = right[row, ranked]
    return {f"R@{k}": round(100 * hits[:, :k].any(1).mean(), 2) for k in CUTS}


def a_set(seed: int, photos: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw vectors of few distinct integers, so that most ranks depend on ties and every product is exact."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(photos), rng.integers(1, 6, photos))
    span = 2 if seed % 2 else 30
    images = rng.integers(-span, span + 1, (photos, 3)).astype(np.float32)
    texts = images[owner] + rng.integers(-1, 2, (len(owner), 3))
    return texts.astype(np.float32), images, owner


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_a_few_lines_of_numpy_ties_included(seed: int) -> None:
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(30), rng.integers(1, 6, 30))
    # A few distinct values only, so that most ranks hang on how ties are treated.
    scores = rng.integers(0, 4 if seed % 2 else 1000, (len(owner), 30)).astype(np.float32)
    assert both_ways(scores, owner) == numpy_both(scores, owner)


@pytest.mark.parametrize("seed", range(8))
def test_the_search_in_blocks_agrees_too(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "BLOCK", 200)
    texts, images, owner = a_set(seed)
    assert search_both_ways(texts, images, owner).recall() == numpy_both(texts @ images.T, owner)


def test_a_constant_score_has_zero_recall() -> None:
    owner = np.arange(50) % 20
    for scores in (np.ones((50, 20), np.float32), np.full((50, 20), np.nan, np.float32)):
        assert {value for way in both_ways(scores, owner).values() for value in way.values()} == {0.0}
    found = search_both_ways(np.ones((50, 4), np.float32), np.ones((20, 4), np.float32), owner, 15)
    # Not even by a re-ranker that knows: among equals the right one is not among the first.
    crossed = found.rerank(lambda rows, columns: (owner[rows] == columns).astype(np.float32))
    assert {value for way in crossed.recall(15).values() for value in way.values()} == {0.0}


@pytest.mark.parametrize("seed", range(8))
def test_no_pair_is_scored_twice_and_ties_count_against_the_model(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties everywhere: of dot products, of the re-ranker's scores and of both together."""
    monkeypatch.setattr(ranking, "BLOCK", 200)
    texts, images, owner = a_set(seed)
    dots = texts @ images.T
    matrix = np.random.default_rng(seed).integers(0, 5, dots.shape).astype(np.float32)
    asked: list[tuple[int, int]] = []

    def score(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        assert (np.diff(rows) >= 0).all()
        asked.extend(zip(rows.tolist(), columns.tolist(), strict=True))
        return matrix[rows, columns]

    crossed = search_both_ways(texts, images, owner, 20).rerank(score)
    assert len(set(asked)) == len(asked)  # no pair twice
    assert crossed.recall(0) == numpy_both(dots, owner)
    everything = search_both_ways(texts, images, owner, len(owner)).rerank(score)
    for weight in (0.0, 0.5):
        assert everything.recall(len(owner), weight) == numpy_both(matrix + weight * dots, owner)


@pytest.mark.parametrize("seed", range(6))
def test_re_ranking_the_first_few(seed: int) -> None:
    """No two dot products of a query are the same, but many of the re-ranker's scores are."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    while True:  # in steps of 1/512, so that every product is exact whatever the order in which it is summed
        images = (rng.normal(size=(40, 6)) * 512).round().astype(np.float32) / 512
        texts = images[owner] + (rng.normal(size=(len(owner), 6)) * 512).round().astype(np.float32) / 512
        dots = texts @ images.T
        if all(len(np.unique(row)) == len(row) for scores in (dots, dots.T) for row in scores):
            break
    assert np.abs(texts).max() * np.abs(images).max() * 6 * 512**2 < 2**25
    matrix = rng.integers(0, 6, (len(owner), 40)).astype(np.float32)
    right = owner[:, None] == np.arange(40)
    crossed = search_both_ways(texts, images, owner, 20).rerank(lambda rows, columns: matrix[rows, columns])
    for count in (1, 2, 5, 10, 20):
        assert crossed.recall(count) == {
            "text_to_image": numpy_reranked(dots, matrix, right, count),
            "image_to_text": numpy_reranked(dots.T, matrix.T, right.T, count),
        }


@pytest.mark.parametrize("seed", range(6))
def test_the_bounds_of_ties_contain_every_resolution(seed: int) -> None:
    """Of tests/tolerance.py: by dot product, and with the first ten re-ranked."""
    rng = np.random.default_rng(seed)
    texts, images, owner = a_set(seed)
    right = owner[:, None] == np.arange(len(images))
    dots, crossed = texts @ images.T, rng.integers(1, 40, right.shape).astype(np.float32)
    for count in (0, 10):
        best, worst = rank_bounds(dots, right, crossed=crossed, count=count)
        seen = []
        for _ in range(30):
            noisy, again = (scores + rng.uniform(-0.4, 0.4, right.shape) * slack(scores) for scores in (dots, crossed))
            order = np.argsort(-noisy, axis=1)
            first = order[:, :count]
            order[:, :count] = np.take_along_axis(first, np.argsort(-np.take_along_axis(again, first, 1), axis=1), 1)
            hits = np.take_along_axis(right, order, 1)
            seen.append((np.cumsum(~hits, axis=1) * hits + len(images) * ~hits).min(1))
        assert (best <= np.min(seen, axis=0)).all()
        assert (np.max(seen, axis=0) <= worst).all()
        assert (best == np.min(seen, axis=0)).mean() > 0.6  # and they are no wider than they must be
        assert (np.max(seen, axis=0) == worst).mean() > 0.6
        apart = dots + rng.random(right.shape), crossed + rng.random(right.shape)
        np.testing.assert_array_equal(*rank_bounds(apart[0], right, crossed=apart[1], count=count, near=0))  # no ties


def test_candidates_outside_the_queries_are_only_searched() -> None:
    texts, images, owner = a_set(2)
    asking = int((owner < 10).sum())
    found = search_both_ways(texts, images, owner, queries=(asking, 10)).recall()
    right = owner[:, None] == np.arange(len(images))
    scores = texts @ images.T
    assert found["text_to_image"] == numpy_recall(scores[:asking], right[:asking])
    assert found["image_to_text"] == numpy_recall(scores.T[:10], right.T[:10])


def test_first_columns_are_the_largest_in_order() -> None:
    scores = np.random.default_rng(0).normal(size=(7, 40)).astype(np.float32)
    np.testing.assert_array_equal(first_columns(scores, 5), np.argsort(-scores, axis=1)[:, :5])
    np.testing.assert_array_equal(first_columns(scores, 40), np.argsort(-scores, axis=1))
