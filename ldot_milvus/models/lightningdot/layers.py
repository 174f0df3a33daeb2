"""Layers that the dual encoder and the re-ranker share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, PretrainedConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPooler, BertPreTrainedModel

from ldot_milvus.models.attention import ATTENTION_LAYERS, attention_weights
from ldot_milvus.weights import QuantizedStorage


class BertBasedModel(QuantizedStorage, BertPreTrainedModel):
    """Base class of the models: BERT's weight initialisation and attention kernels, with int8 storage."""

    main_input_name = "input_ids"


class RegionEmbeddings(nn.Module):
    """Image regions as input embeddings of a BERT body (UNITER, section 3.1).

    ``LN(LN(img_linear(feature)) + LN(pos_linear(box)) + type)``, then dropout. Of features that are longer than
    ``region_dim``, the first are read.
    """

    def __init__(self, config: BertConfig, region_dim: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.img_linear = nn.Linear(region_dim, size)
        self.img_layer_norm = nn.LayerNorm(size, eps=eps)
        self.pos_linear = nn.Linear(7, size)
        self.pos_layer_norm = nn.LayerNorm(size, eps=eps)
        # Row 1 is added to a region that masked region modelling masks; row 0 is always zero.
        self.mask_embedding = nn.Embedding(2, region_dim, padding_idx=0)
        self.LayerNorm = nn.LayerNorm(size, eps=eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features: Tensor, boxes: Tensor, type_embedding: Tensor, masked: Tensor | None = None) -> Tensor:
        """Embed regions.

        Args:
            features: (B, R, region_dim).
            boxes: (B, R, 7).
            type_embedding: (H,), BERT's token type embedding of regions.
            masked: (B, R), True = region to mask; None masks nothing.

        Returns:
            (B, R, H).
        """
        features = features[..., : self.img_linear.in_features]
        if masked is not None:
            features = features.masked_fill(masked.bool().unsqueeze(-1), 0) + self.mask_embedding(masked.long())
        dtype = self.img_linear.weight.dtype
        image = self.img_layer_norm(self.img_linear(features.to(dtype)))
        position = self.pos_layer_norm(self.pos_linear(boxes.to(dtype)))
        return self.dropout(self.LayerNorm(image + position + type_embedding))


class BertBody(nn.Module):
    """transformers' BERT layers under their published names, for input embeddings of words and of regions."""

    def __init__(self, config: BertConfig, *, region_dim: int | None = None, pooler: bool = True) -> None:
        super().__init__()
        if config._attn_implementation is None:  # transformers only sets it on the outermost configuration
            config._attn_implementation = "sdpa"
        self.embeddings = BertEmbeddings(config)
        self.img_embeddings = None if region_dim is None else RegionEmbeddings(config, region_dim)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if pooler else None

    def embed_regions(self, features: Tensor, boxes: Tensor, masked: Tensor | None = None) -> Tensor:
        """Embed features (B, R, region_dim) and boxes (B, R, 7) as input embeddings (B, R, H)."""
        assert self.img_embeddings is not None, "a text body has no regions"
        region_type = self.embeddings.token_type_embeddings.weight[1]
        return self.img_embeddings(features, boxes, region_type, masked)

    def encode(self, embeddings: Tensor, mask: Tensor, layers: Iterable[nn.Module] | None = None) -> Tensor:
        """Run layers over ``embeddings`` (B, L, H).

        Args:
            embeddings: input embeddings, or the states after some of the layers.
            mask: bool (B, L), True = token or region, False = padding.
            layers: BERT layers of the body's configuration; None runs all layers of the body.

        Returns:
            The last hidden states, (B, L, H).
        """
        attention = None
        if not bool(mask.all()):  # without a mask, attention uses its fastest kernel
            attention = mask[:, None, None, :]
            if self.encoder.config._attn_implementation == "eager":  # this implementation adds the mask to the logits
                attention = torch.zeros_like(attention, dtype=embeddings.dtype).masked_fill(~attention, -10000.0)
        for layer in self.encoder.layer if layers is None else layers:
            embeddings = layer(embeddings, attention)
        return embeddings

    def last_attention(self, embeddings: Tensor) -> Tensor:
        """Compute the attention of each position to each in the last :data:`ATTENTION_LAYERS` layers.

        Args:
            embeddings: (B, L, H), without padding.

        Returns:
            (B, L, L), the mean over these layers and their heads; a row sums to 1.
        """
        layers: list[Any] = list(self.encoder.layer)
        weights: list[Tensor] = []
        for number, layer in enumerate(layers):
            if number >= len(layers) - ATTENTION_LAYERS:
                weights.append(attention_weights(layer.attention.self, embeddings, embeddings))
            embeddings = layer(embeddings, None)
        return torch.stack(weights).mean(0)


def text_body(config: PretrainedConfig, *, pooler: bool = True) -> nn.Module:
    """Create the text encoder: a :class:`BertBody`, or transformers' model of another type without its pooler."""
    if type(config) is BertConfig:
        return BertBody(config, pooler=pooler)
    model: nn.Module = AutoModel.from_config(config)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]  # forward() then skips it
    return model


