"""LightningDOT's dual encoder: a text encoder and an image encoder, whose vectors are compared by dot product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from ldot_milvus.models.lightningdot.canonical import CanonicalCorrelations
from ldot_milvus.models.lightningdot.configuration import CLS_TOKEN_ID, LightningDOTConfig
from ldot_milvus.models.lightningdot.label_names import LabelNames
from ldot_milvus.models.lightningdot.layers import (
    BertBasedModel,
    BertBody,
    HubnessCalibration,
    PrincipalDirections,
    pool,
    projection,
    text_body,
)


class LightningDOT(BertBasedModel):
    """The dual encoder (LightningDOT, Sun et al., NAACL 2021, section 3; image embedding of UNITER, section 3.1).

    The defaults of :class:`LightningDOTConfig` are the published sizes.
    """

    config_class = LightningDOTConfig
    base_model_prefix = "lightningdot"
    # A folder with the heads of pre-training can be loaded as a dual encoder too.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"^(word|feature)_(transform|bias)",
        r"^region_classifier\.",
    ]

    def __init__(self, config: LightningDOTConfig) -> None:
        super().__init__(config)
        self.text_model: Any = text_body(config.text_config, pooler=config.pooler)
        self.image_model = BertBody(config.image_config, region_dim=config.read_region_dim, pooler=config.pooler)
        self.text_projection: nn.Module = nn.Identity()
        if config.project_text:
            self.text_projection = projection(config.text_config.hidden_size, config.projection_dim)
        self.image_projection = projection(config.image_config.hidden_size, config.projection_dim)
        self.text_calibration = self.image_calibration = None
        if config.calibration_anchors:
            arguments = (config.calibration_anchors, config.compared_dim,
                         config.calibration_weight, config.calibration_temperature)  # fmt: skip
            self.text_calibration = HubnessCalibration(*arguments)
            self.image_calibration = HubnessCalibration(*arguments)
        self.label_names = None
        if config.label_count:
            self.label_names = LabelNames(
                config.text_config, config.label_count, config.label_dim,
                config.label_shared_layers, config.label_weight,
            )  # fmt: skip
        self.canonical = None
        if config.canonical_dim:
            self.canonical = CanonicalCorrelations(
                2 * config.text_config.hidden_size, config.canonical_words, config.canonical_region_dim,
                config.canonical_dim, config.canonical_weight,
            )  # fmt: skip
        self.principal = None
        if config.principal_dim:
            self.principal = PrincipalDirections(config.projection_dim, config.principal_dim)
        self.post_init()

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Encode texts as vectors.

        Args:
            input_ids: (B, T) int64 WordPiece ids, [CLS] first.
            attention_mask: (B, T), 1 = token, 0 = padding; None if there is no padding.

        Returns:
            (B, embedding_dim), normalised, calibrated and with blocks of label names and canonical correlations if the
            configuration says so. The published models do none of this.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if self.label_names is None:
            vectors = self._text_vectors(self.text_states(input_ids, mask), mask)
        else:
            words = self.text_model.embeddings(input_ids)
            shared = self._shared_states(words, mask)
            states = self.text_model.encode(shared, mask.bool(), self._text_layers[self.config.label_shared_layers :])
            sentences = self.label_names.sentences(self.text_model, shared, mask)
            blocks = [self._text_vectors(states, mask), self.label_names.text_block(sentences)]
            if self.canonical is not None:
                texts = _words_and_sentences(words, sentences, mask)
                blocks.append(self.canonical.text_block(texts, input_ids, mask))
            vectors = torch.cat(blocks, dim=1)
        if self.text_calibration is not None:
            vectors = torch.cat([vectors, self.text_calibration(vectors), torch.ones_like(vectors[:, :1])], dim=1)
        return vectors

    def encode_image(
        self,
        region_features: Tensor,
        region_boxes: Tensor,
        region_mask: Tensor | None = None,
        label_probabilities: Tensor | None = None,
    ) -> Tensor:
        """Encode images given as regions as vectors.

        Args:
            region_features: (B, R, region_dim).
            region_boxes: (B, R, 7): x1, y1, x2, y2, w, h as fractions of the image, and w * h.
            region_mask: (B, R), 1 = region, 0 = padding; None if there is no padding.
            label_probabilities: (B, places, label_count), of the whole photo first; required by a model with label
                names, and unused by others.

        Returns:
            (B, embedding_dim), as :meth:`encode_text` says.

        Raises:
            ValueError: the model has label names, and there are no probabilities of them.
        """
        mask = _region_mask(region_features, region_mask)
        states = self.image_states(region_features, region_boxes, mask)
        vectors = self._learned(self.image_projection(pool(states, _with_cls(mask), self.config.pooling)))
        if self.label_names is not None:
            if label_probabilities is None:
                raise ValueError("a model with label names requires label_probabilities")
            vectors = torch.cat([vectors, self.label_names.image_block(label_probabilities)], dim=1)
        if self.canonical is not None:
            vectors = torch.cat([vectors, self.canonical.image_block(region_features, mask)], dim=1)
        if self.image_calibration is not None:
            # In the dot product, each modality's correction is multiplied by the other's 1.
            vectors = torch.cat([vectors, torch.ones_like(vectors[:, :1]), self.image_calibration(vectors)], dim=1)
        return vectors

    def encode_sentences(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode sentences with the sentence encoder of the label names as vectors (B, H) of length 1.

        Args:
            input_ids: (B, T) int64 WordPiece ids, [CLS] first.
            attention_mask: (B, T), 1 = token, 0 = padding.
        """
        return self._sentences(self.text_model.embeddings(input_ids), attention_mask)

    def encode_words_and_sentences(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode texts as vectors for canonical correlations, (B, 2 * H): mean word embedding and sentence vector.

        The arguments are those of :meth:`encode_sentences`.
        """
        words = self.text_model.embeddings(input_ids)
        return _words_and_sentences(words, self._sentences(words, attention_mask), attention_mask)

    def text_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the last hidden states of texts, (B, T, H); the states of padding are undefined."""
        if isinstance(self.text_model, BertBody):
            return self.text_model.encode(self.text_model.embeddings(input_ids), attention_mask.bool())
        return self.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def image_states(
        self,
        region_features: Tensor,
        region_boxes: Tensor,
        region_mask: Tensor | None = None,
        masked_regions: Tensor | None = None,
    ) -> Tensor:
        """Return the last hidden states of images, (B, 1 + R, H): [CLS], then the regions.

        Args:
            region_features, region_boxes, region_mask: see :meth:`encode_image`.
            masked_regions: (B, R), True = region that masked region modelling masks; None masks nothing.
        """
        body = self.image_model
        cls_ids = torch.full((len(region_features), 1), CLS_TOKEN_ID, device=region_features.device)
        regions = body.embed_regions(region_features, region_boxes, masked_regions)
        embeddings = torch.cat([body.embeddings(cls_ids), regions], dim=1)
        return body.encode(embeddings, _with_cls(_region_mask(region_features, region_mask)))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None,
        region_features: Tensor, region_boxes: Tensor, region_mask: Tensor | None = None,
        label_probabilities: Tensor | None = None, **_: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Encode a batch of pairs: text vectors and image vectors, (B, embedding_dim) each."""
        return (
            self.encode_text(input_ids, attention_mask),
            self.encode_image(region_features, region_boxes, region_mask, label_probabilities),
        )

    @property
    def _text_layers(self) -> Any:
        return self.text_model.encoder.layer

    def _shared_states(self, words: Tensor, mask: Tensor) -> Tensor:
        """Return the states (B, T, H) of words after the layers that the text and the sentence encoder share."""
        return self.text_model.encode(words, mask.bool(), self._text_layers[: self.config.label_shared_layers])

    def _sentences(self, words: Tensor, mask: Tensor) -> Tensor:
        """Return the sentence encoder's vectors (B, H) of words (B, T, H)."""
        assert self.label_names is not None
        return self.label_names.sentences(self.text_model, self._shared_states(words, mask), mask)

    def _text_vectors(self, states: Tensor, mask: Tensor) -> Tensor:
        return self._learned(self.text_projection(pool(states, mask, self.config.pooling)))

    def _learned(self, vectors: Tensor) -> Tensor:
        """Scale projected vectors (B, projection_dim) to length 1 and reduce them, as the configuration says."""
        if self.config.normalize:
            vectors = nn.functional.normalize(vectors.float(), dim=-1)
        return vectors if self.principal is None else self.principal(vectors)


def _words_and_sentences(words: Tensor, sentences: Tensor, mask: Tensor) -> Tensor:
    return torch.cat([pool(words, mask, "mean").float(), sentences], dim=1)


def _region_mask(features: Tensor, mask: Tensor | None) -> Tensor:
    return features.new_ones(features.shape[:2], dtype=torch.bool) if mask is None else mask.bool()


def _with_cls(region_mask: Tensor) -> Tensor:
    return nn.functional.pad(region_mask.bool(), (1, 0), value=True)


AutoModel.register(LightningDOTConfig, LightningDOT)
