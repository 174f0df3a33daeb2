"""Train the dual encoder: scores for the contrastive loss, dev recall, hubness calibration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from ldot_milvus.batches import batched
from ldot_milvus.errors import UsageError
from ldot_milvus.evaluation.recall import both_ways
from ldot_milvus.models.lightningdot.bundle import Bundle
from ldot_milvus.models.lightningdot.configuration import LightningDOTConfig
from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
from ldot_milvus.models.lightningdot.embedder import IMAGE_BATCH, LightningDOTEmbedder
from ldot_milvus.models.lightningdot.pretraining import LightningDOTForPreTraining
from ldot_milvus.regions import Regions
from ldot_milvus.training.contrastive import Scorer
from ldot_milvus.training.data import CaptionedPhotos, evenly

TEMPERATURE = 0.07
"""Initial value of the softmax's learned temperature, for models with normalised vectors."""

CAPTIONED = 50
"""Photos, with all their captions, that are encoded at once."""

PLACED = 500
"""Photos, with all their captions, by whose vectors principal directions are chosen."""

Figures = dict[str, dict[str, float]]
"""Recall of each direction in percent: ``{"text_to_image": {"R@1": ...}, "image_to_text": {...}}``."""


class DualScorer(Scorer):
    """Scores by dot product. If vectors are normalised, scores have a learned temperature, used in training only."""

    def __init__(self, model: LightningDOT | LightningDOTForPreTraining) -> None:
        super().__init__()
        self.model = model
        normalized = model.config.normalize
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE))) if normalized else None

    @property
    def encoder(self) -> LightningDOT:
        """The dual encoder, without the heads of pre-training."""
        return self.model.lightningdot if isinstance(self.model, LightningDOTForPreTraining) else self.model

    @override
    def encode_images(
        self, features: Tensor, boxes: Tensor, region_mask: Tensor, label_probabilities: Tensor | None = None
    ) -> Tensor:
        return self.encoder.encode_image(features, boxes, region_mask, label_probabilities).float()

    @override
    def scores(self, ids: Tensor, mask: Tensor, images: Tensor, region_mask: Tensor) -> Tensor:
        products = self.encoder.encode_text(ids, mask).float() @ images.T
        return products if self.log_scale is None else products * self.log_scale.exp().clamp(max=100)

    @override
    def is_text(self, parameter: str) -> bool:
        return ".text_model." in f".{parameter}"

    @override
    def inputs(self) -> list[nn.Linear]:
        assert self.encoder.image_model.img_embeddings is not None
        return [self.encoder.image_model.img_embeddings.img_linear]


def vectors(embedder: LightningDOTEmbedder, photos: CaptionedPhotos) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Encode all captions (C, dim), in order of photo, and view 0 of all photos (N, dim)."""
    texts = embedder.encode_texts([caption for captions in photos.captions for caption in captions])
    return texts, np.concatenate([embedder.encode_images(regions) for regions in region_batches(photos)])


def region_batches(photos: CaptionedPhotos) -> Iterator[list[Regions]]:
    """Yield the regions of all photos in batches of the embedder's size."""
    for rows in batched(range(len(photos)), IMAGE_BATCH):
        yield [photos.regions(row) for row in rows]


def caption_batches(
    bundle: Bundle, photos: CaptionedPhotos, rows: Sequence[int]
) -> Iterator[tuple[list[int], tuple[Tensor, Tensor]]]:
    """Yield some photos' rows in batches, and all their captions as padded token ids and mask."""
    for some in batched(rows, CAPTIONED):
        captions = [caption for row in some for caption in photos.captions[row]]
        yield some, bundle.texts.padded(bundle.texts.ids(captions, bundle.encoder.config.max_text_length))


def evaluate_dual(embedder: LightningDOTEmbedder, photos: CaptionedPhotos) -> Figures:
    """Measure Recall@1/5/10 of both directions, in percent."""
    texts, images = vectors(embedder, photos)
    return both_ways(texts @ images.T, photos.owner)


