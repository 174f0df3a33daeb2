"""The parts that the dual encoder and the re-ranker share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, PretrainedConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPooler, BertPreTrainedModel

from ldot_milvus.weights import QuantizedStorage


class BertBasedModel(QuantizedStorage, BertPreTrainedModel):
    """Base of our models: BERT's initialisation and attention kernels, our storage."""

    main_input_name = "input_ids"


class RegionEmbeddings(nn.Module):
    """Image regions as input embeddings of a BERT body (UNITER, section 3.1).

    ``LN(LN(img_linear(feature)) + LN(pos_linear(box)) + type)``, then dropout.
    """

    def __init__(self, config: BertConfig, region_dim: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.img_linear = nn.Linear(region_dim, size)
        self.img_layer_norm = nn.LayerNorm(size, eps=eps)
        self.pos_linear = nn.Linear(7, size)
        self.pos_layer_norm = nn.LayerNorm(size, eps=eps)
        # Row 1 is added to a region that masked region modelling hides; row 0 stays zero.
        self.mask_embedding = nn.Embedding(2, region_dim, padding_idx=0)
        self.LayerNorm = nn.LayerNorm(size, eps=eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features: Tensor, boxes: Tensor, type_embedding: Tensor, masked: Tensor | None = None) -> Tensor:
        """Embed ``features`` (B, R, region_dim) at ``boxes`` (B, R, 7); ``masked`` (B, R) marks masked regions."""
        if masked is not None:
            features = features.masked_fill(masked.bool().unsqueeze(-1), 0) + self.mask_embedding(masked.long())
        dtype = self.img_linear.weight.dtype
        image = self.img_layer_norm(self.img_linear(features.to(dtype)))
        position = self.pos_layer_norm(self.pos_linear(boxes.to(dtype)))
        return self.dropout(self.LayerNorm(image + position + type_embedding))


class BertBody(nn.Module):
    """transformers' BERT layers under their published names, fed with embeddings of any kind."""

    def __init__(self, config: BertConfig, *, region_dim: int | None = None, pooler: bool = True) -> None:
        super().__init__()
        if config._attn_implementation is None:  # transformers only sets it on the outermost configuration
            config._attn_implementation = "sdpa"
        self.embeddings = BertEmbeddings(config)
        self.img_embeddings = None if region_dim is None else RegionEmbeddings(config, region_dim)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if pooler else None

    def embed_regions(self, features: Tensor, boxes: Tensor, masked: Tensor | None = None) -> Tensor:
        """(B, R, region_dim) features and (B, R, 7) boxes to (B, R, hidden) input embeddings."""
        assert self.img_embeddings is not None, "a text body has no regions"
        region_type = self.embeddings.token_type_embeddings.weight[1]
        return self.img_embeddings(features, boxes, region_type, masked)

    def encode(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Run all layers over ``embeddings`` (B, L, H); ``mask`` (B, L): true = real."""
        attention = None
        if not bool(mask.all()):  # a full mask is dropped, so that attention takes its fastest kernel
            attention = mask[:, None, None, :]
            if self.encoder.config._attn_implementation == "eager":  # which adds its mask
                attention = torch.zeros_like(attention, dtype=embeddings.dtype).masked_fill(~attention, -10000.0)
        for layer in self.encoder.layer:
            embeddings = layer(embeddings, attention)
        return embeddings


def text_body(config: PretrainedConfig, *, pooler: bool = True) -> nn.Module:
    """The encoder of texts: our BERT, or transformers' own model of another type, without what it pools."""
    if type(config) is BertConfig:
        return BertBody(config, pooler=pooler)
    model: nn.Module = AutoModel.from_config(config)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]  # forward() passes it by then
    return model


class HubnessCalibration(nn.Module):
    """How near a vector is to everything on the other side, to be taken out of its scores.

    Some photos are near every sentence, and some sentences near every photo; they crowd out the right answers. The
    correction of a vector x is ``-weight * temperature * logmeanexp(x . anchors / temperature)``, with vectors of the
    other side as anchors. The encoders append it as a coordinate, so a score remains one dot product. It is the
    logarithm of the inverted softmax (Smith et al., ICLR 2017; for retrieval: Bogolin et al., CVPR 2022).
    """

    anchors: Tensor

    def __init__(self, count: int, dim: int, weight: float, temperature: float) -> None:
        super().__init__()
        self.register_buffer("anchors", torch.zeros(count, dim))
        self.weight, self.temperature = weight, temperature

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, dim) to the correction, (B, 1)."""
        nearness = vectors @ self.anchors.to(vectors.dtype).T / self.temperature
        mean = nearness.logsumexp(1, keepdim=True) - math.log(len(self.anchors))
        return -self.weight * self.temperature * mean


def projection(hidden_size: int, projection_dim: int) -> nn.Sequential:
    """``encode_proj`` of the published code: Linear h -> 2h, GELU, LayerNorm, Linear 2h -> projection_dim."""
    wide = hidden_size * 2
    return nn.Sequential(
        nn.Linear(hidden_size, wide), nn.GELU(), nn.LayerNorm(wide, eps=1e-12), nn.Linear(wide, projection_dim)
    )


def pool(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """One vector (B, H) of last hidden states (B, L, H): the first position ("cls") or the mean of the real ones."""
    if how == "cls":
        return hidden[:, 0]
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1)


def pack(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join sequences (B, Li, H) with masks (B, Li) and push the padding of all of them to the end.

    Returns embeddings (B, L, H) and mask (B, L), where L is the longest joined row.
    """
    embeddings = torch.cat([part for part, _ in parts], dim=1)
    mask = torch.cat([mask.bool() for _, mask in parts], dim=1)
    if bool(mask.all()):
        return embeddings, mask
    length = int(mask.sum(1).max())
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)[:, :length]
    index = order.unsqueeze(-1).expand(-1, -1, embeddings.shape[-1])
    return embeddings.gather(1, index), mask.gather(1, order)
