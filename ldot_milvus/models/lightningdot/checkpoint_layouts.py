"""Translate the tensor names of published checkpoints to ours, and read a model's sizes from its tensors.

Layouts (github intersun/LightningDOT, github ChenRocks/UNITER):

- pre-trained: a state dict with encoders under ``bert.img_model.`` and ``bert.txt_model.`` and the heads;
- fine-tuned: ``{"model_dict": ...}`` with ``img_model.`` and ``txt_model.``;
- UNITER: a state dict under ``bert.`` or ``uniter.``, with ``rank_output`` (retrieval) or only ``itm_output``
  (pre-trained) as its head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ldot_milvus.errors import ModelError
from ldot_milvus.models.lightningdot.configuration import LightningDOTConfig, RerankerConfig

_DUAL_ENCODER = [
    (r"^bert\.(?=img_model|txt_model)", ""),
    (r"^img_model\.bert\.", "image_model."),
    (r"^txt_model\.bert\.", "text_model."),
    (r"^img_model\.encode_proj\.", "image_projection."),
    (r"^txt_model\.encode_proj\.", "text_projection."),
]
_PRETRAINING = [
    (r"^(image|text)_(model|projection)\.", r"lightningdot.\g<0>"),
    (r"^cls\.predictions\.transform\.", "word_transform."),
    (r"^cls\.predictions\.bias$", "word_bias"),
    (r"^feat_regress\.net\.", "feature_transform."),
    (r"^feat_regress\.bias$", "feature_bias"),
    (r"^region_classifier\.net\.", "region_classifier."),
]
_TIED = {
    "cls.predictions.decoder.weight": "lightningdot.image_model.embeddings.word_embeddings.weight",
    "feat_regress.weight": "lightningdot.image_model.img_embeddings.img_linear.weight",
}
_RERANKER = [(r"^uniter\.", "bert.")]
_OLD_SPELLINGS = [(r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"),
                  (r"layer_norm\.gamma$", "layer_norm.weight"), (r"layer_norm\.beta$", "layer_norm.bias")]  # fmt: skip
_BUFFERS = r"embeddings\.position_ids$"  # of older code
_MATCHING = r"^itm_output\."
_HEADS = r"^(cls|feat_regress|region_classifier|itm_output)\."
HEAD_SIZE = 64
"""Width of an attention head in every published model; it cannot be read from a state dict."""


@dataclass
class Translation:
    """A published state dict under our names.

    Attributes:
        state: tensors by our names.
        renamed: maps published names to ours where they differ.
        dropped: published names of tensors that our model does not use.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def is_dual_encoder(published: Mapping[str, Any]) -> bool:
    """Return True for the tensor names of a dual encoder, pre-trained or fine-tuned; False for those of a UNITER."""
    return any(re.match(r"^(bert\.)?(img|txt)_model\.", name) for name in published)


def convert_dual_encoder(published: Mapping[str, Tensor]) -> Translation:
    """Translate a published dual encoder to :class:`LightningDOT`'s names; the heads of pre-training are dropped."""
    return _translate(published, _DUAL_ENCODER, _HEADS)


def convert_pretraining(published: Mapping[str, Tensor]) -> Translation:
    """Translate a pre-trained dual encoder with its heads to :class:`LightningDOTForPreTraining`'s names.

    Raises:
        ModelError: a decoder does not equal the encoder weight that it shares in the published code.
    """
    result = _translate(published, [*_DUAL_ENCODER, *_PRETRAINING], _MATCHING)
    for name, twin in _TIED.items():
        tensor = result.state.pop(name, None)
        if tensor is None:
            continue
        if twin not in result.state or not tensor.equal(result.state[twin]):
            raise ModelError(f"{name} is not the same tensor as {twin} (our name), unlike in the published models")
        result.dropped.append(name)
    return result


