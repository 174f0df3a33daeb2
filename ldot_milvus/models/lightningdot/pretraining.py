"""LightningDOT's three pre-training objectives (section 3.2 and 3.3 of the paper) on top of the dual encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from ldot_milvus.models.lightningdot.configuration import LightningDOTConfig
from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
from ldot_milvus.models.lightningdot.layers import BertBasedModel

IGNORE_INDEX = -1
"""Label of a token that masked language modelling does not predict."""


class LightningDOTForPreTraining(BertBasedModel):
    """The dual encoder with the heads of pre-training: CMR, VMLM and SMRM.

    Each loss is returned per element, not averaged, as in the published code. Also as in the published code, words are
    decoded with the **image** encoder's word embedding, and region features with the image encoder's ``img_linear``.
    The heads read these weights from the encoder and have no copy, so they always stay tied. The configuration's
    ``fusion`` defines how the [CLS] state of the other modality is combined with a state: "add" (published:
    ``cls_concat``), "multiply" or "none".
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
        self.feature_bias = nn.Parameter(torch.zeros(config.read_region_dim))
        self.region_classifier = nn.Sequential(
            *_transform(body.hidden_size), nn.Linear(body.hidden_size, config.region_classes)
        )
        self.post_init()

    def masked_words(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor,
        region_features: Tensor, region_boxes: Tensor, region_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """VMLM: predict masked words from the text and the unmasked image.

        Args:
            input_ids: (B, T) token ids, some of them masked.
            attention_mask: (B, T), 1 = token, 0 = padding.
            labels: (B, T), the original ids of masked tokens, :data:`IGNORE_INDEX` elsewhere.
            region_features, region_boxes, region_mask: see :meth:`LightningDOT.encode_image`.

        Returns:
            Cross-entropy (N,) and scores (N, vocabulary) of the N masked tokens, in order.
        """
        words = self.lightningdot.text_states(input_ids, attention_mask)
        image = self.lightningdot.image_states(region_features, region_boxes, region_mask)[:, :1]
        masked = labels != IGNORE_INDEX
        states = self.word_transform(self._fused(words, image)[masked])
        decoder = self.lightningdot.image_model.embeddings.word_embeddings.weight
        scores = nn.functional.linear(states, decoder, self.word_bias)
        return nn.functional.cross_entropy(scores, labels[masked], reduction="none"), scores

    def masked_region_states(
        self, input_ids: Tensor, attention_mask: Tensor,
        region_features: Tensor, region_boxes: Tensor, region_mask: Tensor, masked_regions: Tensor,
    ) -> Tensor:  # fmt: skip
        """SMRM: compute the heads' input, the states (N, H) of the N regions that ``masked_regions`` (B, R) marks."""
        states = self.lightningdot.image_states(region_features, region_boxes, region_mask, masked_regions)[:, 1:]
        text = self.lightningdot.text_states(input_ids, attention_mask)[:, :1]
        return self._fused(states, text)[masked_regions.bool()]

    def region_features(self, states: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """SMRM, feature regression.

        Args:
            states: (N, H).
            features: (N, region_dim), of which the first are predicted if the encoder reads the first alone.

        Returns:
            Squared errors and predictions, (N, read_region_dim) each.
        """
        reader = self.lightningdot.image_model.img_embeddings
        assert reader is not None
        predicted = nn.functional.linear(self.feature_transform(states), reader.img_linear.weight.T, self.feature_bias)
        features = features[:, : predicted.shape[1]]
        return nn.functional.mse_loss(predicted, features, reduction="none"), predicted

    def region_classes(self, states: Tensor, soft_labels: Tensor) -> tuple[Tensor, Tensor]:
        """SMRM, classification by KL divergence.

        Args:
            states: (N, H).
            soft_labels: (N, region_classes), the detector's class probabilities, background first.

        Returns:
            Divergences and log-probabilities, (N, region_classes) each.
        """
        predicted = self.region_classifier(states).log_softmax(-1)
        return nn.functional.kl_div(predicted, soft_labels, reduction="none"), predicted

    def region_class(self, states: Tensor, soft_labels: Tensor) -> Tensor:
        """SMRM, classification: cross-entropy (N,) with the most probable label other than the background."""
        labels = soft_labels[:, 1:].argmax(-1) + 1
        return nn.functional.cross_entropy(self.region_classifier(states), labels, reduction="none")

    def _fused(self, states: Tensor, other: Tensor) -> Tensor:
        if self.config.fusion == "add":
            return states + other
        return states * other if self.config.fusion == "multiply" else states


def cross_modal_retrieval(text: Tensor, image: Tensor) -> Tensor:
    """CMR: in-batch cross-entropy, the mean of text to image and image to text.

    Args:
        text, image: (B, dim) vectors of matching pairs.

    Returns:
        The loss of each pair, (B,).
    """
    scores, own = text @ image.T, torch.arange(len(text), device=text.device)
    to_image = nn.functional.cross_entropy(scores, own, reduction="none")
    to_text = nn.functional.cross_entropy(scores.T, own, reduction="none")
    return (to_image + to_text) / 2


def triplet_loss(scores: Tensor, margin: float = 0.2) -> Tensor:
    """UNITER's triplet loss for re-ranking.

    Args:
        scores: (B, N) raw scores, of the matching pair first, then of N - 1 mismatched pairs.
        margin: by which the probability of the matching pair should be larger.

    Returns:
        The loss of each mismatched pair, (B, N - 1).
    """
    probabilities = scores.sigmoid()
    return (margin + probabilities[:, 1:] - probabilities[:, :1]).clamp_min(0)


def _transform(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12))
