"""Encode texts and photos with SigLIP, CLIP and models like it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from ldot_milvus.batches import batched
from ldot_milvus.models.base import Array, ImageInput, Text
from ldot_milvus.models.calibration import Calibration
from ldot_milvus.models.contrastive.files import ContrastiveFiles
from ldot_milvus.models.loading import choose_device, choose_dtype
from ldot_milvus.models.patches import PatchFeatures
from ldot_milvus.models.pixels import prepare_photos
from ldot_milvus.models.texts import TextTokens, by_length, load_tokenizer, words_only
from ldot_milvus.models.transformers_layout import load_network

TEXT_BATCH = 64
IMAGE_BATCH = 32


class ContrastiveEmbedder:
    """Encodes texts and photos as vectors of unit length. Instances are thread-safe.

    Args:
        files: the files from which the network was loaded.
        model: transformers' model, on ``device`` and in ``dtype``.
        texts: its tokenizer.
        device, dtype: where the network runs and in which precision.

    Attributes:
        name: folder or hub id, for messages.
        dim: width of the vectors.
        logit_scale: logarithm of the factor that turns a dot product into a logit.
        logit_bias: what is added to that logit (SigLIP); None for a model without one.
    """

    former_fingerprints: tuple[str, ...] = ()
    least_side: int | None = (
        None  # a photo decoded at a reduced size has other pixels than transformers' processor reads
    )
    vocabulary_size: int | None = None
    reranker = None

    def __init__(
        self, files: ContrastiveFiles, model: Any, texts: TextTokens, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.name = files.name
        self.dim = files.dim
        self.device, self.dtype = device, dtype
        bias = getattr(model, "logit_bias", None)
        self.logit_scale = float(model.logit_scale)
        self.logit_bias = None if bias is None else float(bias)
        self._files = files
        self._model = model
        self._texts = texts

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines a vector: 32 hex digits."""
        return self._files.fingerprint

    @property
    def calibration(self) -> Calibration | None:
        """SigLIP's probability that text and photo belong together: ``sigmoid(exp(logit_scale) * dot + logit_bias)``.

        SigLIP is trained with it on all pairs of a batch (Zhai et al., ICCV 2023). None for CLIP and models like it,
        whose softmax only compares the photos of a batch.
        """
        return None if self.logit_bias is None else Calibration(math.exp(self.logit_scale), self.logit_bias)

    def encode_texts(self, texts: Sequence[Text]) -> Array:
        """Encode texts as vectors.

        Args:
            texts: n texts. Texts longer than the model's token limit are truncated.

        Returns:
            float32 (n, dim), of unit length.

        Raises:
            UsageError: ``texts`` is a single string, or a text is empty or given as token ids.
        """
        words, limit = words_only(self.name, texts), self._files.text_length
        tokens = self._texts.ids([self._files.prepare(text) if text.strip() else text for text in words], limit)

        def encode(rows: list[int]) -> torch.Tensor:
            batch = [tokens[row] for row in rows]
            if self._files.full_length:
                ids, _ = self._texts.padded(batch, limit)
                output = self._model.get_text_features(input_ids=ids)
            else:
                ids, mask = self._texts.padded(batch)
                output = self._model.get_text_features(input_ids=ids, attention_mask=mask)
            return normalize(output.pooler_output.float(), dim=-1)

        return by_length(tokens, TEXT_BATCH, self.dim, encode)

    def encode_images(self, images: Sequence[ImageInput]) -> Array:
        """Encode photos as vectors.

        Args:
            images: n paths, encoded bytes or PIL images.

        Returns:
            float32 (n, dim), of unit length.

        Raises:
            InputError: an image cannot be read, or is given as region features.
        """
        batches = [self.encode_features(self.image_features(batch)) for batch in batched(images, IMAGE_BATCH)]
        return np.concatenate(batches) if batches else np.zeros((0, self.dim), np.float32)

    @torch.no_grad()  # not inference_mode: training of a re-ranker may go on from the states
    def image_features(self, images: Sequence[ImageInput]) -> list[PatchFeatures]:
        """Run the vision transformer over photos.

        Raises:
            InputError: an image cannot be read, or is given as region features.
        """
        features: list[PatchFeatures] = []
        for batch in batched(images, IMAGE_BATCH):
            pixels = torch.from_numpy(prepare_photos(self.name, self._files.preparation, batch))
            output = self._model.get_image_features(pixel_values=pixels.to(self.device, self.dtype))
            vectors = normalize(output.pooler_output.float(), dim=-1).cpu().numpy()
            features += [PatchFeatures(*pair) for pair in zip(output.last_hidden_state, vectors, strict=True)]
        return features

    def encode_features(self, features: Sequence[PatchFeatures]) -> Array:
        """Return the photos' vectors, float32 (n, dim)."""
        return np.stack([one.vector for one in features]) if features else np.zeros((0, self.dim), np.float32)


def load_contrastive(
    files: ContrastiveFiles, *, device: str | None = None, dtype: str | None = None
) -> ContrastiveEmbedder:
    """Load a model.

    Args:
        files: the model's files.
        device, dtype: see :func:`~ldot_milvus.models.loading.load_embedder`.

    Raises:
        UsageError: the device or dtype is unknown.
        ModelError: files are missing or do not fit together.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    model = load_network(files, chosen_device, chosen_dtype, attn_implementation="sdpa")
    tokenizer = load_tokenizer(files.name, files.folder, model.config.text_config.vocab_size)
    return ContrastiveEmbedder(files, model, TextTokens(tokenizer, chosen_device), chosen_device, chosen_dtype)
