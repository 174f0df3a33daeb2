"""Give the initial model of a run label names (:class:`~ldot_milvus.models.lightningdot.label_names.LabelNames`)."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import BertModel

from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.evaluation.photos import Caption
from ldot_milvus.models.base import read_config
from ldot_milvus.models.lightningdot.bundle import Bundle, load_extractor
from ldot_milvus.models.lightningdot.configuration import LightningDOTConfig
from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
from ldot_milvus.models.lightningdot.files import LABEL_NAMES, LABEL_VECTORS, LABELS, find_lightningdot
from ldot_milvus.models.loading import QuietTransformers, load_model
from ldot_milvus.models.texts import by_length
from ldot_milvus.training.checkpoints import copy_folder
from ldot_milvus.training.recipe import Labels

SENTENCE = "a photo of a {}"
"""The sentence that stands for a label; other wordings change recall by less than a point."""

TEXT_BATCH = 128


def add_labels(labels: Labels, sentence_encoder: str | None, folder: Path, captions: Sequence[Caption]) -> None:
    """Give the model in ``folder`` label names, in place. If it has some, they are replaced.

    Args:
        labels: the classifier, the names and the options of the label names.
        sentence_encoder: folder or hub id of a BERT; None keeps that of the model's present label names.
        folder: of the model; it may be written to.
        captions: texts like those that will be searched; their mean is the centre of texts.

    Raises:
        UsageError: a folder or file does not exist, or does not fit the model or the others.
    """
    names = _copy_classifier(labels, folder / LABELS)
    bundle = load_model(str(folder), device="cpu", dtype="float32")
    encoder = _with_layers(bundle.encoder, labels, len(names), sentence_encoder)
    assert encoder.label_names is not None
    encoder.label_names.place(
        _sentences(encoder, bundle, [SENTENCE.format(name) for name in names]),
        _sentences(encoder, bundle, captions),
        _directions(bundle.encoder, labels),
    )
    encoder.save_pretrained(folder)
    if encoder.config.label_features:
        np.save(folder / LABELS / LABEL_VECTORS, encoder.label_names.vectors.numpy().astype(np.float16))
        _check_width(labels, folder)


def _directions(model: LightningDOT, labels: Labels) -> Tensor | None:
    """Return the directions in which the model's networks have learned to read names; None if they read none."""
    if model.label_names is None or not model.config.label_features:
        return None
    if labels.dim != model.config.label_dim:
        raise UsageError(
            f"start.labels.dim is {labels.dim}, and the model has learned to read names of width "
            f"{model.config.label_dim}: give that"
        )
    return model.label_names.directions


def _check_width(labels: Labels, folder: Path) -> None:
    """Refuse a model that does not read as many features as its regions have with those of the classifier."""
    try:
        load_extractor(find_lightningdot(str(folder)), torch.device("cpu"), torch.float32)
    except ModelError as error:
        raise UsageError(
            f"start.labels.features adds features of {labels.classifier} and two vectors of {labels.dim} values to a "
            f"region's, for which region_dim must be set: {error}"
        ) from error


