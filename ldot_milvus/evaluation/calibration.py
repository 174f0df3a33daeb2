"""Fit the probability of an answer to searches with known right answers, and measure how true it is.

A score alone does not decide how probable an answer is: the more photos a collection has, and the more searches have
no right answer in it, the more wrong photos reach the same score. The fit is therefore made on collections of
:data:`COLLECTION` photos, each searched by every caption twice: once as it is, and once without the caption's photo.
It is made on the first answer of each search, which decides whether something was found. The other answers a user sees
are rarer right at the same score, because one photo is right; their probabilities are too high by a few percent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.evaluation.ranking import Indices, Scores, first_columns
from ldot_milvus.models.calibration import Calibration

COLLECTION = 100
"""Number of photos of a collection that is searched for the fit."""

SHOWN = 5
"""Number of answers of a search that a user sees (the default of ``ldot search -k``)."""

BINS = 15

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Answers:
    """The first answers of S searches, best first.

    Attributes:
        photo: (S,), the photo of each search's caption.
        scores: (S, SHOWN).
        right: (S, SHOWN), True for the caption's own photo. In the second half of the searches it was not there.
    """

    photo: Indices
    scores: Scores
    right: Flags

    def of(self, rows: Flags) -> Answers:
        """Return some of the searches."""
        return Answers(self.photo[rows], self.scores[rows], self.right[rows])


@dataclass(frozen=True)
class Bin:
    """Answers of similar probability.

    Attributes:
        count: number of answers.
        probability: their mean probability.
        right: the fraction that is right.
    """

    count: int
    probability: float
    right: float


def search_collections(
    dots: Scores, owner: Indices, score: Callable[[Indices, Indices], Scores] | None, dot_weight: float, first: int
) -> tuple[Answers, Answers | None]:
    """Search collections of :data:`COLLECTION` photos by every caption, with and without the caption's own photo.

    Args:
        dots: (C, N), the dot products of captions and photos.
        owner: (C,), the photo of each caption, in order of photo.
        score: returns the re-ranker's scores of pairs (:func:`.evaluate.pair_scores`); None without a re-ranker.
        dot_weight: weight of the dot product that is added to these scores.
        first: number of candidates that are re-ranked.

    Returns:
        The answers by dot product, and the re-ranked ones.
    """
    captions, photos = dots.shape
    size = min(COLLECTION, photos)
    start = np.minimum(owner // size * size, photos - size)  # of the caption's collection
    columns = start[:, None] + np.arange(size)
    scores = np.take_along_axis(dots, columns, 1)
    nearest = first_columns(scores, min(first + 1, size))
    candidates, values = np.take_along_axis(columns, nearest, 1), np.take_along_axis(scores, nearest, 1)
    right = candidates == owner[:, None]
    by_dot = _answers(owner, values, values, right, first)
    if score is None:
        return by_dot, None
    pairs = score(np.repeat(np.arange(captions), candidates.shape[1]), candidates.ravel())
    totals = pairs.reshape(candidates.shape) + np.float32(dot_weight) * values
    return by_dot, _answers(owner, totals, values, right, first)


def _answers(owner: Indices, totals: Scores, dots: Scores, right: Flags, first: int) -> Answers:
    """Rank the first candidates by ``totals``, with the right photo among them and without it."""
    shown = min(SHOWN, totals.shape[1] - 1)
    found, flags = [], []
    for allowed in (np.ones_like(right), ~right):
        order = np.argsort(np.where(allowed, -dots, np.inf), axis=1, kind="stable")[:, :first]
        considered = np.take_along_axis(np.where(allowed, totals, -np.inf), order, 1)
        best = np.argsort(-considered, axis=1, kind="stable")[:, :shown]
        found.append(np.take_along_axis(considered, best, 1))
        flags.append(np.take_along_axis(np.take_along_axis(right, order, 1), best, 1))
    return Answers(np.concatenate([owner, owner]), np.concatenate(found), np.concatenate(flags))


def fit_answers(answers: Answers) -> Calibration:
    """Fit a calibration to the first answer of each search."""
    return fit(answers.scores[:, 0], answers.right[:, 0])


def fit(scores: NDArray[np.floating], right: Flags) -> Calibration:
    """Fit a logistic function by maximum likelihood, with the targets of Platt (1999), section 2.2, by Newton's method.

    Args:
        scores: (n,).
        right: (n,), both values occur.
    """
    values = scores.astype(np.float64)
    mean, deviation = values.mean(), values.std() or 1.0
    inputs = np.stack([(values - mean) / deviation, np.ones_like(values)])
    positive, negative = int(right.sum()), int((~right).sum())
    targets = np.where(right, (positive + 1) / (positive + 2), 1 / (negative + 2))
    weights = np.zeros(2)
    for _ in range(50):
        probabilities = _sigmoid(weights @ inputs)
        gradient = inputs @ (probabilities - targets)
        hessian = (inputs * (probabilities * (1 - probabilities))) @ inputs.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    scale = float(weights[0] / deviation)
    return Calibration(scale, float(weights[1] - scale * mean))


def probabilities(calibration: Calibration, scores: NDArray[np.floating]) -> Floats:
    """Return the probabilities of many scores."""
    return _sigmoid(calibration.scale * scores.astype(np.float64) + calibration.bias)


def reliability(probabilities: Floats, right: Flags, bins: int = BINS) -> list[Bin]:
    """Group answers by probability in bins of equal width, without empty bins: the points of a reliability diagram."""
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    return [
        Bin(int(rows.sum()), float(probabilities[rows].mean()), float(right[rows].mean()))
        for number in range(bins)
        if (rows := place == number).any()
    ]


def calibration_error(probabilities: Floats, right: Flags, bins: int = BINS) -> float:
    """Return the expected calibration error: the mean distance of probability and fraction over all bins.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """
    found = reliability(probabilities, right, bins)
    return sum(one.count * abs(one.probability - one.right) for one in found) / len(probabilities)


def held_out(answers: Answers) -> Floats:
    """Return probabilities (S, SHOWN) of a two-fold cross-validation: fitted on the other half of the photos."""
    result = np.empty(answers.scores.shape)
    for half in (0, 1):
        rows: Flags = answers.photo % 2 == half
        fitted = fit_answers(answers.of(~rows))
        result[rows] = probabilities(fitted, answers.scores[rows])
    return result


def figures(answers: Answers) -> dict[str, Any]:
    """Return how true the probabilities are, of the first answers and of all shown, by two-fold cross-validation."""
    likely = held_out(answers)
    return {
        "photos": len(np.unique(answers.photo)),
        "searches": len(answers.photo),
        "first_answers_right": round(float(answers.right[:, 0].mean()), 4),
        "expected_calibration_error": round(calibration_error(likely[:, 0], answers.right[:, 0]), 4),
        "expected_calibration_error_of_all_shown": round(calibration_error(likely.ravel(), answers.right.ravel()), 4),
    }


def _sigmoid(logits: Floats) -> Floats:
    result: Floats = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
    return result
