"""The cross-attention re-ranker: words and regions of one pair meet, and one score comes out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.models.bert.modeling_bert import BertPooler

from ldot_milvus.models.lightningdot.alignment import WordRegionAlignment
from ldot_milvus.models.lightningdot.configuration import RerankerConfig
from ldot_milvus.models.lightningdot.layers import BertBasedModel, BertBody, pack, projection


class CrossAttentionReranker(BertBasedModel):
    """Scores text-image pairs by cross-attention, as its configuration's ``scoring`` says.

    ``joint`` is UNITER's image-text matching model: [CLS] text [SEP] and the regions in one sequence, one transformer
    over both. ``alignment`` is a transformer over the text, and stacked cross attention from its words to the regions.

    Either way a score is ``score(encode_words(text), embed_regions(regions))``: what concerns one side alone is
    computed once, however many of the other side it is compared with.
    """

    config_class = RerankerConfig
    base_model_prefix = "bert"

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__(config)
        joint, width = config.scoring == "joint", config.bert_config.hidden_size
        self.bert = BertBody(config.bert_config, region_dim=config.region_dim, pooler=joint)
        self.rank_output = nn.Linear(width, 1) if joint else None
        self.region_projection = None if joint else projection(width, width)
        self.alignment = None if joint else WordRegionAlignment(width)
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
            (B,) raw scores; for ``joint`` their sigmoid is what UNITER's triplet loss sees.
        """
        text_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if region_mask is None:
            region_mask = region_features.new_ones(region_features.shape[:2], dtype=torch.bool)
        words = self.encode_words(input_ids, text_mask)
        return self.score(words, text_mask, self.embed_regions(region_features, region_boxes), region_mask)

    def encode_words(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What concerns the text alone, (B, T, H)."""
        embeddings = self.bert.embeddings(input_ids)
        return embeddings if self.alignment is None else self.bert.encode(embeddings, attention_mask.bool())

    def embed_regions(self, region_features: Tensor, region_boxes: Tensor) -> Tensor:
        """What concerns the image alone, (B, R, H); ingestion stores it where ``region_input`` is "embedded"."""
        regions = self.bert.embed_regions(region_features, region_boxes)
        return regions if self.region_projection is None else regions + self.region_projection(regions)

    def score(self, words: Tensor, text_mask: Tensor, regions: Tensor, region_mask: Tensor) -> Tensor:
        """Scores (B,) of pairs of what :meth:`encode_words` and :meth:`embed_regions` gave."""
        if self.alignment is not None:
            return self.alignment(words, text_mask, regions, region_mask)
        joined, mask = pack([(words, text_mask), (regions, region_mask)])
        hidden = self.bert.encode(joined, mask)
        assert isinstance(self.bert.pooler, BertPooler)
        assert self.rank_output is not None
        return self.rank_output(self.bert.pooler(hidden)).squeeze(-1)


AutoModel.register(RerankerConfig, CrossAttentionReranker)
