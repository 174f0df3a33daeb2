"""The first stage of a compressed re-ranker in training: tokens and vectors of photos, by a model of any family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from ldot_milvus.batches import batched
from ldot_milvus.evaluation.datasets import Pair
from ldot_milvus.models.base import Embedder
from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
from ldot_milvus.models.patches import tokens_of
from ldot_milvus.regions import Regions
from ldot_milvus.training.batches import FirstStageVectors
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.dual import vectors

PHOTOS = 32


class TokenExtractor:
    """Extracts the tokens of photos as regions without boxes, so that they are stored and read like regions.

    Args:
        embedder: the first stage.
        dim: width of its tokens.
    """

    def __init__(self, embedder: Embedder, dim: int) -> None:
        self._embedder, self.dim = embedder, dim

    @property
    def least_side(self) -> int | None:
        """See :class:`~ldot_milvus.regions.base.RegionExtractor`."""
        return self._embedder.least_side

    def __call__(self, images: Sequence[Image]) -> list[Regions]:
        """Compute the tokens of photos."""
        features = self._embedder.image_features(images)
        return [as_regions(tokens.float().cpu().numpy()) for tokens in tokens_of(features)]


def as_regions(tokens: NDArray[np.float32]) -> Regions:
    """Return tokens (n, d) as regions, with boxes of zeros."""
    return Regions(tokens, np.zeros((len(tokens), 7), np.float32), np.ones(len(tokens), np.float32))


def token_width(embedder: Embedder, pair: Pair) -> int:
    """Return the width of the first stage's tokens, measured on one photo."""
    return int(tokens_of(embedder.image_features([pair.load()]))[0].shape[1])


def first_stage_vectors(
    embedder: Embedder, pairs: Sequence[Pair], photos: CaptionedPhotos, file: Path
) -> FirstStageVectors:
    """Compute the vectors of all captions and photos, or read those of an earlier call.

    Args:
        embedder: the first stage, which is not trained.
        pairs: the photos.
        photos: the same photos, with their tokens.
        file: where the vectors are stored.
    """
    if not file.exists():
        if isinstance(embedder, LightningDOTEmbedder):
            texts, images = vectors(embedder, photos)  # from the stored regions, without a pass over the pixels
        else:
            texts = embedder.encode_texts([caption for captions in photos.captions for caption in captions])
            images = np.concatenate(
                [embedder.encode_images([pair.load() for pair in some]) for some in batched(pairs, PHOTOS)]
            )
        unfinished = file.with_suffix(".tmp")
        with unfinished.open("wb") as opened:
            np.savez(opened, texts=texts, images=images)
        unfinished.rename(file)
    with np.load(file) as stored:
        return stored["texts"], stored["images"]
