"""Run the parts of transformers' ``BlipForImageTextRetrieval`` by scaled dot-product attention.

The class's own ``forward`` recomputes the vision part for every pair of a text and an image, and computes all attention
weights. Here the parts are called with its weights, and the results are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attend

from ldot_milvus.models.attention import attention_weights


def vision_states(vision_model: Any, pixels: Tensor) -> Tensor:
    """Run the vision transformer: pixels (B, 3, S, S) to its last states (B, N, W)."""
    states = vision_model.embeddings(pixels)
    for layer in vision_model.encoder.layers:
        attention = layer.self_attn
        query, key, value = attention.qkv(layer.layer_norm1(states)).chunk(3, dim=-1)
        query, key, value = (_split(part, attention.num_heads) for part in (query, key, value))
        states = states + attention.projection(_merge(attend(query, key, value)))
        states = states + layer.mlp(layer.layer_norm2(states))
    return vision_model.post_layernorm(states)


def text_state(
    text_encoder: Any, ids: Tensor, mask: Tensor, images: Tensor | None = None, attention: list[Tensor] | None = None
) -> Tensor:
    """Run the text transformer, over texts alone or also over images.

    Args:
        text_encoder: the class's ``text_encoder``.
        ids: int64 (P, T), token ids of P texts.
        mask: (P, T), 1 = token, 0 = padding.
        images: states (I, N, W) of the images that the texts are matched with: the first P / I texts with the first
            image, and so on; None for texts alone.
        attention: a list to which each layer appends how its words attend to the states of their image, float32
            (P, T, N), the mean over the heads, for P = I.

    Returns:
        The last state of the first token, (P, H).
    """
    states = text_encoder.embeddings(ids)
    allowed = None if bool(mask.all()) else mask.bool()[:, None, None, :]
    for layer in text_encoder.encoder.layer:
        own = layer.attention.self
        query, key, value = (_split(part(states), own.num_attention_heads) for part in (own.query, own.key, own.value))
        states = layer.attention.output(_merge(attend(query, key, value, attn_mask=allowed)), states)
        if images is not None:
            crossed = layer.crossattention
            if attention is not None:
                attention.append(attention_weights(crossed.self, states, images))
            states = crossed.output(_cross(crossed.self, states, images), states)
        states = layer.feed_forward_chunk(states)
    return states[:, 0]


def _cross(attention: Any, states: Tensor, images: Tensor) -> Tensor:
    """Let the words of P texts (P, T, H) attend to the states (I, N, W) of I images; the result is (P, T, H).

    The words of all texts of an image are one sequence of queries, so that its keys and values are computed once. With
    fewer words than a head is wide, they are not computed at all: because q . (K x) = (K^T q) . x, the words are
    projected to the images' width instead, and the weighted sum of states to values afterwards. One short text with
    many images, as in a query, costs a fraction that way. The keys' bias adds the same to all scores of a word, which
    the softmax removes; the values' bias is added once, because the weights' sum is 1.
    """
    count, heads, width = len(images), attention.num_attention_heads, attention.attention_head_size
    words = attention.query(states).reshape(count, -1, heads * width)
    if words.shape[1] < width:
        key, value = (part.weight.view(heads, width, -1) for part in (attention.key, attention.value))
        queries = torch.einsum("ithd,hdw->ihtw", words.view(count, -1, heads, width), key)
        flat = queries.reshape(count, 1, -1, images.shape[-1])
        mixed = attend(flat, images[:, None], images[:, None], scale=width**-0.5).view(queries.shape)
        merged = torch.einsum("ihtw,hdw->ithd", mixed, value).reshape(words.shape) + attention.value.bias
    else:
        keys, values = (_split(part(images), heads) for part in (attention.key, attention.value))
        merged = _merge(attend(_split(words, heads), keys, values))
    return merged.reshape(states.shape[0], states.shape[1], -1)


def _split(states: Tensor, heads: int) -> Tensor:
    """(B, L, H) to (B, heads, L, H / heads)."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge(states: Tensor) -> Tensor:
    """(B, heads, L, d) to (B, L, heads * d)."""
    return states.transpose(1, 2).flatten(2)
