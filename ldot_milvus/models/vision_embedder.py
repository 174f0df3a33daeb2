"""What embedders with a vision transformer have in common: one pass over prepared pixels gives states and vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch.nn.functional import normalize

from ldot_milvus.batches import batched
from ldot_milvus.forks import computation
from ldot_milvus.models.base import Array, ImageInput
from ldot_milvus.models.inputs import image_inputs
from ldot_milvus.models.patches import PatchFeatures
from ldot_milvus.models.pixels import prepare_photos
from ldot_milvus.models.transformers_layout import TransformersFiles

IMAGE_BATCH = 16


class VisionEmbedder(ABC):
    """Encodes photos as vectors of unit length. Subclasses encode texts, too.

    Args:
        files: the files from which the network was loaded.
        device, dtype: where the network runs and in which precision.

    Attributes:
        name: folder or hub id, for messages.
        dim: width of the vectors.
    """

    former_fingerprints: tuple[str, ...] = ()
    least_side: int | None = (
        None  # a photo decoded at a reduced size has other pixels than transformers' processor reads
    )
    vocabulary_size: int | None = None

    def __init__(self, files: TransformersFiles, device: torch.device, dtype: torch.dtype) -> None:
        self.name = files.name
        self.dim = files.dim
        self.device, self.dtype = device, dtype
        self._vision_files = files

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines a vector: 32 hex digits."""
        return self._vision_files.fingerprint

    @abstractmethod
    def _encode_pixels(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return vision states (B, tokens, width) and vectors (B, dim) of prepared photos (B, 3, side, side)."""

    def encode_images(self, images: Iterable[ImageInput]) -> Array:
        """Encode photos as vectors.

        Args:
            images: n paths, encoded bytes or PIL images.

        Returns:
            float32 (n, dim), of unit length.

        Raises:
            InputError: an image cannot be read, or is given as region features.
        """
        batches = [
            self.encode_features(self.image_features(batch)) for batch in batched(image_inputs(images), IMAGE_BATCH)
        ]
        return np.concatenate(batches) if batches else np.zeros((0, self.dim), np.float32)

    @torch.no_grad()  # not inference_mode: training of a re-ranker may go on from the states
    def image_features(self, images: Iterable[ImageInput]) -> list[PatchFeatures]:
        """Run the vision transformer over photos; both stages read its states.

        Raises:
            InputError: an image cannot be read, or is given as region features.
        """
        features: list[PatchFeatures] = []
        for batch in batched(image_inputs(images), IMAGE_BATCH):
            pixels = torch.from_numpy(prepare_photos(self.name, self._vision_files.preparation, batch))
            with computation:  # not around the photos, which several threads prepare
                states, vectors = self._encode_pixels(pixels.to(self.device, self.dtype))
                units = normalize(vectors.float(), dim=-1).cpu().numpy()
            features += [PatchFeatures(*pair) for pair in zip(states, units, strict=True)]
        return features

    def encode_features(self, features: Sequence[PatchFeatures]) -> Array:
        """Return the photos' vectors, float32 (n, dim)."""
        return np.stack([one.vector for one in features]) if features else np.zeros((0, self.dim), np.float32)
