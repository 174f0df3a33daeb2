"""Fit the probability of a hit on the dev split, for a model as it is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldot_milvus.evaluation.calibration import Answers, figures, fit_answers, search_collections
from ldot_milvus.evaluation.evaluate import pair_scores
from ldot_milvus.models.calibration import write_calibration
from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
from ldot_milvus.models.lightningdot.files import LightningDOTFiles
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.dual import region_batches, vectors
from ldot_milvus.training.rerank import RERANKED


def fit_probability(folder: Path, photos: CaptionedPhotos) -> dict[str, Any]:
    """Fit the calibrations of both stages, and write them into a model's folder.

    Args:
        folder: of the model; its re-ranker is in ``reranker``.
        photos: with captions, that were not used in training.

    Returns:
        The figures of each stage, see :func:`.evaluation.calibration.figures`.
    """
    embedder = LightningDOTEmbedder(str(folder), dtype="float32")
    return write_probability(embedder.bundle.files, *shown_answers(embedder, photos))


def write_probability(files: LightningDOTFiles, by_dot: Answers, reranked: Answers | None) -> dict[str, Any]:
    """Fit the calibrations to the answers of both stages, write them into the model's folder and return the figures."""
    own = files.own_reranker()
    result = {"dot_product": _write(files.folder, by_dot, files.fitted_for)}
    if reranked is not None and own is not None:
        result["reranked"] = _write(own.folder, reranked, own.fitted_for)
    return result


def shown_answers(embedder: LightningDOTEmbedder, photos: CaptionedPhotos) -> tuple[Answers, Answers | None]:
    """Search small collections of photos by their captions; see :func:`.evaluation.calibration.search_collections`."""
    texts, images = vectors(embedder, photos)
    reranker, score = embedder.reranker, None
    if reranker is not None:
        captions = [caption for captions in photos.captions for caption in captions]
        kept = [record for regions in region_batches(photos) for record in reranker.keep(regions)]
        score = pair_scores(reranker, captions, kept)
    weight = 0.0 if reranker is None else reranker.dot_weight
    return search_collections(texts @ images.T, photos.owner, score, weight, RERANKED)


def _write(folder: Path, answers: Answers, fitted_for: dict[str, Any]) -> dict[str, Any]:
    measured = figures(answers)
    write_calibration(folder, fit_answers(answers), fitted_for, measured)
    return measured
