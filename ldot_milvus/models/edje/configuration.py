"""Configuration of the EDJE re-ranker. The defaults are the published sizes, over SigLIP 2 L/16 at 384 pixels."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from transformers import AutoConfig, BertConfig, PretrainedConfig

MINILM = {"hidden_size": 384, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 1536,
          "vocab_size": 30523}  # fmt: skip
"""MiniLM-L12-H384-uncased, with ``<image>`` as the last entry of its vocabulary."""


class EdjeConfig(PretrainedConfig):
    """Configuration of an :class:`~ldot_milvus.models.edje.joint_encoder.EdjeReranker`.

    Args:
        bert_config: the joint encoder, a BERT. The last entry of its vocabulary is ``<image>``.
        token_dim: width of the first stage's tokens.
        compressed_tokens: N, the number of tokens that are stored of an image; None stores all, at the joint encoder's
            width (the published uncompressed model, which teaches the compressed one).
        adapter_hidden: width of the adapter's hidden layer.
        adapter_heads: attention heads of the compressing adapter (published: those of the vision encoder).
        adapter_layer_norm_eps: of the compressing adapter (published: that of the vision encoder).
        max_text_length: maximum number of tokens of a text, [CLS] and [SEP] included. Published: 63, so that text,
            N tokens and the last [SEP] are at most 64 + N.
        dot_weight: weight of the first stage's dot product that retrieval adds to the score (published: 0).
        text_layers: number of the joint encoder's first layers that read the text alone (published: 0). The others
            read the text's states after them, with the image tokens, and their logit is added to the word-region
            alignment of those states with the image tokens.
        region_dim: width of a LightningDOT model's regions, which are embedded with their boxes before they are
            adapted. None: the adapter reads the first stage's tokens (published).
    """

    model_type = "edje-reranker"
    sub_configs: ClassVar = {"bert_config": BertConfig}

    def __init__(
        self,
        bert_config: BertConfig | dict[str, Any] | None = None,
        token_dim: int = 1024,
        compressed_tokens: int | None = 64,
        adapter_hidden: int = 8192,
        adapter_heads: int = 16,
        adapter_layer_norm_eps: float = 1e-6,
        max_text_length: int = 63,
        dot_weight: float = 0.0,
        text_layers: int = 0,
        region_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(bert_config, BertConfig):
            bert_config = BertConfig(**{**MINILM, "layer_norm_eps": 1e-12, **(bert_config or {})})
        if compressed_tokens is not None and compressed_tokens < 1:
            raise ValueError(f"compressed_tokens is {compressed_tokens}; it must be 1 or more, or None for all tokens")
        if compressed_tokens is not None and token_dim % adapter_heads:
            raise ValueError(f"token_dim {token_dim} is not a multiple of adapter_heads {adapter_heads}")
        if not 0 <= text_layers < bert_config.num_hidden_layers:
            raise ValueError(
                f"text_layers is {text_layers} of {bert_config.num_hidden_layers} layers; at least one must be left "
                "for text and image"
            )
        if region_dim is not None and token_dim != bert_config.hidden_size:
            raise ValueError(
                f"token_dim is {token_dim}; embedded regions have the joint encoder's width, {bert_config.hidden_size}"
            )
        self.bert_config = bert_config
        self.token_dim = token_dim
        self.compressed_tokens = compressed_tokens
        self.adapter_hidden = adapter_hidden
        self.adapter_heads = adapter_heads
        self.adapter_layer_norm_eps = adapter_layer_norm_eps
        self.max_text_length = max_text_length
        self.dot_weight = dot_weight
        self.text_layers = text_layers
        self.region_dim = region_dim
        super().__init__(**kwargs)

    @property
    def most_tokens(self) -> int:
        """Number of image tokens for which the joint encoder has positions beside the longest text and [SEP].

        After ``text_layers``, image tokens are joined without positions, in any number.
        """
        if self.text_layers:
            return sys.maxsize
        return int(self.bert_config.max_position_embeddings) - self.max_text_length - 1

    @property
    def image_token_id(self) -> int:
        """Id of ``<image>``, the last entry of the vocabulary."""
        return int(self.bert_config.vocab_size) - 1


AutoConfig.register(EdjeConfig.model_type, EdjeConfig)