def caption_embeddings(bundle: Bundle, photos: CaptionedPhotos) -> Tensor:
    """Return the normalised mean (N, dim) of each photo's normalised, uncalibrated caption vectors."""
    calibrated = LightningDOTEmbedder(bundle).encode_texts([text for captions in photos.captions for text in captions])
    plain = torch.from_numpy(calibrated[:, : bundle.encoder.config.learned_dim])
    lengths = [len(captions) for captions in photos.captions]
    means = [captions.mean(0) for captions in nn.functional.normalize(plain, dim=-1).split(lengths)]
    return nn.functional.normalize(torch.stack(means), dim=-1)


def for_training(model: LightningDOT) -> LightningDOT:
    """Return the model as training ranks with it, without what is computed after training.

    That is hubness calibration, canonical correlations and principal directions. They are computed from the photos as
    they are, and training changes their features: it standardises and drops some.
    """
    if not model.config.calibration_anchors and model.canonical is None and model.principal is None:
        return model
    return rebuilt(model, calibration_anchors=0, canonical_dim=0, canonical_words=0, principal_dim=0)


def reduced(bundle: Bundle, photos: CaptionedPhotos, dim: int) -> LightningDOT:
    """Return the encoder of ``bundle`` with the principal directions of its projected vectors, uncalibrated.

    Args:
        bundle: of the encoder.
        photos: the source of the vectors: photos at even distances, with all their captions.
        dim: number of directions.

    Raises:
        UsageError: there are fewer directions.
    """
    plain = rebuilt(bundle.encoder, calibration_anchors=0, principal_dim=0)
    try:
        result = rebuilt(plain, principal_dim=dim)
    except ValueError as error:
        raise UsageError(f"finish.principal_dim: {error}") from error
    assert result.principal is not None
    found = vectors(LightningDOTEmbedder(replace(bundle, encoder=plain)), _sample(photos, PLACED))
    result.principal.place(torch.from_numpy(np.concatenate(found)[:, : plain.config.projection_dim]))
    return result


def calibrate(bundle: Bundle, photos: CaptionedPhotos, anchors: int) -> LightningDOT:
    """Return the model with hubness calibration.

    Args:
        bundle: the model.
        photos: the source of the anchors: photos at even distances, and the first caption of each.
        anchors: number of anchors of each modality; fewer if there are fewer photos.
    """
    sample = _sample(photos, anchors, captions=1)
    texts, images = (torch.from_numpy(values) for values in vectors(LightningDOTEmbedder(bundle), sample))
    calibrated = rebuilt(bundle.encoder, calibration_anchors=len(sample))
    assert calibrated.text_calibration is not None
    assert calibrated.image_calibration is not None
    width = bundle.encoder.config.compared_dim  # without the coordinates of an earlier calibration
    calibrated.text_calibration.anchors.copy_(images[:, :width])
    calibrated.image_calibration.anchors.copy_(texts[:, :width])
    return calibrated


def _sample(photos: CaptionedPhotos, count: int, captions: int | None = None) -> CaptionedPhotos:
    """Return photos at even distances, at most ``count``, with the first captions of each; None for all."""
    rows = evenly(len(photos), count)
    return replace(
        photos,
        names=[photos.names[row] for row in rows],
        captions=[photos.captions[row][:captions] for row in rows],
        views=[lambda index: photos.views[0](rows[index])],
    )


def rebuilt(model: LightningDOT, **changes: int) -> LightningDOT:
    """Return the model with another configuration, on its device; parts that it lacks, and anchors, are not yet set.

    With a smaller ``first_region_dim``, it keeps the weights of the features that are still read.

    Raises:
        ValueError: the configuration is invalid.
    """
    config: LightningDOTConfig = LightningDOTConfig(**{**model.config.to_dict(), **changes})
    result = LightningDOT(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("_calibration.anchors")}
    if (config.canonical_dim, config.canonical_words) != (model.config.canonical_dim, model.config.canonical_words):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("canonical.")}
    if config.principal_dim != model.config.principal_dim:
        state.pop("principal.directions", None)
    for name in ("img_linear", "mask_embedding"):
        key = f"image_model.img_embeddings.{name}.weight"
        state[key] = state[key][:, : config.first_region_dim]
    result.load_state_dict(state, strict=False)
    return nn.Module.to(result.eval(), model.device)