def convert_reranker(published: Mapping[str, Tensor]) -> Translation:
    """Translate a UNITER to :class:`CrossAttentionReranker`'s names.

    A pre-trained UNITER has no ``rank_output``: it is initialised with row 1 ("match") of ``itm_output``, as in
    UNITER's fine-tuning for retrieval.
    """
    translation = _translate(published, _RERANKER, _HEADS)
    for parameter in ("weight", "bias"):
        matching, ranking = f"itm_output.{parameter}", f"rank_output.{parameter}"
        if ranking not in translation.state and matching in published and published[matching].shape[:1] == (2,):
            translation.state[ranking] = published[matching][1:2].clone()
            translation.renamed[f"{matching}[1]"] = ranking
            translation.dropped.remove(matching)
    return translation


def _translate(published: Mapping[str, Tensor], rules: list[tuple[str, str]], unused: str) -> Translation:
    result = Translation()
    for name, tensor in published.items():
        if re.search(_BUFFERS, name) or re.search(unused, name):
            result.dropped.append(name)
            continue
        ours = name
        for pattern, replacement in rules + _OLD_SPELLINGS:
            ours = re.sub(pattern, replacement, ours)
        result.state[ours] = tensor
        if ours != name:
            result.renamed[name] = ours
    return result


def dual_encoder_config(
    state: Mapping[str, Tensor], known: Mapping[str, Any], *, classes: Tensor | None = None
) -> LightningDOTConfig:
    """Read the configuration of a dual encoder from its tensors.

    Args:
        state: tensors by our names.
        known: a BERT configuration for values that cannot be read from the tensors.
        classes: the bias of the region classifier; None if the checkpoint has none.

    Raises:
        ModelError: a tensor that determines a size is missing.
    """
    labels: dict[str, Any] = {} if classes is None else {"region_classes": len(classes)}
    return LightningDOTConfig(
        text_config=_body(state, "text_model.", known),
        image_config=_body(state, "image_model.", known),
        region_dim=_size(state, "image_model.img_embeddings.mask_embedding.weight", 1),
        projection_dim=_size(state, "image_projection.3.weight", 0),
        **labels,
    )


def reranker_config(state: Mapping[str, Tensor], known: Mapping[str, Any]) -> RerankerConfig:
    """Read the configuration of a re-ranker from its tensors; see :func:`dual_encoder_config`."""
    return RerankerConfig(
        bert_config=_body(state, "bert.", known),
        region_dim=_size(state, "bert.img_embeddings.mask_embedding.weight", 1),
    )


def _body(state: Mapping[str, Tensor], prefix: str, known: Mapping[str, Any]) -> dict[str, Any]:
    width = _size(state, f"{prefix}embeddings.word_embeddings.weight", 1)
    heads = known.get("num_attention_heads")
    if heads is None and width % HEAD_SIZE:
        raise ModelError(
            f"the width {width} of {prefix[:-1]} is not a multiple of {HEAD_SIZE}, so its number of attention heads is "
            'unknown: give a BERT configuration with "num_attention_heads" by --config'
        )
    layers = {
        int(match[1]) for name in state if (match := re.match(rf"{re.escape(prefix)}encoder\.layer\.(\d+)\.", name))
    }
    options = ("hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "pad_token_id")
    return {
        **{name: known[name] for name in options if name in known},
        "hidden_size": width,
        "num_attention_heads": heads or width // HEAD_SIZE,
        "num_hidden_layers": max(layers, default=-1) + 1,
        "intermediate_size": _size(state, f"{prefix}encoder.layer.0.intermediate.dense.bias", 0),
        "vocab_size": _size(state, f"{prefix}embeddings.word_embeddings.weight", 0),
        "max_position_embeddings": _size(state, f"{prefix}embeddings.position_embeddings.weight", 0),
        "type_vocab_size": _size(state, f"{prefix}embeddings.token_type_embeddings.weight", 0),
    }


def _size(state: Mapping[str, Tensor], name: str, axis: int) -> int:
    if name not in state:
        raise ModelError(f"the checkpoint has no tensor {name} (our name), which determines the model's size")
    return int(state[name].shape[axis])
