"""Encode texts and photos with a LightningDOT model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ldot_milvus.batches import batched
from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.forks import Lock, computation
from ldot_milvus.images import open_image
from ldot_milvus.models.background import in_background
from ldot_milvus.models.base import Array, ImageInput, Text
from ldot_milvus.models.calibration import Calibration, read_calibration
from ldot_milvus.models.inputs import image_inputs
from ldot_milvus.models.lightningdot.bundle import Bundle, load_bundle
from ldot_milvus.models.lightningdot.files import (
    RERANKER,
    LightningDOTFiles,
    LightningDOTRerankerFiles,
    find_lightningdot,
)
from ldot_milvus.models.lightningdot.inputs import pad_regions, stack_labels
from ldot_milvus.models.lightningdot.text_side import load_pairs, load_texts
from ldot_milvus.regions import Regions

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from ldot_milvus.models.base import Reranker

TEXT_BATCH = 128
IMAGE_BATCH = 32


class LightningDOTEmbedder:
    """Encodes texts and photos as vectors with a LightningDOT model. Instances are thread-safe.

    On the CPU, ONNX Runtime encodes texts if the model has a graph for it; torch is then loaded for the first photo.

    Args:
        model: packaged name, folder or hub id, or the files of a model, or a model that is already loaded.
        device, dtype: see :func:`~ldot_milvus.models.loading.load_embedder`; ignored for a loaded model.

    Attributes:
        name: packaged name, folder or hub id, for messages.
        dim: width of the vectors.

    Raises:
        UsageError: the name, device or dtype is unknown.
        ModelError: files are missing or do not fit together, or the model belongs to another family.
    """

    def __init__(
        self,
        model: str | LightningDOTFiles | Bundle = "ldot-mini",
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        self._bundle: Bundle | None = None
        self._loading = Lock()
        self._device, self._dtype = device, dtype
        self._graph = None
        if isinstance(model, Bundle):
            self._files, self._bundle = model.files, model
        else:
            self._files = find_lightningdot(model) if isinstance(model, str) else model
            self._graph = load_texts(self._files, device, dtype)
            if self._graph is None:
                self._bundle = load_bundle(self._files, device=device, dtype=dtype)
        self.name = self._files.name
        self.dim: int = self._files.dim if self._bundle is None else self._bundle.encoder.config.embedding_dim

    @property
    def bundle(self) -> Bundle:
        """The loaded components of the model, loaded on first use where texts are encoded without them.

        Raises:
            ModelError: files are missing or do not fit together.
        """
        if self._bundle is None:
            # In this order, as a re-ranker that is loaded in the background asks for the bundle too.
            with in_background(), self._loading:
                if self._bundle is None:
                    self._bundle = load_bundle(self._files, device=self._device, dtype=self._dtype)
        return self._bundle

    @property
    def device(self) -> torch.device:
        """Where the networks run that encode photos."""
        return self.bundle.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the networks that encode photos."""
        return self.bundle.dtype

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines a vector: 32 hex digits."""
        return self._files.fingerprint

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Fingerprints to which earlier versions of ldot-milvus bound this model's collections."""
        return self._files.former_fingerprints

    @cached_property
    def calibration(self) -> Calibration | None:
        """Probabilities of the dot product, fitted on data (``calibration.json``); None if they were not."""
        files = self._files
        return read_calibration(self.name, files.folder, lambda: files.fitted_for)

    @property
    def least_side(self) -> int | None:
        """Minimum length in pixels of both sides of a photo decoded at a reduced size; None: decode at full size."""
        return self._files.least_side

    @property
    def vocabulary_size(self) -> int:
        """Size of the vocabulary whose token ids are accepted instead of texts."""
        return int(self.bundle.encoder.config.text_config.vocab_size)

    @cached_property
    def reranker(self) -> Reranker | None:
        """The model's own re-ranker, on the same device; None if it has none."""
        files = self._files.own_reranker()
        graph = None
        if files is not None and self._graph is not None:
            graph = load_pairs(files, self._graph.tokens, lambda: self._network_reranker)
        return graph or self._network_reranker

    @cached_property
    def _network_reranker(self) -> Any:
        from ldot_milvus.models.lightningdot.reranker import LightningDOTReranker

        bundle = self.bundle
        if bundle.reranker is None:
            return None
        files = LightningDOTRerankerFiles(self.name, self._files.folder / RERANKER, self._files)
        return LightningDOTReranker(files, bundle.reranker, bundle.texts, bundle.device, bundle.dtype)

    def encode_texts(self, texts: Iterable[Text]) -> Array:
        """Encode texts as vectors.

        Args:
            texts: n texts, or their token ids with [CLS] and [SEP]. Texts longer than the model's token limit are
                truncated.

        Returns:
            float32 (n, dim), the model's own output: nothing is normalised afterwards.

        Raises:
            UsageError: ``texts`` is a single string, or a text is empty.
        """
        if self._graph is not None:
            return self._graph.encode(texts)
        from ldot_milvus.models.texts import by_length

        bundle = self.bundle
        tokens = bundle.texts.ids(texts, bundle.encoder.config.max_text_length, self.vocabulary_size)

        def encode(rows: list[int]) -> torch.Tensor:
            return bundle.encoder.encode_text(*bundle.texts.padded([tokens[row] for row in rows]))

        return by_length(tokens, TEXT_BATCH, self.dim, encode)

    def encode_images(self, images: Iterable[ImageInput]) -> Array:
        """Encode photos as vectors.

        Args:
            images: n paths, encoded bytes, PIL images or precomputed regions.

        Returns:
            float32 (n, dim), the model's own output: nothing is normalised afterwards.

        Raises:
            InputError: an image cannot be read, or regions do not fit the model.
            UsageError: the model has no region extractor, and an image is not given as regions.
        """
        batches = [
            self.encode_features(self.image_features(batch)) for batch in batched(image_inputs(images), IMAGE_BATCH)
        ]
        return np.concatenate(batches) if batches else np.zeros((0, self.dim), np.float32)

    def image_features(self, images: Iterable[ImageInput]) -> list[Regions]:
        """Extract the regions of photos with the model's own extractor. Precomputed regions are checked and returned.

        Raises:
            InputError: an image cannot be read, or regions do not have the model's ``region_dim``, or lack the
                probabilities of its labels.
            UsageError: the model has no region extractor, and an image is not given as regions.
        """
        regions: dict[int, Regions] = {}
        pixels: dict[int, Image] = {}
        for index, image in enumerate(image_inputs(images)):
            if isinstance(image, Regions):
                regions[index] = self._checked(image)
            else:
                pixels[index] = open_image(image, draft_to=self.least_side).image
        if pixels:
            if self.bundle.extractor is None:
                raise UsageError(f"model {self.name!r} has no region extractor: give region features instead of photos")
            regions.update(zip(pixels, self.bundle.extractor(list(pixels.values())), strict=True))
        return [regions[index] for index in range(len(regions))]

    def encode_features(self, features: Sequence[Regions]) -> Array:
        """Encode photos given as regions as vectors, float32 (n, dim)."""
        import torch

        bundle = self.bundle  # loaded before the computation, which must not wait for it
        vectors = np.empty((len(features), self.dim), np.float32)
        with computation, torch.inference_mode():
            for start in range(0, len(features), IMAGE_BATCH):
                batch = features[start : start + IMAGE_BATCH]
                values, boxes, mask = (torch.from_numpy(array).to(bundle.device) for array in pad_regions(batch))
                labels = stack_labels(batch) if bundle.encoder.label_names is not None else None
                encoded = bundle.encoder.encode_image(
                    values.to(bundle.dtype), boxes.to(bundle.dtype), mask,
                    None if labels is None else torch.from_numpy(labels).to(bundle.device),
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
