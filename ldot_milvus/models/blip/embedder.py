"""Encode texts and photos with a BLIP retrieval model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from ldot_milvus.batches import batched
from ldot_milvus.models.base import Array, ImageInput, Text
from ldot_milvus.models.blip.files import BlipFiles
from ldot_milvus.models.blip.network import text_state, vision_states
from ldot_milvus.models.blip.reranker import TEXT_LENGTH, BlipReranker
from ldot_milvus.models.loading import choose_device, choose_dtype
from ldot_milvus.models.patches import PatchFeatures
from ldot_milvus.models.pixels import prepare_photos
from ldot_milvus.models.texts import TextTokens, by_length, load_tokenizer, words_only
from ldot_milvus.models.transformers_layout import load_network

TEXT_BATCH = 64
IMAGE_BATCH = 16


class BlipEmbedder:
    """Encodes texts and photos as vectors of unit length. Instances are thread-safe.

    Args:
        files: the files from which the network was loaded.
        model: transformers' ``BlipForImageTextRetrieval``, on ``device`` and in ``dtype``.
        tokenizer: of the network.
        device, dtype: where the network runs and in which precision.

    Attributes:
        files: the files from which the network was loaded.
        name: folder or hub id, for messages.
        dim: width of the vectors.
    """

    former_fingerprints: tuple[str, ...] = ()
    least_side: int | None = (
        None  # a photo decoded at a reduced size has other pixels than transformers' processor reads
    )
    vocabulary_size: int | None = None

    def __init__(
        self,
        files: BlipFiles,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.files = files
        self.name = files.name
        self.dim = files.dim
        self.device, self.dtype = device, dtype
        self.model = model
        self.tokenizer = tokenizer
        self.texts = TextTokens(tokenizer, device)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines a vector: 32 hex digits."""
        return self.files.fingerprint

    @cached_property
    def reranker(self) -> BlipReranker:
        """The model's own re-ranker, on the same device."""
        return BlipReranker(self)

    def encode_texts(self, texts: Sequence[Text]) -> Array:
        """Encode texts as vectors.

        Args:
            texts: n texts, truncated to 35 tokens as by the authors.

        Returns:
            float32 (n, dim), of unit length.

        Raises:
            UsageError: ``texts`` is a single string, or a text is empty or given as token ids.
        """
        tokens = self.texts.ids(words_only(self.name, texts), TEXT_LENGTH)

        def encode(rows: list[int]) -> torch.Tensor:
            ids, mask = self.texts.padded([tokens[row] for row in rows])
            state = text_state(self.model.text_encoder, ids, mask)
            return normalize(self.model.text_proj(state).float(), dim=-1)

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
        """Run the vision transformer over photos; both stages read its states.

        Raises:
            InputError: an image cannot be read, or is given as region features.
        """
        features: list[PatchFeatures] = []
        for batch in batched(images, IMAGE_BATCH):
            pixels = torch.from_numpy(prepare_photos(self.name, self.files.preparation, batch))
            states = vision_states(self.model.vision_model, pixels.to(self.device, self.dtype))
            # The first state as it is: the class's pooler_output is layer-normed twice.
            vectors = normalize(self.model.vision_proj(states[:, 0]).float(), dim=-1).cpu().numpy()
            features += [PatchFeatures(*pair) for pair in zip(states, vectors, strict=True)]
        return features

    def encode_features(self, features: Sequence[PatchFeatures]) -> Array:
        """Return the photos' vectors, float32 (n, dim)."""
        return np.stack([one.vector for one in features]) if features else np.zeros((0, self.dim), np.float32)


def load_blip(files: BlipFiles, *, device: str | None = None, dtype: str | None = None) -> BlipEmbedder:
    """Load a model.

    Args:
        files: the model's files.
        device, dtype: see :func:`~ldot_milvus.models.loading.load_embedder`.

    Raises:
        UsageError: the device or dtype is unknown.
        ModelError: files are missing or do not fit together.
    """
    files.check()
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    model = load_network(files, chosen_device, chosen_dtype)
    tokenizer = load_tokenizer(files.name, files.folder, model.config.text_config.vocab_size)
    return BlipEmbedder(files, model, tokenizer, chosen_device, chosen_dtype)
