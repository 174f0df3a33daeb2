"""The probability that an answer is right, from the score of a stage. Read without torch.

A calibration fitted on data is kept in ``calibration.json`` beside the weights of its stage. No fingerprint includes
the file: fitting it again leaves vectors, region data and collections valid.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ldot_milvus.errors import ModelError
from ldot_milvus.models.base import Array, KeptImage, Text

CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """A logistic function of the score (Platt, Probabilistic outputs for support vector machines, 1999).

    Attributes:
        scale: factor of the score.
        bias: what is added to the product.
    """

    scale: float
    bias: float

    def probability(self, score: float) -> float:
        """Return the probability that a text and an image with this score belong together."""
        return sigmoid(self.scale * score + self.bias)


@runtime_checkable
class Calibrated(Protocol):
    """An embedder or a re-ranker whose scores have probabilities.

    Attributes:
        calibration: of an embedder, for the dot product of a text and an image. Of a re-ranker, for a hit's
            ``rerank_score``, the weighted dot product included. None if it is not known.
    """

    @property
    def calibration(self) -> Calibration | None: ...  # noqa: D102


@runtime_checkable
class MatchingReranker(Protocol):
    """A re-ranker that was trained to tell pairs that match from pairs that do not: its logits are probabilities."""

    def score_and_match(self, texts: Iterable[Text], kept: Sequence[KeptImage]) -> tuple[Array, Array]:
        """Score text i with image i.

        Returns:
            The scores of :meth:`.base.Reranker.score`, and the logits (n,) of the probability that the two match.
        """
        ...


def sigmoid(logit: float) -> float:
    """Return the probability of a logit, without overflow."""
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def calibration_of(model: object) -> Calibration | None:
    """Return the calibration of an embedder or a re-ranker; None if it has none."""
    return model.calibration if isinstance(model, Calibrated) else None


def read_calibration(name: str, folder: Path, fitted_for: Callable[[], dict[str, Any]]) -> Calibration | None:
    """Read the calibration in a folder.

    Args:
        name: the model's name, for messages.
        folder: the folder of the weights.
        fitted_for: returns what determines the scores, as it was given to :func:`write_calibration`. It is called only
            if there is a calibration, because it hashes weights.

    Returns:
        The calibration; None if there is none, or it was fitted for other scores.

    Raises:
        ModelError: the file is damaged.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        calibration = Calibration(float(content["scale"]), float(content["bias"]))
        fits = content["fitted_for"] == fitted_for()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"model {name!r}: {path} cannot be read ({error!r}): copy the file again, or remove it to search without "
            "probabilities"
        ) from error
    return calibration if fits else None


def write_calibration(
    folder: Path, calibration: Calibration, fitted_for: dict[str, Any], figures: dict[str, Any]
) -> None:
    """Write a calibration.

    Args:
        folder: the folder of the weights.
        calibration: the calibration.
        fitted_for: what determines the scores, as hashes.
        figures: on what it was fitted and how well it fits, for readers.
    """
    content = {**asdict(calibration), "fitted_for": fitted_for, "figures": figures}
    (folder / CALIBRATION).write_text(json.dumps(content, indent=2) + "\n")
