"""The EDJE network: an adapter of image tokens, a joint encoder of text and image, a classification head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.models.bert.modeling_bert import BertPooler
from typing_extensions import override

from ldot_milvus.models.edje.adapters import TokenCompression, TokenProjection
from ldot_milvus.models.edje.configuration import EdjeConfig
from ldot_milvus.models.edje.inputs import JointInputs, joint_inputs
from ldot_milvus.models.lightningdot.alignment import WordRegionAlignment
from ldot_milvus.models.lightningdot.layers import BertBasedModel, BertBody, pack, projection


class EdjeReranker(BertBasedModel):
    """Scores a text with an image, given the tokens of any first stage (EDJE, ICLR 2026, section 3).

    The score is ``score(ids, mask, *adapt(tokens, token_mask))``: the adapter runs once for each image, at ingestion;
    the joint encoder runs for each pair.

    With ``text_layers`` in the configuration, the first layers run once for each text instead, and the score starts
    from the alignment of their states with the image tokens: it ranks before the joint layers have learned anything.
    """

    config_class = EdjeConfig
    base_model_prefix = "bert"

    def __init__(self, config: EdjeConfig) -> None:
        super().__init__(config)
        self.adapter = TokenProjection(config) if config.compressed_tokens is None else TokenCompression(config)
        width, from_regions = config.bert_config.hidden_size, config.region_dim is not None
        self.bert = BertBody(config.bert_config, region_dim=config.region_dim)
        self.region_projection = projection(width, width) if from_regions else None
        self.alignment = WordRegionAlignment(width) if config.text_layers else None
        self.classifier = nn.Linear(width, 1)
        self.post_init()

    @override
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TokenCompression):
            nn.init.normal_(module.query, std=0.02)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        tokens: Tensor,
        token_mask: Tensor | None = None,
        boxes: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Score text i with image i.

        Args:
            input_ids: int64 (B, T), WordPiece ids of the texts, [CLS] first and [SEP] last.
            attention_mask: (B, T), 1 = token, 0 = padding; None if there is no padding.
            tokens: (B, L, token_dim), the first stage's tokens of the images.
            token_mask: (B, L), 1 = token, 0 = padding; None if there is no padding.
            boxes: see :meth:`adapt`.

        Returns:
            (B,) logits of the probability that text and image belong together.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if token_mask is None:
            token_mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return self.score(input_ids, mask, *self.adapt(tokens, token_mask.bool(), boxes))

    def adapt(self, tokens: Tensor, token_mask: Tensor, boxes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convert the first stage's tokens to the joint encoder's.

        Args:
            tokens: (B, L, token_dim); or the features of regions, (B, L, region_dim).
            token_mask: bool (B, L), True = token, False = padding.
            boxes: (B, L, 7), of regions. Tokens have none.

        Returns:
            Image tokens (B, N, H), and their bool mask (B, N); uncompressed, N is L.
        """
        if self.region_projection is not None:
            assert boxes is not None
            tokens = self.bert.embed_regions(tokens, boxes)
            tokens = tokens + self.region_projection(tokens)
        adapted = self.adapter(tokens, token_mask)
        if self.config.compressed_tokens is not None:
            token_mask = token_mask.new_ones(adapted.shape[:2])
        return adapted, token_mask

    def score(
        self, input_ids: Tensor, attention_mask: Tensor, images: Tensor, image_mask: Tensor, texts: Tensor | None = None
    ) -> Tensor:
        """Score pairs of a text and an image, given the output of :meth:`adapt`.

        Args:
            input_ids: int64 (B, T), [CLS] first and [SEP] last.
            attention_mask: (B, T), 1 = token, 0 = padding.
            images: (P, N, H), the image of each pair.
            image_mask: bool (P, N), True = image token, False = padding.
            texts: int64 (P,), index of each pair's text; None: text i belongs to image i.

        Returns:
            (P,) logits.
        """
        if texts is None:
            texts = torch.arange(len(input_ids), device=input_ids.device)
        if self.alignment is not None:
            words = self.encode_words(input_ids, attention_mask)[texts]
            mask = attention_mask.bool()[texts]
            alignment = self.alignment(words, mask, images, image_mask)
            if not self.training and not bool(self.classifier.weight.any()):
                return alignment + self.classifier.bias  # untrained, the joint layers would add nothing but time
            joined, valid = pack([(words, mask), (images, image_mask)])
            states = self.bert.encode(joined, valid, self.bert.encoder.layer[self.config.text_layers :])
            return self._classified(states) + alignment
        input_ids, attention_mask = input_ids[texts], attention_mask[texts]
        return self.logits(joint_inputs(input_ids, attention_mask, image_mask, self.config.image_token_id),
                           images[image_mask])  # fmt: skip

    def encode_words(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode texts by the layers that read them alone, as states (B, T, H)."""
        embeddings = self.bert.embeddings(input_ids)
        return self.bert.encode(embeddings, attention_mask.bool(), self.bert.encoder.layer[: self.config.text_layers])

    def logits(self, inputs: JointInputs, image_tokens: Tensor) -> Tensor:
        """Run the joint encoder.

        Args:
            inputs: B sequences.
            image_tokens: (sum of all images' tokens, H), in order of sequence.

        Returns:
            (B,) logits.
        """
        words = self.bert.embeddings.word_embeddings(inputs.ids)
        # The image tokens take the place of the embeddings of <image>; positions and types are added to both.
        words = words.masked_scatter(inputs.images.unsqueeze(-1), image_tokens.to(words.dtype))
        embeddings = self.bert.embeddings(inputs_embeds=words, token_type_ids=inputs.types)
        return self._classified(self.bert.encode(embeddings, inputs.mask))

    def _classified(self, states: Tensor) -> Tensor:
        assert isinstance(self.bert.pooler, BertPooler)
        logits: Tensor = self.classifier(self.bert.pooler(states)).squeeze(-1)
        return logits


AutoModel.register(EdjeConfig, EdjeReranker)
