"""Pre-training: CMR, VMLM and SMRM by turns, on a ``LightningDOTForPreTraining``."""

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
    """The loss of the objective whose turn a batch is."""

    def __init__(self, scorer: DualScorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, batch: Batch) -> Tensor:
        """A loss whose mean over processes is that of the joined batch."""
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
            # Over classes the divergences of a region are added up, over regions their mean is taken.
            return mean(model.region_classes(states, batch.soft_labels)[0].sum(-1))
        return mean(model.region_class(states, batch.soft_labels))


def with_heads(encoder: LightningDOT) -> LightningDOTForPreTraining:
    """The dual encoder with fresh heads for pre-training."""
    config: LightningDOTConfig = encoder.config  # type: ignore[assignment]
    model = LightningDOTForPreTraining(config)
    model.lightningdot.load_state_dict(encoder.state_dict())
    return model


def check_mix(stage: Stage, model: LightningDOT, classes: int | None) -> None:
    """Refuse objectives that the model or the data cannot serve.

    Args:
        classes: of the data's soft labels; None where it has none.

    Raises:
        UsageError: naming the objective.
    """
    config: LightningDOTConfig = model.config  # type: ignore[assignment]
    asked = [name for name, weight in stage.mix.items() if weight]
    words, decodable = config.text_config.vocab_size, config.image_config.vocab_size
    if "vmlm" in asked and decodable < words:
        raise UsageError(
            f"vmlm decodes words by the image encoder's word embeddings, and this model's has {decodable} of {words}: "
            "start from a model with all of them, or leave vmlm out of the mix"
        )
    labelled = [name for name in asked if name in ("smrm_kl", "smrm_class")]
    if labelled and classes is None:
        raise UsageError(
            f"{' and '.join(labelled)} learn a detector's soft labels, and the training data's regions have none: "
            "leave them out of the mix"
        )
    if labelled and classes != config.region_classes:
        raise UsageError(f"the regions' soft labels are of {classes} classes, the model knows {config.region_classes}")
