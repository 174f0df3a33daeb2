"""Adapters: tokens of the first stage to the input tokens of the joint encoder (EDJE, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ldot_milvus.models.edje.configuration import EdjeConfig


class Mlp(nn.Module):
    """Linear, the joint encoder's activation, Linear."""

    def __init__(self, config: EdjeConfig, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.token_dim, config.adapter_hidden)
        self.act = ACT2FN[config.bert_config.hidden_act]
        self.fc2 = nn.Linear(config.adapter_hidden, out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Convert tokens (..., token_dim) to (..., out)."""
        projected: Tensor = self.fc2(self.act(self.fc1(tokens)))
        return projected


class TokenProjection(nn.Module):
    """The uncompressed adapter: each token by itself, all of them kept."""

    def __init__(self, config: EdjeConfig) -> None:
        super().__init__()
        self.mlp = Mlp(config, config.bert_config.hidden_size)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Convert tokens (B, L, token_dim) to (B, L, H). They do not see each other, so ``mask`` has no effect."""
        projected: Tensor = self.mlp(tokens)
        return projected


class TokenCompression(nn.Module):
    """The compressing adapter: N learned queries attend to all tokens of an image.

    The attention has projections of its own on top of ``key`` and ``value``, and no residual around it.
    """

    def __init__(self, config: EdjeConfig) -> None:
        super().__init__()
        width = config.token_dim
        self.query = nn.Parameter(torch.empty(1, config.compressed_tokens or 0, width))
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, config.adapter_heads, batch_first=True)
        self.layernorm = nn.LayerNorm(width, eps=config.adapter_layer_norm_eps)
        self.mlp = Mlp(config, width)
        self.projection = nn.Linear(width, config.bert_config.hidden_size)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Compress the tokens of B images.

        Args:
            tokens: (B, L, token_dim).
            mask: bool (B, L), True = token, False = padding.

        Returns:
            (B, N, H).
        """
        query = self.query.expand(len(tokens), -1, -1)
        # Without padding there is no mask: attention then uses its fastest kernel.
        padding = None if bool(mask.all()) else ~mask
        states, _ = self.attention(
            query, self.key(tokens), self.value(tokens), key_padding_mask=padding, need_weights=False
        )
        projected: Tensor = self.projection(states + self.mlp(self.layernorm(states)))
        return projected
