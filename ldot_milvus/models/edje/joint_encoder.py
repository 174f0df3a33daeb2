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
from ldot_milvus.models.lightningdot.layers import BertBasedModel, BertBody


class EdjeReranker(BertBasedModel):
    """Scores a text with an image, given the tokens of any first stage (EDJE, ICLR 2026, section 3).

    The score is ``score(ids, mask, *adapt(tokens, token_mask))``: the adapter runs once for each image, at ingestion;
    the joint encoder runs for each pair.
    """

    config_class = EdjeConfig
    base_model_prefix = "bert"

    def __init__(self, config: EdjeConfig) -> None:
        super().__init__(config)
        self.adapter = TokenProjection(config) if config.compressed_tokens is None else TokenCompression(config)
        self.bert = BertBody(config.bert_config)
        self.classifier = nn.Linear(config.bert_config.hidden_size, 1)
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
        **_: Any,
    ) -> Tensor:
        """Score text i with image i.

        Args:
            input_ids: int64 (B, T), WordPiece ids of the texts, [CLS] first and [SEP] last.
            attention_mask: (B, T), 1 = token, 0 = padding; None if there is no padding.
            tokens: (B, L, token_dim), the first stage's tokens of the images.
            token_mask: (B, L), 1 = token, 0 = padding; None if there is no padding.

        Returns:
            (B,) logits of the probability that text and image belong together.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if token_mask is None:
            token_mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return self.score(input_ids, mask, *self.adapt(tokens, token_mask.bool()))

    def adapt(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Convert the first stage's tokens to the joint encoder's.

        Args:
            tokens: (B, L, token_dim).
            token_mask: bool (B, L), True = token, False = padding.

        Returns:
            Image tokens (B, N, H), and their bool mask (B, N); uncompressed, N is L.
        """
        adapted = self.adapter(tokens, token_mask)
        if self.config.compressed_tokens is not None:
            token_mask = token_mask.new_ones(adapted.shape[:2])
        return adapted, token_mask

    def score(self, input_ids: Tensor, attention_mask: Tensor, images: Tensor, image_mask: Tensor) -> Tensor:
        """Score text i with image i, given the output of :meth:`adapt`.

        Args:
            input_ids: int64 (B, T), [CLS] first and [SEP] last.
            attention_mask: (B, T), 1 = token, 0 = padding.
            images: (B, N, H).
            image_mask: bool (B, N), True = image token, False = padding.

        Returns:
            (B,) logits.
        """
        return self.logits(joint_inputs(input_ids, attention_mask, image_mask, self.config.image_token_id),
                           images[image_mask])  # fmt: skip

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
        states = self.bert.encode(embeddings, inputs.mask)
        assert isinstance(self.bert.pooler, BertPooler)
        logits: Tensor = self.classifier(self.bert.pooler(states)).squeeze(-1)
        return logits


AutoModel.register(EdjeConfig, EdjeReranker)
