"""From the best model of the last stage to the one that is handed over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from ldot_milvus.models.lightningdot.files import find_lightningdot
from ldot_milvus.models.loading import load_model
from ldot_milvus.regions.grid import GridBackbone
from ldot_milvus.training.checkpoints import copy_folder
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.dot_weight import best_dot_weight
from ldot_milvus.training.dual import calibrate
from ldot_milvus.training.recipe import Recipe
from ldot_milvus.weights import save_quantized


def finish(
    recipe: Recipe, origin: Path, best: Path, target: Path, train: CaptionedPhotos, dev: CaptionedPhotos
) -> None:
    """Write the model in ``best`` to ``target``, with what the recipe's ``finish`` asks for.

    Args:
        origin: the model that the run began with; where that one's hubness was calibrated, this one's is.
    """
    wanted = recipe.finish
    copy_folder(best, target)
    bundle = load_model(str(best), device=None, dtype="float32")
    encoder, reranker = bundle.encoder, bundle.reranker
    if any(stage.task != "rerank" for stage in recipe.stages):
        anchors = wanted.calibration_anchors
        if anchors is None:
            anchors = find_lightningdot(str(origin)).config.get("calibration_anchors", 0)
        if anchors:
            plain = replace(bundle, reranker=None)
            encoder = nn.Module.to(calibrate(plain, train, anchors), bundle.device)
            encoder.save_pretrained(target)
    if wanted.dot_weight and reranker is not None:
        reranker.config.dot_weight = best_dot_weight(replace(bundle, encoder=encoder), dev)
        reranker.save_pretrained(target / "reranker")
    if wanted.storage == "int8":
        kept = tuple(wanted.fuller_storage)
        save_quantized(encoder, target, keep=kept)
        if (encoder.config.region_extractor or {}).get("kind") == "grid":
            save_quantized(GridBackbone.from_pretrained(best / "regions"), target / "regions")
        if reranker is not None:
            save_quantized(reranker, target / "reranker", keep=kept)
