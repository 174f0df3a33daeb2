"""The start of an EDJE re-ranker from an alignment re-ranker such as ldot-mini's: it ranks before it is trained.

A joint encoder that starts from a text encoder alone needs millions of pairs before it ranks at all. This one takes
over everything that the alignment re-ranker knows: its text encoder becomes the layers that read the text alone, its
embedding of regions comes before the adapter, and its alignment gives the first score. New are the adapter, whose
queries start as the centroids of the training photos' regions, so that each kept token is a mean of similar regions,
and the joint layers, whose head starts at zero.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ldot_milvus.errors import UsageError
from ldot_milvus.models.base import Embedder
from ldot_milvus.models.edje.adapters import TokenCompression
from ldot_milvus.models.edje.configuration import EdjeConfig
from ldot_milvus.models.edje.joint_encoder import EdjeReranker
from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
from ldot_milvus.training.batches import region_tensors
from ldot_milvus.training.data import CaptionedPhotos

JOINT_LAYERS = 2
"""Number of joint layers, unless ``bert_config`` has a number of all layers."""
SAMPLE = 500
"""Number of photos whose regions are clustered."""
SHARPNESS = 4.0
"""Weight of a kept token's similarities to the regions: their softmax then has its mass on the nearest few."""


def from_alignment(
    first_stage: Embedder, settings: dict[str, Any], text: str | None, photos: CaptionedPhotos
) -> tuple[EdjeReranker, PreTrainedTokenizerBase]:
    """Create a re-ranker that starts from the first stage's alignment re-ranker, with the first stage's tokenizer.

    Args:
        first_stage: a LightningDOT model.
        settings: fields of :class:`EdjeConfig`.
        text: ``start.reranker.text``, which this start does not have.
        photos: whose regions are clustered, as the extractor gives them.

    Raises:
        UsageError: the first stage has no such re-ranker, or settings do not fit.
    """
    source = first_stage.bundle.reranker if isinstance(first_stage, LightningDOTEmbedder) else None
    if not isinstance(first_stage, LightningDOTEmbedder) or source is None or source.alignment is None:
        raise UsageError(
            f"{first_stage.name!r} has no alignment re-ranker to start from: set start.reranker.scoring to 'compressed'"
        )
    if text is not None:
        raise UsageError("start.reranker.text: scoring 'aligned' starts from the model's own re-ranker, remove it")
    try:
        model = _network(source.config, settings)
        _take_over(model, source)
        _start_adapter(model.adapter, _embedded(source, photos))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"start.reranker: these settings do not fit ({str(error).splitlines()[0]})") from error
    return model, first_stage.bundle.tokenizer


def _network(source: Any, settings: dict[str, Any]) -> EdjeReranker:
    bert = source.bert_config.to_dict()
    layers = bert["num_hidden_layers"]
    body = {**bert, "num_hidden_layers": layers + JOINT_LAYERS, **settings.pop("bert_config")}
    options = {"compressed_tokens": 64, "adapter_heads": 1, "max_text_length": source.max_text_length, **settings}
    return EdjeReranker(
        EdjeConfig(
            bert_config=body, token_dim=body["hidden_size"], region_dim=source.region_dim, text_layers=layers, **options
        )
    )


@torch.no_grad()
def _take_over(model: EdjeReranker, source: CrossAttentionReranker) -> None:
    """Copy the alignment re-ranker's weights. The joint layers start as the last layers of its text encoder."""
    layers = model.config.text_layers
    own = model.state_dict()
    weights = {name: tensor for name, tensor in source.state_dict().items() if name in own}
    model.load_state_dict(weights, strict=False)
    joint = model.bert.encoder.layer[layers:]
    for number, layer in enumerate(joint):
        layer.load_state_dict(source.bert.encoder.layer[max(0, layers - len(joint) + number)].state_dict())
    torch.nn.init.zeros_(model.classifier.weight)
    torch.nn.init.zeros_(model.classifier.bias)


@torch.no_grad()
def _embedded(source: CrossAttentionReranker, photos: CaptionedPhotos) -> torch.Tensor:
    """Return the embedded regions (n, H) of some photos, evenly spaced."""
    rows = np.linspace(0, len(photos) - 1, min(SAMPLE, len(photos))).astype(int)
    embedded = []
    for row in rows.tolist():
        features, boxes, mask = (tensor.to(source.device) for tensor in region_tensors([photos.regions(row)]))
        embedded.append(source.embed_regions(features, boxes)[mask].float().cpu())
    return torch.cat(embedded)


@torch.no_grad()
def _start_adapter(adapter: torch.nn.Module, regions: torch.Tensor) -> None:
    """Let each query attend to the regions near a centroid, and pass on their mean as it is.

    Regions are compared in channels of mean 0 and deviation 1.
    """
    assert isinstance(adapter, TokenCompression)
    count, width = adapter.query.shape[1:]
    mean, deviation = regions.mean(0), regions.std(0) + 1e-6
    points = ((regions - mean) / deviation).numpy()
    if len(points) < count:
        raise ValueError(f"compressed_tokens is {count}, and the photos have {len(points)} regions altogether")
    clusters = faiss.Kmeans(width, count, niter=15, seed=0, min_points_per_centroid=1)
    clusters.train(np.ascontiguousarray(points))
    one = torch.eye(width)
    adapter.query.copy_(torch.from_numpy(clusters.centroids)[None])
    adapter.query.mul_(SHARPNESS * (width / adapter.attention.num_heads) ** -0.5)
    adapter.key.weight.copy_(one / deviation[:, None])
    adapter.key.bias.copy_(-mean / deviation)
    adapter.attention.in_proj_weight.copy_(one.repeat(3, 1))
    for linear in (adapter.value, adapter.attention.out_proj, adapter.projection):
        linear.weight.copy_(one)
        linear.bias.zero_()
    adapter.attention.in_proj_bias.zero_()
    adapter.mlp.fc2.weight.zero_()  # what it adds to the mean starts at zero
    adapter.mlp.fc2.bias.zero_()
