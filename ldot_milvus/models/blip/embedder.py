"""Encode texts and photos with a BLIP retrieval model."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from ldot_milvus.models.base import Array, Text
from ldot_milvus.models.blip.files import BlipFiles
from ldot_milvus.models.blip.network import text_state, vision_states
from ldot_milvus.models.blip.reranker import TEXT_LENGTH, BlipReranker
from ldot_milvus.models.inputs import words_only
from ldot_milvus.models.loading import choose_device, choose_dtype
from ldot_milvus.models.texts import TextTokens, by_length, load_tokenizer
from ldot_milvus.models.transformers_layout import load_network
from ldot_milvus.models.vision_embedder import VisionEmbedder

TEXT_BATCH = 64


class BlipEmbedder(VisionEmbedder):
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

    def __init__(
        self,
        files: BlipFiles,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(files, device, dtype)
        self.files = files
        self.model = model
        self.tokenizer = tokenizer
        self.texts = TextTokens(tokenizer, device)

    @cached_property
    def reranker(self) -> BlipReranker:
        """The model's own re-ranker, on the same device."""
        return BlipReranker(self)

    def encode_texts(self, texts: Iterable[Text]) -> Array:
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

    @override
    def _encode_pixels(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = vision_states(self.model.vision_model, pixels)
        # The first state as it is: the class's pooler_output is layer-normed twice.
        return states, self.model.vision_proj(states[:, 0])


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
