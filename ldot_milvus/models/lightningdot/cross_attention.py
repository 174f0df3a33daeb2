"""The cross-attention re-ranker: a network that scores a text with the regions of an image."""

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
    """Scores text-image pairs by cross-attention.

    With ``scoring="joint"`` in the configuration, this is UNITER's image-text matching model (Chen et al., ECCV 2020):
    one transformer over the sequence of [CLS], the text, [SEP] and the regions. With ``scoring="alignment"``, it is a
    transformer over the text, followed by stacked cross attention from its words to the regions.

    In both cases the score is ``score(encode_words(text), embed_regions(regions))``: the text and the image are
    encoded once each, however many pairs they are part of.
    """

    config_class = RerankerConfig
    base_model_prefix = "bert"

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__(config)
        joint, width = config.scoring == "joint", config.bert_config.hidden_size
        self.bert = BertBody(config.bert_config, region_dim=config.read_region_dim, pooler=joint)
        self.rank_output = nn.Linear(width, 1) if joint else None
        self.region_projection = None if joint else projection(width, width)
        self.alignment = None if joint else WordRegionAlignment(width, both=config.region_alignment)
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
        """Score text i with image i.

        Args:
            input_ids: (B, T) int64 WordPiece ids, [CLS] first.
            attention_mask: (B, T), 1 = token, 0 = padding; None if there is no padding.
            region_features: (B, R, region_dim).
            region_boxes: (B, R, 7): x1, y1, x2, y2, w, h as fractions of the image, and w * h.
            region_mask: (B, R), 1 = region, 0 = padding; None if there is no padding.

        Returns:
            (B,) raw scores, higher is better. With "joint" scoring, UNITER's triplet loss applies a sigmoid to them.
        """
        text_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if region_mask is None:
            region_mask = region_features.new_ones(region_features.shape[:2], dtype=torch.bool)
        words = self.encode_words(input_ids, text_mask)
        return self.score(words, text_mask, self.embed_regions(region_features, region_boxes), region_mask)

    def encode_words(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode the text alone as hidden states (B, T, H)."""
        embeddings = self.bert.embeddings(input_ids)
        return embeddings if self.alignment is None else self.bert.encode(embeddings, attention_mask.bool())

    def embed_regions(self, region_features: Tensor, region_boxes: Tensor) -> Tensor:
        """Encode the regions alone as (B, R, H); ingestion stores the result if ``region_input`` is "embedded"."""
        regions = self.bert.embed_regions(region_features, region_boxes)
        return regions if self.region_projection is None else regions + self.region_projection(regions)

    def score(self, words: Tensor, text_mask: Tensor, regions: Tensor, region_mask: Tensor) -> Tensor:
        """Score text i with image i, given the output of :meth:`encode_words` and :meth:`embed_regions`.

        Args:
            words: (B, T, H).
            text_mask: (B, T), 1 = token, 0 = padding.
            regions: (B, R, H).
            region_mask: (B, R), 1 = region, 0 = padding.

        Returns:
            (B,) raw scores, higher is better.
        """
        if self.alignment is not None:
            return self.alignment(words, text_mask, regions, region_mask)
        joined, mask = pack([(words, text_mask), (regions, region_mask)])
        states = self.bert.encode(joined, mask)
        assert isinstance(self.bert.pooler, BertPooler)
        assert self.rank_output is not None
        return self.rank_output(self.bert.pooler(states)).squeeze(-1)

    def word_weights(self, words: Tensor, regions: Tensor) -> Tensor:
        """Tell how well words match regions, given the output of :meth:`encode_words` and :meth:`embed_regions`.

        Args:
            words: (B, T, H), without padding.
            regions: (B, R, H), without padding.

        Returns:
            (B, T, R) from 0 to 1: how far the cosine, 0 where it is negative, is above the word's mean over the photo;
            with joint scoring, the attention of words to regions in the last layers.
        """
        if self.alignment is not None:
            # What a word shares with the whole photo does not say where it is, and a re-ranker that compares regions
            # with words too gives every region some of it: 0.15, where the best regions of ldot-mini have 0.4 to 0.6.
            cosines = self.alignment.cosines(words, nn.functional.normalize(regions, dim=-1)).clamp(0, 1)
            return (cosines - cosines.mean(-1, keepdim=True)).clamp_min(0)
        count = words.shape[1]
        return self.bert.last_attention(torch.cat([words, regions], dim=1))[:, :count, count:]


AutoModel.register(RerankerConfig, CrossAttentionReranker)
