"""Training of the dual encoder: scores for the contrastive loss, dev recall, hubness calibration."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldot_milvus.batches import batched
from ldot_milvus.evaluation.recall import both_ways
from ldot_milvus.models.lightningdot.bundle import Bundle
from ldot_milvus.models.lightningdot.configuration import LightningDOTConfig
from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
from ldot_milvus.models.lightningdot.embedder import IMAGE_BATCH, LightningDOTEmbedder
from ldot_milvus.models.lightningdot.pretraining import LightningDOTForPreTraining
from ldot_milvus.regions import Regions
from ldot_milvus.training.contrastive import Scorer
from ldot_milvus.training.data import CaptionedPhotos

TEMPERATURE = 0.07
"""Where the learned temperature of the softmax starts, for models whose vectors have length 1."""

Figures = dict[str, dict[str, float]]


class DualScorer(Scorer):
    """Dot products; at a learned temperature, which is of no use after training, where vectors have length 1."""

    def __init__(self, model: LightningDOT | LightningDOTForPreTraining) -> None:
        super().__init__()
        self.model = model
        normalized = model.config.normalize
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE))) if normalized else None

    @property
    def encoder(self) -> LightningDOT:
        """The dual encoder, with or without heads around it."""
        return self.model.lightningdot if isinstance(self.model, LightningDOTForPreTraining) else self.model

    def encode_images(self, features: Tensor, boxes: Tensor, region_mask: Tensor) -> Tensor:
        """Vectors (P, dim)."""
        return self.encoder.encode_image(features, boxes, region_mask).float()

    def scores(self, ids: Tensor, mask: Tensor, images: Tensor, region_mask: Tensor) -> Tensor:
        """Logits (B, P)."""
        products = self.encoder.encode_text(ids, mask).float() @ images.T
        return products if self.log_scale is None else products * self.log_scale.exp().clamp(max=100)

    def is_text(self, parameter: str) -> bool:
        """The text encoder's own parameters."""
        return ".text_model." in f".{parameter}"


def vectors(embedder: LightningDOTEmbedder, photos: CaptionedPhotos) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors of all captions (in order of photo) and of all photos (view 0)."""
    texts = embedder.encode_texts([caption for captions in photos.captions for caption in captions])
    return texts, np.concatenate([embedder.encode_images(regions) for regions in some_at_a_time(photos)])


def some_at_a_time(photos: CaptionedPhotos) -> Iterator[list[Regions]]:
    """Regions of all photos, as many at once as the embedder computes at once."""
    for rows in batched(range(len(photos)), IMAGE_BATCH):
        yield [photos.regions(row) for row in rows]


def evaluate_dual(embedder: LightningDOTEmbedder, photos: CaptionedPhotos) -> Figures:
    """Recall@1/5/10 of both directions, in percent."""
    texts, images = vectors(embedder, photos)
    return both_ways(texts @ images.T, photos.owner)


def caption_embeddings(bundle: Bundle, photos: CaptionedPhotos) -> Tensor:
    """(N, dim) mean of each photo's caption vectors under the text encoder as it is, at length 1."""
    flat = LightningDOTEmbedder(bundle).encode_texts([text for captions in photos.captions for text in captions])
    plain = torch.from_numpy(flat[:, : bundle.encoder.config.projection_dim])
    lengths = [len(captions) for captions in photos.captions]
    means = [part.mean(0) for part in nn.functional.normalize(plain, dim=-1).split(lengths)]
    return nn.functional.normalize(torch.stack(means), dim=-1)


def without_calibration(model: LightningDOT) -> LightningDOT:
    """The model with plain dot products, which are what training ranks by."""
    if not model.config.calibration_anchors:
        return model
    return _recalibrated(model, 0)


def calibrate(bundle: Bundle, photos: CaptionedPhotos, anchors: int) -> LightningDOT:
    """The model with hubness calibration, its anchors the vectors of some photos and of a caption of each."""
    rows = np.unique(np.linspace(0, len(photos) - 1, anchors).astype(int)).tolist()
    some = replace(
        photos,
        names=[photos.names[row] for row in rows],
        captions=[photos.captions[row][:1] for row in rows],
        views=[lambda place: photos.views[0](rows[place])],
    )
    texts, images = (torch.from_numpy(part) for part in vectors(LightningDOTEmbedder(bundle), some))
    calibrated = _recalibrated(bundle.encoder, len(rows))
    assert calibrated.text_calibration is not None
    assert calibrated.image_calibration is not None
    calibrated.text_calibration.anchors.copy_(images)
    calibrated.image_calibration.anchors.copy_(texts)
    return calibrated


def _recalibrated(model: LightningDOT, anchors: int) -> LightningDOT:
    config: LightningDOTConfig = copy.deepcopy(model.config)  # type: ignore[assignment]
    config.calibration_anchors = anchors
    other = LightningDOT(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("_calibration.anchors")}
    other.load_state_dict(state, strict=False)
    return other.eval()
