"""Convert the best model of the last stage to the result of a run."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from ldot_milvus.models.calibration import CALIBRATION
from ldot_milvus.models.lightningdot.bundle import Bundle
from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
from ldot_milvus.models.lightningdot.files import LABELS, RERANKER, find_lightningdot
from ldot_milvus.models.lightningdot.onnx_export import export_graphs
from ldot_milvus.models.loading import load_model
from ldot_milvus.regions.efficientnet import EfficientNetLite
from ldot_milvus.regions.grid import GridBackbone
from ldot_milvus.training.canonical import carried, with_canonical
from ldot_milvus.training.checkpoints import copy_folder
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.dot_weight import best_dot_weight
from ldot_milvus.training.dual import calibrate, reduced
from ldot_milvus.training.probability import fit_probability
from ldot_milvus.training.recipe import Recipe
from ldot_milvus.weights import save_quantized

log = logging.getLogger(__name__)


def anchors_of(recipe: Recipe, origin: Path) -> int:
    """Return the number of anchors of the result's hubness calibration; 0 = none.

    Args:
        recipe: of the run.
        origin: folder of the run's initial model; by default, the result is calibrated if that model is.
    """
    given = recipe.finish.calibration_anchors
    return int(find_lightningdot(str(origin)).config.get("calibration_anchors", 0)) if given is None else given


def finish(
    recipe: Recipe, origin: Path, best: Path, target: Path, train: CaptionedPhotos, dev: CaptionedPhotos
) -> None:
    """Write the model in ``best`` to ``target``, as the recipe's ``finish`` table says.

    Args:
        recipe: of the run.
        origin: folder of the run's initial model.
        best: folder of the best model of the last stage, in a run's folder.
        target: folder of the result.
        train: source of the calibration anchors.
        dev: data on which the weight of the dot product is selected and probabilities are fitted.
    """
    settings = recipe.finish
    copy_folder(best, target)
    bundle = load_model(str(best), device=None, dtype="float32")
    encoder, reranker = bundle.encoder, bundle.reranker
    if recipe.changes_vectors:
        encoder = _completed(recipe, origin, replace(bundle, reranker=None), train)
        encoder.save_pretrained(target)
    if settings.storage == "int8":
        half_precision = tuple(settings.fuller_storage)
        save_quantized(encoder, target, keep=half_precision)
        if (encoder.config.region_extractor or {}).get("kind") == "grid":
            save_quantized(GridBackbone.from_pretrained(best / "regions"), target / "regions")
        if encoder.label_names is not None:
            save_quantized(EfficientNetLite.from_pretrained(best / LABELS), target / LABELS, keep=half_precision)
        if reranker is not None:
            save_quantized(reranker, target / RERANKER, keep=half_precision, part=True)
    if settings.dot_weight and reranker is not None:  # of the weights as stored, as the probabilities are
        stored = load_model(str(target), device=None, dtype="float32")
        assert stored.reranker is not None
        stored.reranker.config.dot_weight = best_dot_weight(stored, dev)
        stored.reranker.config.save_pretrained(target / RERANKER)
    for folder in (target, target / RERANKER):
        (folder / CALIBRATION).unlink(missing_ok=True)  # of the model from which the run started
    export_graphs(target)
    if settings.probability:
        log.info("probability: %s", fit_probability(target, dev))


def _completed(recipe: Recipe, origin: Path, bundle: Bundle, train: CaptionedPhotos) -> LightningDOT:
    """Return the encoder with what is computed after training; by default, as the run's initial model has it."""
    initial = find_lightningdot(str(origin)).config
    principal_dim = recipe.finish.principal_dim
    if principal_dim is None and bundle.encoder.principal is None:
        principal_dim = int(initial.get("principal_dim", 0))
    if principal_dim:
        bundle = replace(bundle, encoder=reduced(bundle, train, principal_dim))
    if recipe.finish.canonical_dim:
        bundle = replace(bundle, encoder=with_canonical(bundle, train, recipe.finish.canonical_dim))
    elif initial.get("canonical_dim") and bundle.encoder.canonical is None:
        source = load_model(str(origin), device=None, dtype="float32").encoder
        bundle = replace(bundle, encoder=carried(bundle.encoder, source))
    if anchors := anchors_of(recipe, origin):
        return calibrate(bundle, train, anchors)
    return bundle.encoder
