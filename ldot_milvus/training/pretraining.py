"""Pre-train a ``LightningDOTForPreTraining``: each batch has one of the objectives CMR, VMLM and SMRM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldot_milvus.errors import UsageError
from ldot_milvus.models.lightningdot.configuration import LightningDOTConfig
from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
from ldot_milvus.models.lightningdot.pretraining import LightningDOTForPreTraining
from ldot_milvus.training.batches import Batch
from ldot_milvus.training.contrastive import all_scores, both_directions
from ldot_milvus.training.dual import DualScorer
from ldot_milvus.training.processes import mean
from ldot_milvus.training.recipe import Stage


class PretrainingObjective(nn.Module):
    """The loss of pre-training, by the objective of the batch."""

    def __init__(self, scorer: DualScorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, batch: Batch) -> Tensor:
        """Compute a loss whose mean over processes is the loss of the joint batch."""
        model = self.scorer.model
        assert isinstance(model, LightningDOTForPreTraining)
        if batch.objective == "cmr":
            logits = all_scores(self.scorer, batch)
            return both_directions(logits, torch.eye(len(logits), device=logits.device))
        regions = (batch.features, batch.boxes, batch.region_mask)
        if batch.objective == "vmlm":
            assert batch.labels is not None
            return mean(model.masked_words(batch.ids, batch.mask, batch.labels, *regions)[0])
        assert batch.masked_regions is not None
        states = model.masked_region_states(batch.ids, batch.mask, *regions, batch.masked_regions)
        if batch.objective == "smrm_features":
            return mean(model.region_features(states, batch.features[batch.masked_regions])[0])
        assert batch.soft_labels is not None
        if batch.objective == "smrm_kl":
            # The divergences of a region are summed over classes, and averaged over regions.
            return mean(model.region_classes(states, batch.soft_labels)[0].sum(-1))
        return mean(model.region_class(states, batch.soft_labels))


def with_heads(encoder: LightningDOT) -> LightningDOTForPreTraining:
    """Return the dual encoder with newly initialised heads for pre-training."""
    config: LightningDOTConfig = encoder.config  # type: ignore[assignment]
    model = LightningDOTForPreTraining(config)
    model.lightningdot.load_state_dict(encoder.state_dict())
    return model


def check_mix(stage: Stage, model: LightningDOT, classes: int | None) -> None:
    """Refuse objectives that the model or the data do not support.

    Args:
        stage: with the mix of objectives.
        model: the dual encoder.
        classes: number of classes of the data's soft labels; None if the data have none.

    Raises:
        UsageError: an objective is not supported. The message names it.
    """
    config: LightningDOTConfig = model.config  # type: ignore[assignment]
    objectives = [name for name, weight in stage.mix.items() if weight]
    words, decodable = config.text_config.vocab_size, config.image_config.vocab_size
    if "vmlm" in objectives and decodable < words:
        raise UsageError(
            f"vmlm decodes words with the image encoder's word embeddings, and this model has {decodable} of {words}: "
            "start from a model with all of them, or remove vmlm from the mix"
        )
    labelled = [name for name in objectives if name in ("smrm_kl", "smrm_class")]
    if labelled and classes is None:
        raise UsageError(
            f"{' and '.join(labelled)} learn a detector's soft labels, and the training data's regions have none: "
            "remove them from the mix"
        )
    if labelled and classes != config.region_classes:
        raise UsageError(
            f"the regions' soft labels have {classes} classes, the model has {config.region_classes}: "
            f"remove {' and '.join(labelled)} from the mix"
        )
