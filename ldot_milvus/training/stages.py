"""The task of a stage: the model in training, its loss, its dev recall, and how it is saved as a complete model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from ldot_milvus.errors import UsageError
from ldot_milvus.models.lightningdot.bundle import Bundle
from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
from ldot_milvus.models.lightningdot.files import RERANKER
from ldot_milvus.models.lightningdot.layers import BertBody
from ldot_milvus.models.lightningdot.pretraining import LightningDOTForPreTraining
from ldot_milvus.training.checkpoints import copy_folder
from ldot_milvus.training.contrastive import ContrastiveObjective, Scorer, fold_scale, standardised, unfold_scale
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.dual import DualScorer, Figures, evaluate_dual, for_training, rebuilt, vectors
from ldot_milvus.training.hard_negatives import mine_hard_negatives
from ldot_milvus.training.pretraining import PretrainingObjective, check_mix, with_heads
from ldot_milvus.training.recipe import Stage, Start
from ldot_milvus.training.rerank import RerankScorer, TripletObjective, evaluate_reranker
from ldot_milvus.training.start import starting_reranker
from ldot_milvus.weights import WEIGHTS_FILE, store_apart

CARD = "README.md"


@dataclass(frozen=True)
class Task:
    """The functions of a stage that depend on its task.

    Attributes:
        objective, evaluate, mine: see :class:`~.trainer.StageRun`.
        train: the photos, standardised if the stage requires it.
        write: writes a scorer's model to a new folder, with the other components of the stage's initial model.
    """

    objective: nn.Module
    train: CaptionedPhotos
    evaluate: Callable[[Any], Figures]
    mine: Callable[[Any], NDArray[np.int32]]
    write: Callable[[Any, Path], None]


def task_of(
    stage: Stage,
    start: Start,
    bundle: Bundle,
    train: CaptionedPhotos,
    dev: CaptionedPhotos,
    device: torch.device,
) -> Task:
    """Create the task of a stage.

    Args:
        stage: the stage.
        start: configuration of a new re-ranker, if the model has none.
        bundle: the stage's initial model.
        train: photos to train on.
        dev: photos to evaluate on.
        device: of the model in training.

    Raises:
        UsageError: the model or the data do not support the stage.
    """
    scorer: Scorer
    if stage.task == "rerank":
        scorer = RerankScorer(starting_reranker(start, bundle.files.folder, stage))
        if scorer.model.alignment is None and not stage.hard_negatives:
            raise UsageError(f"{stage.name}: a re-ranker with joint scoring requires hard_negatives: give 1 or more")
    elif stage.task == "retrieval":
        encoder = bundle.encoder if stage.region_features is None else _reading_first(bundle.encoder, stage)
        scorer = DualScorer(for_training(encoder))
    else:
        labels = train.regions(0).soft_labels
        check_mix(stage, bundle.encoder, None if labels is None else labels.shape[1])
        scorer = DualScorer(_with_heads(bundle))
    original, teacher = train, None
    if stage.distilled:
        if bundle.reranker is None or bundle.reranker.alignment is None:
            raise UsageError(f"{stage.name}: distilled requires a model with a re-ranker of scoring alignment")
        teacher = RerankScorer(copy.deepcopy(bundle.reranker)).to(device).requires_grad_(False)
    if stage.standardise:
        train, dev = standardised(train, dev)
        for linear in [*scorer.inputs(), *([] if teacher is None else teacher.inputs())]:
            unfold_scale(linear, train)
    prepare(scorer, stage, device)
    objective: nn.Module
    if stage.task == "pretrain":
        assert isinstance(scorer, DualScorer)
        objective = PretrainingObjective(scorer)
    elif isinstance(scorer, RerankScorer) and scorer.model.alignment is None:
        objective = TripletObjective(scorer, stage)
    else:
        objective = ContrastiveObjective(scorer, stage, teacher)

    def in_training(scorer: Scorer) -> Bundle:
        on_device = replace(bundle, device=device, dtype=torch.float32)
        if isinstance(scorer, DualScorer):
            return replace(on_device, encoder=scorer.encoder, reranker=None)
        return replace(on_device, encoder=nn.Module.to(bundle.encoder, device), reranker=scorer.model)

    def evaluate(scorer: Scorer) -> Figures:
        if isinstance(scorer, DualScorer):
            return evaluate_dual(LightningDOTEmbedder(in_training(scorer)), dev)
        return evaluate_reranker(in_training(scorer), dev)

    def negatives(scorer: Scorer) -> NDArray[np.int32]:
        photos = train if isinstance(scorer, DualScorer) else original
        dual = replace(in_training(scorer), reranker=None)
        return mine_hard_negatives(*vectors(LightningDOTEmbedder(dual), photos), photos.owner, stage.negative_pool)

    def write(scorer: Scorer, target: Path) -> None:
        scorer = copy.deepcopy(scorer).cpu()
        if stage.standardise:
            for linear in scorer.inputs():
                fold_scale(linear, train)
        scorer.model.set_attn_implementation("sdpa")
        rerank = isinstance(scorer, RerankScorer)
        copy_folder(bundle.files.folder, target, CARD, *([RERANKER] if rerank else []))
        store_apart(target / RERANKER)
        weights = bundle.files.extractor_weights
        if isinstance(weights, Path) and weights.is_dir() and not (target / "regions").exists():
            copy_folder(weights, target / "regions")  # the configuration's path is relative to the initial folder
        scorer.model.save_pretrained(target / RERANKER if rerank else target)

    return Task(objective, train, evaluate, negatives, write)


def _reading_first(encoder: LightningDOT, stage: Stage) -> LightningDOT:
    """Return the encoder with a network that reads the stage's first region features alone."""
    reads = encoder.config.read_region_dim
    assert stage.region_features is not None
    if stage.region_features > reads:
        raise UsageError(f"{stage.name}: region_features is {stage.region_features}, and the model reads {reads}")
    return rebuilt(encoder, first_region_dim=stage.region_features)


def prepare(scorer: Scorer, stage: Stage, device: torch.device) -> None:
    """Apply the stage's settings to the model in training."""
    if device.type == "cpu":
        scorer.model.set_attn_implementation("eager")  # half the time of the fused kernel's backward pass
    if stage.gradient_checkpointing:
        checkpoint_activations(scorer.model)
    frozen = stage.frozen_text_layers
    if isinstance(scorer, DualScorer):
        encoder = scorer.encoder
        if encoder.label_names is not None:
            encoder.label_names.requires_grad_(False)
            frozen = max(frozen or 0, encoder.config.label_shared_layers)  # the sentence encoder reads them too
    if frozen is not None:
        # Frozen layers make a step cheaper, and preserve more of the pre-trained model.
        body = _text_body(scorer)
        for module in (body.embeddings, *body.encoder.layer[:frozen]):
            module.requires_grad_(False)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute the layers' output in the backward pass instead of storing it."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # its name since transformers 5.2x
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _text_body(scorer: Scorer) -> BertBody:
    return scorer.encoder.text_model if isinstance(scorer, DualScorer) else scorer.model.bert


def _with_heads(bundle: Bundle) -> LightningDOTForPreTraining:
    """Load the model with its heads of pre-training, or with newly initialised ones if its folder has none."""
    weights = bundle.files.folder / WEIGHTS_FILE
    with safe_open(weights, framework="pt") as file:
        has_heads = "word_bias" in file.keys()  # noqa: SIM118  (it is no dict)
    if has_heads:
        model: LightningDOTForPreTraining = LightningDOTForPreTraining.from_pretrained(bundle.files.folder)
        return model
    return with_heads(for_training(bundle.encoder))