def _copy_classifier(labels: Labels, target: Path) -> list[str]:
    """Copy the classifier's folder, with the names that the recipe gives, and return the names."""
    source = Path(labels.classifier)
    if not (source / "config.json").is_file() or "label_count" in read_config(labels.classifier, source):
        source = find_lightningdot(labels.classifier).folder / LABELS
    file = source / LABEL_NAMES if labels.names is None else Path(labels.names)
    try:
        config = read_config(labels.classifier, source)
        names = json.loads(file.read_text(encoding="utf-8"))
    except ModelError as error:
        raise UsageError(f"start.labels.classifier {labels.classifier!r} has no classifier: {error}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"start.labels.names: {file} cannot be read as JSON ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise UsageError(f"start.labels.names: {file} is not a JSON list of names")
    if len(names) != config.get("num_labels"):
        raise UsageError(
            f"start.labels.names: {file} has {len(names)} names, and the classifier in {source} knows "
            f"{config.get('num_labels')} labels: give one name for each, in its order"
        )
    if source.resolve() != target.resolve():
        copy_folder(source, target)
    (target / LABEL_VECTORS).unlink(missing_ok=True)  # of other names
    (target / LABEL_NAMES).write_text(json.dumps(names, ensure_ascii=False, indent=0), encoding="utf-8")
    return names


def _with_layers(model: LightningDOT, labels: Labels, count: int, sentence_encoder: str | None) -> LightningDOT:
    """Return the model with label names whose vectors are not yet placed."""
    config: LightningDOTConfig = copy.deepcopy(model.config)  # type: ignore[assignment]
    own = config.label_count > 0 and sentence_encoder is None
    if not own and sentence_encoder is None:
        raise UsageError("start.labels.text: name the sentence encoder of the label names, the model has none yet")
    config.label_count, config.label_dim, config.label_weight = count, labels.dim, labels.weight
    config.label_features = config.label_features or labels.features
    config.label_classifier = {"temperature": labels.temperature, "cells": labels.cells}
    if not own:
        config.label_shared_layers = labels.shared_layers
    try:
        result = LightningDOT(LightningDOTConfig(**config.to_dict()))
        fresh = result.state_dict()
        # These buffers are set later: the names' vectors by place(), the calibration's anchors by finish().
        buffers = fresh.keys() - dict(result.named_parameters()).keys()
        later = {name for name in buffers if name.startswith("label_names.") or name.endswith("_calibration.anchors")}
        state = {name: tensor for name, tensor in model.state_dict().items() if name not in later}
        if not own:
            assert sentence_encoder is not None
            state = {name: tensor for name, tensor in state.items() if not name.startswith("label_names.")}
            state |= _sentence_layers(model, sentence_encoder, labels.shared_layers)
        result.load_state_dict(state | {name: fresh[name] for name in later})
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"start.labels: these settings do not fit ({str(error).splitlines()[0]})") from error
    return result.eval()


def _sentence_layers(model: LightningDOT, source: str, shared: int) -> dict[str, Tensor]:
    """Return the layers of a sentence encoder that the model does not share, under the model's names.

    Raises:
        UsageError: the layers to be shared differ, since the model's were trained.
    """
    with QuietTransformers():
        weights = BertModel.from_pretrained(source, add_pooling_layer=False).float().state_dict()
    own = model.text_model.state_dict()
    layers = {}
    for name, tensor in weights.items():
        keys = name.split(".")
        number = int(keys[2]) if name.startswith("encoder.layer.") else -1
        if number >= shared:
            layers[".".join(["label_names.layers", str(number - shared), *keys[3:]])] = tensor
        elif name in own and tensor.is_floating_point() and not _equal_as_stored(own[name], tensor):
            part = "word embeddings" if number < 0 else f"layer {number + 1}"
            raise UsageError(
                f"start.labels: the text encoder's {part} differ from those of {source!r}: label names need a text "
                f"encoder that was made from it, with its first {shared} layers frozen"
            )
    return layers


def _equal_as_stored(first: Tensor, second: Tensor) -> bool:
    """Return True if two tensors differ by no more than the rounding of int8 storage (:mod:`ldot_milvus.weights`)."""
    if first.shape != second.shape:
        return False
    rows = second.flatten(1) if second.dim() > 1 else second[None]
    step = rows.abs().amax(1, keepdim=True) / 127
    return bool(((first.float() - second).reshape(rows.shape).abs() <= 0.51 * step + 1e-6).all())


@torch.inference_mode()
def _sentences(encoder: LightningDOT, bundle: Bundle, texts: Sequence[Caption]) -> Tensor:
    """Encode texts with the sentence encoder of the label names, (n, H)."""
    tokens = bundle.texts.ids(texts, encoder.config.max_text_length)

    def encode(rows: list[int]) -> Tensor:
        return encoder.encode_sentences(*bundle.texts.padded([tokens[row] for row in rows]))

    width = encoder.config.text_config.hidden_size
    return torch.from_numpy(by_length(tokens, TEXT_BATCH, width, encode))
