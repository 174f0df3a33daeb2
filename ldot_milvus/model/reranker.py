"""The cross-attention re-ranker: one transformer that reads a text and an image's regions together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertPooler

from .configuration import RerankerConfig
from .layers import BertBasedModel, BertBody, pack


class CrossAttentionReranker(BertBasedModel):
    """UNITER's image-text matching model: [CLS] text [SEP] and the regions in one sequence, one score a pair."""

    config_class = RerankerConfig
    base_model_prefix = "bert"

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__(config)
        self.bert = BertBody(config.bert_config, region_dim=config.region_dim)
        self.rank_output = nn.Linear(config.bert_config.hidden_size, 1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        region_features: Tensor,
        region_boxes: Tensor,
        region_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Scores of text-image pairs, higher is better.

        Args:
            input_ids: (B, T) WordPiece ids, [CLS] first.
            attention_mask: (B, T), 1 = a token; all tokens where it is None.
            region_features: (B, R, region_dim).
            region_boxes: (B, R, 7).
            region_mask: (B, R), 1 = a region; all regions where it is None.

        Returns:
            (B,) raw scores; their sigmoid is what UNITER's triplet loss sees.
        """
        text_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if region_mask is None:
            region_mask = region_features.new_ones(region_features.shape[:2], dtype=torch.bool)
        words = self.encode_words(input_ids, text_mask)
        return self.score(words, text_mask, region_features, region_boxes, region_mask)

    def encode_words(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The part that sees the text alone, (B, T, H): the same for every photo that a text is compared with."""
        return self.bert.encode(self.bert.embeddings(input_ids), attention_mask.bool(), stop=self.config.text_layers)

    def score(
        self, words: Tensor, text_mask: Tensor, region_features: Tensor, region_boxes: Tensor, region_mask: Tensor
    ) -> Tensor:
        """The rest of :meth:`forward`, from what :meth:`encode_words` gave."""
        regions = self.bert.embed_regions(region_features, region_boxes)
        joined, mask = pack([(words, text_mask), (regions, region_mask)])
        hidden = self.bert.encode(joined, mask, start=self.config.text_layers)
        pooler = self.bert.pooler
        assert isinstance(pooler, BertPooler)
        return self.rank_output(pooler(hidden)).squeeze(-1)