class HubnessCalibration(nn.Module):
    """Correction of a vector's hubness, its mean similarity to all vectors of the other modality.

    Some photos score high with every sentence, and some sentences with every photo; they displace correct answers.
    The correction of a vector x is ``-weight * temperature * logmeanexp(x . anchors / temperature)``, with vectors of
    the other modality as anchors. The encoders append it as a coordinate, so a score remains one dot product. It is
    the logarithm of the inverted softmax (Smith et al., ICLR 2017; for retrieval: Bogolin et al., CVPR 2022).

    Args:
        count: number of anchors.
        dim: width of the vectors.
        weight: strength of the correction.
        temperature: of the softmax.
    """

    anchors: Tensor

    def __init__(self, count: int, dim: int, weight: float, temperature: float) -> None:
        super().__init__()
        self.register_buffer("anchors", torch.zeros(count, dim))
        self.weight, self.temperature = weight, temperature

    def forward(self, vectors: Tensor) -> Tensor:
        """Compute the correction (B, 1) of ``vectors`` (B, dim)."""
        similarity = vectors @ self.anchors.to(vectors.dtype).T / self.temperature
        mean = similarity.logsumexp(1, keepdim=True) - math.log(len(self.anchors))
        return -self.weight * self.temperature * mean


class PrincipalDirections(nn.Module):
    """Reduce vectors of texts and photos to the directions in which they are longest, with nearly the same products.

    Args:
        width: of the vectors.
        dim: number of directions.
    """

    directions: Tensor

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("directions", torch.zeros(dim, width))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return vectors (B, width) as (B, dim)."""
        return vectors @ self.directions.to(vectors.dtype).T

    @torch.no_grad()
    def place(self, vectors: Tensor) -> None:
        """Set the directions to the principal ones of ``vectors`` (n, width), of texts and photos.

        They are not centred: dot products are to stay as they are, not distances from a mean.
        """
        values = vectors.double()
        self.directions.copy_(torch.linalg.eigh(values.T @ values).eigenvectors.flip(1).T[: len(self.directions)])


def projection(hidden_size: int, projection_dim: int) -> nn.Sequential:
    """Create ``encode_proj`` of the published code: Linear h -> 2h, GELU, LayerNorm, Linear 2h -> projection_dim."""
    wide = hidden_size * 2
    return nn.Sequential(
        nn.Linear(hidden_size, wide), nn.GELU(), nn.LayerNorm(wide, eps=1e-12), nn.Linear(wide, projection_dim)
    )


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool hidden states (B, L, H) to one vector (B, H): the first position ("cls") or the mean without padding."""
    if pooling == "cls":
        return states[:, 0]
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1)


def pack(sequences: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Concatenate sequences (B, Li, H) with masks (B, Li), and move all padding to the end.

    Returns:
        Embeddings (B, L, H) and a bool mask (B, L), where L is the largest number of unmasked positions in a row.
    """
    embeddings = torch.cat([sequence for sequence, _ in sequences], dim=1)
    mask = torch.cat([mask.bool() for _, mask in sequences], dim=1)
    if bool(mask.all()):
        return embeddings, mask
    length = int(mask.sum(1).max())
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)[:, :length]
    index = order.unsqueeze(-1).expand(-1, -1, embeddings.shape[-1])
    return embeddings.gather(1, index), mask.gather(1, order)
