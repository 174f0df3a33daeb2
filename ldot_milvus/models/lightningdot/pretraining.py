"""LightningDOT's three pre-training objectives (section 3.2 and 3.3 of the paper) on top of the dual encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from ldot_milvus.models.lightningdot.configuration import LightningDOTConfig
from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
from ldot_milvus.models.lightningdot.layers import BertBasedModel

IGNORE_INDEX = -1
"""Label of a token that masked language modelling does not ask for."""


class LightningDOTForPreTraining(BertBasedModel):
    """CMR, VMLM and SMRM. Each loss is given by element, not averaged, as in the published code.

    The decoder of words is the **image** encoder's word embedding and the decoder of region features is the image
    encoder's ``img_linear``, both in the published code. They are used where they are, so nothing can come untied.
    The configuration's ``fusion`` says how the other side's [CLS] state joins: "add" (published: ``cls_concat``),
    "multiply" or "none".
    """

    config_class = LightningDOTConfig
    base_model_prefix = "lightningdot"

    def __init__(self, config: LightningDOTConfig) -> None:
        super().__init__(config)
        body = config.image_config
        self.lightningdot = LightningDOT(config)
        self.word_transform = BertPredictionHeadTransform(body)
        self.word_bias = nn.Parameter(torch.zeros(body.vocab_size))
        self.feature_transform = _transform(body.hidden_size)
        self.feature_bias = nn.Parameter(torch.zeros(config.region_dim))
        self.region_classifier = nn.Sequential(
            *_transform(body.hidden_size), nn.Linear(body.hidden_size, config.region_classes)
        )
        self.post_init()

    def masked_words(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor,
        region_features: Tensor, region_boxes: Tensor, region_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """VMLM: masked words, with the whole image to help.

        Args:
            input_ids: (B, T) with some tokens masked; ``labels`` (B, T): the tokens behind them, -1 elsewhere.
            region_features, region_boxes, region_mask: as of :meth:`LightningDOT.encode_image`.

        Returns:
            Cross-entropy (N,) and scores (N, vocabulary) of the N masked tokens, in order.
        """
        words = self.lightningdot.text_states(input_ids, attention_mask)
        image = self.lightningdot.image_states(region_features, region_boxes, region_mask)[:, :1]
        asked = labels != IGNORE_INDEX
        hidden = self.word_transform(self._fused(words, image)[asked])
        decoder = self.lightningdot.image_model.embeddings.word_embeddings.weight
        scores = nn.functional.linear(hidden, decoder, self.word_bias)
        return nn.functional.cross_entropy(scores, labels[asked], reduction="none"), scores

    def masked_region_states(
        self, input_ids: Tensor, attention_mask: Tensor,
        region_features: Tensor, region_boxes: Tensor, region_mask: Tensor, masked_regions: Tensor,
    ) -> Tensor:  # fmt: skip
        """SMRM's input to its heads: states (N, H) of the N regions that ``masked_regions`` (B, R) marks."""
        states = self.lightningdot.image_states(region_features, region_boxes, region_mask, masked_regions)[:, 1:]
        text = self.lightningdot.text_states(input_ids, attention_mask)[:, :1]
        return self._fused(states, text)[masked_regions.bool()]

    def region_features(self, states: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """SMRM, feature regression: squared errors and predictions (N, region_dim) for ``features`` of that shape."""
        reader = self.lightningdot.image_model.img_embeddings
        assert reader is not None
        predicted = nn.functional.linear(self.feature_transform(states), reader.img_linear.weight.T, self.feature_bias)
        return nn.functional.mse_loss(predicted, features, reduction="none"), predicted

    def region_classes(self, states: Tensor, soft_labels: Tensor) -> tuple[Tensor, Tensor]:
        """SMRM, classification by KL: divergences and log-probabilities (N, region_classes).

        ``soft_labels`` (N, region_classes) are the detector's probabilities, background first.
        """
        predicted = self.region_classifier(states).log_softmax(-1)
        return nn.functional.kl_div(predicted, soft_labels, reduction="none"), predicted

    def region_class(self, states: Tensor, soft_labels: Tensor) -> Tensor:
        """SMRM, classification by cross-entropy (N,) to the likeliest label that is not the background."""
        labels = soft_labels[:, 1:].argmax(-1) + 1
        return nn.functional.cross_entropy(self.region_classifier(states), labels, reduction="none")

    def _fused(self, states: Tensor, other: Tensor) -> Tensor:
        if self.config.fusion == "add":
            return states + other
        return states * other if self.config.fusion == "multiply" else states


def cross_modal_retrieval(text: Tensor, image: Tensor) -> Tensor:
    """CMR (B,): cross-entropy of each pair among all of the batch, half text to image and half image to text.

    Args:
        text, image: (B, dim) vectors of matching pairs.
    """
    scores, own = text @ image.T, torch.arange(len(text), device=text.device)
    to_image = nn.functional.cross_entropy(scores, own, reduction="none")
    to_text = nn.functional.cross_entropy(scores.T, own, reduction="none")
    return (to_image + to_text) / 2


def triplet_loss(scores: Tensor, margin: float = 0.2) -> Tensor:
    """UNITER's loss for re-ranking: (B, N - 1) of raw ``scores`` (B, N), the right pair first, then wrong ones."""
    probabilities = scores.sigmoid()
    return (margin + probabilities[:, 1:] - probabilities[:, :1]).clamp_min(0)


def _transform(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12))
