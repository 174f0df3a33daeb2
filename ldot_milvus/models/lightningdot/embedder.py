"""LightningDOT as an embedding provider: texts to vectors, photos to regions and on to vectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from ldot_milvus.batches import batched
from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.images import open_image
from ldot_milvus.models.base import Array, ImageInput, Text
from ldot_milvus.models.lightningdot.bundle import Bundle
from ldot_milvus.models.lightningdot.files import RERANKER, LightningDOTRerankerFiles
from ldot_milvus.models.lightningdot.inputs import by_length, pad_regions
from ldot_milvus.models.lightningdot.reranker import LightningDOTReranker
from ldot_milvus.models.loading import load_model
from ldot_milvus.regions import Regions

if TYPE_CHECKING:
    from PIL.Image import Image

TEXT_BATCH = 128
IMAGE_BATCH = 32


class LightningDOTEmbedder:
    """Encodes with a LightningDOT model. Threads may share one.

    Args:
        model: packaged name, folder or hub id; or a model that is loaded already.
        device, dtype: see :func:`~ldot_milvus.models.loading.load_embedder`.

    Raises:
        UsageError: unknown name, device or dtype.
        ModelError: files that are missing or do not fit together, or a model of another family.
    """

    def __init__(self, model: str | Bundle = "ldot-mini", device: str | None = None, dtype: str | None = None) -> None:
        self.bundle = model if isinstance(model, Bundle) else load_model(model, device=device, dtype=dtype)
        self.name = self.bundle.files.name
        self.dim: int = self.bundle.encoder.config.embedding_dim

    @property
    def fingerprint(self) -> str:
        """Of everything that decides a vector, 32 hex digits."""
        return self.bundle.files.fingerprint

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Those to which earlier versions of ldot-milvus bound a collection of this model."""
        return self.bundle.files.former_fingerprints

    @property
    def least_side(self) -> int | None:
        """Pixels that both sides of a photo must keep when it is decoded reduced; None where it must not be."""
        return None if self.bundle.extractor is None else self.bundle.extractor.least_side

    @property
    def vocabulary_size(self) -> int:
        """Entries of the vocabulary whose token ids are taken in place of texts."""
        return int(self.bundle.encoder.config.text_config.vocab_size)

    @cached_property
    def reranker(self) -> LightningDOTReranker | None:
        """The model's own re-ranker; None where it has none."""
        bundle = self.bundle
        if bundle.reranker is None:
            return None
        files = LightningDOTRerankerFiles(self.name, bundle.files.folder / RERANKER, bundle.files)
        return LightningDOTReranker(files, bundle.reranker, bundle.texts, bundle.device, bundle.dtype)

    def encode_texts(self, texts: Sequence[Text]) -> Array:
        """Vectors of texts, float32 (n, dim), as the model gives them. Long texts are cut to its limit of tokens.

        Args:
            texts: or their token ids, [CLS] and [SEP] included.

        Raises:
            UsageError: ``texts`` is a single string, or a text is empty.
        """
        encoder = self.bundle.encoder
        tokens = self.bundle.texts.ids(texts, encoder.config.max_text_length)

        def encode(rows: list[int]) -> torch.Tensor:
            return encoder.encode_text(*self.bundle.texts.padded([tokens[row] for row in rows]))

        return by_length(tokens, TEXT_BATCH, self.dim, encode)

    def encode_images(self, images: Sequence[ImageInput]) -> Array:
        """Vectors of photos, float32 (n, dim).

        Args:
            images: paths, encoded bytes, PIL images or ready regions.

        Raises:
            InputError: an image that cannot be read, or regions of another width than the model's.
        """
        parts = [self.encode_features(self.image_features(part)) for part in batched(images, IMAGE_BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def image_features(self, images: Sequence[ImageInput]) -> list[Regions]:
        """Regions of photos by the model's own extractor; ready ones are checked and passed through.

        Raises:
            InputError: an image that cannot be read, or regions of another width than the model's.
            UsageError: photos for a model without a region extractor.
        """
        ready: dict[int, Regions] = {}
        pixels: dict[int, Image] = {}
        for index, image in enumerate(images):
            if isinstance(image, Regions):
                ready[index] = self._checked(image)
            else:
                pixels[index] = open_image(image, draft_to=self.least_side).image
        if pixels:
            if self.bundle.extractor is None:
                raise UsageError(f"model {self.name!r} has no region extractor: give region features instead of photos")
            ready.update(zip(pixels, self.bundle.extractor(list(pixels.values())), strict=True))
        return [ready[index] for index in range(len(images))]

    @torch.inference_mode()
    def encode_features(self, features: Sequence[Regions]) -> Array:
        """Vectors, float32 (n, dim), of photos given as regions."""
        vectors = np.empty((len(features), self.dim), np.float32)
        device, dtype = self.bundle.device, self.bundle.dtype
        for start in range(0, len(features), IMAGE_BATCH):
            part = features[start : start + IMAGE_BATCH]
            values, boxes, mask = pad_regions(part)
            encoded = self.bundle.encoder.encode_image(
                values.to(device, dtype), boxes.to(device, dtype), mask.to(device)
            )
            vectors[start : start + len(part)] = encoded.float().cpu().numpy()
        return vectors

    def _checked(self, regions: Regions) -> Regions:
        expected = self.bundle.encoder.config.region_dim
        if regions.features.shape[1] != expected:
            raise InputError(
                f"the regions have {regions.features.shape[1]} features, model {self.name!r} "
                f"reads {expected}: they come from another extractor"
            )
        return regions
