"""Create the initial model of a run from a BERT and a region extractor, and a new re-ranker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel, PretrainedConfig

from ldot_milvus.errors import UsageError
from ldot_milvus.models.lightningdot.configuration import LightningDOTConfig, RerankerConfig
from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
from ldot_milvus.models.lightningdot.files import RERANKER, find_lightningdot
from ldot_milvus.models.loading import load_model
from ldot_milvus.training.checkpoints import copy_folder
from ldot_milvus.training.recipe import Stage, Start

SIZES = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "vocab_size",
         "max_position_embeddings", "layer_norm_eps")  # fmt: skip


def new_model(start: Start, folder: Path) -> None:
    """Write a new model to ``folder``: both encoders initialised from a BERT, its tokenizer and a region extractor.

    Raises:
        UsageError: the text encoder or the extractor does not exist, or settings do not fit them.
    """
    assert start.text is not None
    for key, config_class, values in (
        ("config", LightningDOTConfig, start.config),
        ("text_config", BertConfig, start.text_config),
        ("image_config", BertConfig, start.image_config),
    ):
        _check_names(f"start.{key}", config_class, values)
    try:
        bert = BertModel.from_pretrained(start.text, add_pooling_layer=False).float()
        tokenizer = AutoTokenizer.from_pretrained(start.text)
    except (OSError, ValueError) as error:
        raise UsageError(f"start.text {start.text!r} is not a BERT: {str(error).splitlines()[0]}") from error
    try:
        model = _dual_encoder(start, bert)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"start: these settings do not fit {start.text!r} ({str(error).splitlines()[0]})") from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if start.extractor is not None:
        copy_folder(_extractor(start.extractor), folder / "regions")


def starting_reranker(start: Start, folder: Path, stage: Stage) -> CrossAttentionReranker:
    """Load the re-ranker of the model in ``folder``, or create one that is initialised from its text encoder.

    Args:
        start: configuration of a new one.
        folder: of the model.
        stage: its ``region_features`` are those that the re-ranker reads.

    Raises:
        UsageError: settings of the new re-ranker are unknown or do not fit, or the present one reads other features.
    """
    if find_lightningdot(str(folder)).own_reranker() is not None:
        present: CrossAttentionReranker = CrossAttentionReranker.from_pretrained(folder / RERANKER)
        reads = present.config.read_region_dim
        if stage.region_features not in (None, reads):
            raise UsageError(
                f"{stage.name}: region_features is {stage.region_features}, and the model's re-ranker reads {reads}"
            )
        return present
    _check_names("start.reranker", RerankerConfig, start.reranker)
    encoder = load_model(str(folder), device="cpu", dtype="float32").encoder
    width = encoder.config.region_dim
    if (stage.region_features or 0) > width:
        raise UsageError(f"{stage.name}: region_features is {stage.region_features}, and a region has {width}")
    config = {"region_dim": width, "first_region_dim": stage.region_features,
              "max_text_length": encoder.config.max_text_length}  # fmt: skip
    body = encoder.config.text_config.to_diff_dict()
    try:
        model = CrossAttentionReranker(RerankerConfig(**{"bert_config": body, **config, **start.reranker}))
        model.bert.load_state_dict(encoder.text_model.state_dict(), strict=False)  # all but the region embeddings
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"start.reranker: these settings do not fit ({str(error).splitlines()[0]})") from error
    return model


def _check_names(table: str, config: type[PretrainedConfig], values: dict[str, Any]) -> None:
    """Refuse unknown settings, which transformers would store and ignore."""
    unknown = values.keys() - vars(config()).keys()
    if unknown:
        raise UsageError(f"{table}.{min(unknown)}: no such setting")


def _dual_encoder(start: Start, bert: BertModel) -> LightningDOT:
    """Create a dual encoder from a BERT, whose last layers initialise the image encoder."""
    config: BertConfig = bert.config
    body = {name: getattr(config, name) for name in SIZES} | start.text_config
    images = {**body, "num_hidden_layers": start.image_layers, **start.image_config}
    options: dict[str, Any] = {"projection_dim": config.hidden_size, **start.config}
    torch.manual_seed(0)
    model = LightningDOT(LightningDOTConfig(text_config=body, image_config=images, **options))
    weights = bert.state_dict()
    model.text_model.load_state_dict(weights, strict=False)
    model.image_model.load_state_dict(_for_images(weights, model, start.image_layers), strict=False)
    return model


def _for_images(weights: dict[str, Tensor], model: LightningDOT, layers: int) -> dict[str, Tensor]:
    """Return BERT's last layers under the image encoder's names, and its word embeddings if the shapes are equal."""
    own = model.image_model.state_dict()
    first = model.config.text_config.num_hidden_layers - layers
    if first < 0:
        raise ValueError(f"image_layers is {layers}, and the text encoder has {first + layers}")
    initial = {}
    for name in own:
        keys = name.split(".")
        if name.startswith("encoder.layer."):
            keys[2] = str(first + int(keys[2]))
        elif name != "embeddings.word_embeddings.weight":
            continue
        tensor = weights.get(".".join(keys))
        if tensor is not None and tensor.shape == own[name].shape:
            initial[name] = tensor
    return initial


def _extractor(name: str) -> Path:
    """Return the folder of a region extractor's weights: a LightningDOT model's, or ``name`` itself."""
    folder, config = Path(name), Path(name) / "config.json"  # a detector has a config.yaml
    if folder.is_dir() and not (
        config.is_file() and json.loads(config.read_text()).get("model_type") == "lightningdot"
    ):
        return folder
    regions = find_lightningdot(name).extractor_weights
    if not isinstance(regions, Path) or not regions.is_dir():
        raise UsageError(f"start.extractor {name!r} has no region extractor on this machine: name a folder of weights")
    return regions
