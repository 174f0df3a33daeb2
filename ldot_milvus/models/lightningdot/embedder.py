"""Encode texts and photos with a LightningDOT model."""

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
from ldot_milvus.models.calibration import Calibration, read_calibration
from ldot_milvus.models.lightningdot.bundle import Bundle
from ldot_milvus.models.lightningdot.files import RERANKER, LightningDOTRerankerFiles
from ldot_milvus.models.lightningdot.inputs import pad_regions, stack_labels
from ldot_milvus.models.lightningdot.reranker import LightningDOTReranker
from ldot_milvus.models.loading import load_model
from ldot_milvus.models.texts import by_length
from ldot_milvus.regions import Regions

if TYPE_CHECKING:
    from PIL.Image import Image

TEXT_BATCH = 128
IMAGE_BATCH = 32


class LightningDOTEmbedder:
    """Encodes texts and photos as vectors with a LightningDOT model. Instances are thread-safe.

    Args:
        model: packaged name, folder or hub id, or a model that is already loaded.
        device, dtype: see :func:`~ldot_milvus.models.loading.load_embedder`; ignored for a loaded model.

    Attributes:
        bundle: the loaded components of the model.
        name: packaged name, folder or hub id, for messages.
        dim: width of the vectors.
        device, dtype: where the networks run and in which precision.

    Raises:
        UsageError: the name, device or dtype is unknown.
        ModelError: files are missing or do not fit together, or the model belongs to another family.
    """

    def __init__(self, model: str | Bundle = "ldot-mini", device: str | None = None, dtype: str | None = None) -> None:
        self.bundle = model if isinstance(model, Bundle) else load_model(model, device=device, dtype=dtype)
        self.name = self.bundle.files.name
        self.dim: int = self.bundle.encoder.config.embedding_dim
        self.device, self.dtype = self.bundle.device, self.bundle.dtype

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines a vector: 32 hex digits."""
        return self.bundle.files.fingerprint

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Fingerprints to which earlier versions of ldot-milvus bound this model's collections."""
        return self.bundle.files.former_fingerprints

    @cached_property
    def calibration(self) -> Calibration | None:
        """Probabilities of the dot product, fitted on data (``calibration.json``); None if they were not."""
        files = self.bundle.files
        return read_calibration(self.name, files.folder, lambda: files.fitted_for)

    @property
    def least_side(self) -> int | None:
        """Minimum length in pixels of both sides of a photo decoded at a reduced size; None: decode at full size."""
        return self.bundle.files.least_side

    @property
    def vocabulary_size(self) -> int:
        """Size of the vocabulary whose token ids are accepted instead of texts."""
        return int(self.bundle.encoder.config.text_config.vocab_size)

    @cached_property
    def reranker(self) -> LightningDOTReranker | None:
        """The model's own re-ranker, on the same device; None if it has none."""
        bundle = self.bundle
        if bundle.reranker is None:
            return None
        files = LightningDOTRerankerFiles(self.name, bundle.files.folder / RERANKER, bundle.files)
        return LightningDOTReranker(files, bundle.reranker, bundle.texts, bundle.device, bundle.dtype)

    def encode_texts(self, texts: Sequence[Text]) -> Array:
        """Encode texts as vectors.

        Args:
            texts: n texts, or their token ids with [CLS] and [SEP]. Texts longer than the model's token limit are
                truncated.

        Returns:
            float32 (n, dim), the model's own output: nothing is normalised afterwards.

        Raises:
            UsageError: ``texts`` is a single string, or a text is empty.
        """
        encoder = self.bundle.encoder
        tokens = self.bundle.texts.ids(texts, encoder.config.max_text_length)

        def encode(rows: list[int]) -> torch.Tensor:
            return encoder.encode_text(*self.bundle.texts.padded([tokens[row] for row in rows]))

        return by_length(tokens, TEXT_BATCH, self.dim, encode)

    def encode_images(self, images: Sequence[ImageInput]) -> Array:
        """Encode photos as vectors.

        Args:
            images: n paths, encoded bytes, PIL images or precomputed regions.

        Returns:
            float32 (n, dim), the model's own output: nothing is normalised afterwards.

        Raises:
            InputError: an image cannot be read, or regions do not fit the model.
            UsageError: the model has no region extractor, and an image is not given as regions.
        """
        batches = [self.encode_features(self.image_features(batch)) for batch in batched(images, IMAGE_BATCH)]
        return np.concatenate(batches) if batches else np.zeros((0, self.dim), np.float32)

    def image_features(self, images: Sequence[ImageInput]) -> list[Regions]:
        """Extract the regions of photos with the model's own extractor. Precomputed regions are checked and returned.

        Raises:
            InputError: an image cannot be read, or regions do not have the model's ``region_dim``, or lack the
                probabilities of its labels.
            UsageError: the model has no region extractor, and an image is not given as regions.
        """
        regions: dict[int, Regions] = {}
        pixels: dict[int, Image] = {}
        for index, image in enumerate(images):
            if isinstance(image, Regions):
                regions[index] = self._checked(image)
            else:
                pixels[index] = open_image(image, draft_to=self.least_side).image
        if pixels:
            if self.bundle.extractor is None:
                raise UsageError(f"model {self.name!r} has no region extractor: give region features instead of photos")
            regions.update(zip(pixels, self.bundle.extractor(list(pixels.values())), strict=True))
        return [regions[index] for index in range(len(images))]

    @torch.inference_mode()
    def encode_features(self, features: Sequence[Regions]) -> Array:
        """Encode photos given as regions as vectors, float32 (n, dim)."""
        vectors = np.empty((len(features), self.dim), np.float32)
        device, dtype = self.bundle.device, self.bundle.dtype
        for start in range(0, len(features), IMAGE_BATCH):
            batch = features[start : start + IMAGE_BATCH]
            values, boxes, mask = pad_regions(batch)
            labels = stack_labels(batch) if self.bundle.encoder.label_names is not None else None
            encoded = self.bundle.encoder.encode_image(
                values.to(device, dtype), boxes.to(device, dtype), mask.to(device),
                None if labels is None else labels.to(device),
            )  # fmt: skip
            vectors[start : start + len(batch)] = encoded.float().cpu().numpy()
        return vectors

    def _checked(self, regions: Regions) -> Regions:
        config = self.bundle.encoder.config
        expected = config.region_dim
        if regions.features.shape[1] != expected:
            raise InputError(
                f"the regions have {regions.features.shape[1]} features, model {self.name!r} "
                f"reads {expected}: they come from another extractor, use this model's"
            )
        labels = regions.label_probabilities
        if config.label_count and (labels is None or labels.shape[1] != config.label_count):
            found = "no label probabilities" if labels is None else f"the probabilities of {labels.shape[1]} labels"
            raise InputError(
                f"the regions have {found}, model {self.name!r} reads those of {config.label_count}: "
                "give the photos, or extract the regions with this model's extractor"
            )
        return regions
