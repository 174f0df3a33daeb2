"""Encode texts and photos with SigLIP, CLIP and models like it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.functional import normalize
from typing_extensions import override

from ldot_milvus.models.base import Array, Text
from ldot_milvus.models.calibration import Calibration
from ldot_milvus.models.contrastive.files import ContrastiveFiles
from ldot_milvus.models.inputs import words_only
from ldot_milvus.models.loading import choose_device, choose_dtype
from ldot_milvus.models.texts import TextTokens, by_length, load_tokenizer
from ldot_milvus.models.transformers_layout import load_network
from ldot_milvus.models.vision_embedder import VisionEmbedder

TEXT_BATCH = 64


class ContrastiveEmbedder(VisionEmbedder):
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

    reranker = None

    def __init__(
        self, files: ContrastiveFiles, model: Any, texts: TextTokens, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(files, device, dtype)
        bias = getattr(model, "logit_bias", None)
        self.logit_scale = float(model.logit_scale)
        self.logit_bias = None if bias is None else float(bias)
        self._files = files
        self._model = model
        self._texts = texts

    @property
    def calibration(self) -> Calibration | None:
        """SigLIP's probability that text and photo belong together: ``sigmoid(exp(logit_scale) * dot + logit_bias)``.

        SigLIP is trained with it on all pairs of a batch (Zhai et al., ICCV 2023). None for CLIP and models like it,
        whose softmax only compares the photos of a batch.
        """
        return None if self.logit_bias is None else Calibration(math.exp(self.logit_scale), self.logit_bias)

    def encode_texts(self, texts: Iterable[Text]) -> Array:
        """Encode texts as vectors.

        Args:
            texts: n texts. Texts longer than the model's token limit are truncated.

        Returns:
            float32 (n, dim), of unit length.

        Raises:
            UsageError: ``texts`` is a single string, or a text is empty or given as token ids.
        """
        words, limit = words_only(self.name, texts), self._files.text_length
        tokens = self._texts.ids([self._files.prepare(text) for text in words], limit)

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

    @override
    def _encode_pixels(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self._model.get_image_features(pixel_values=pixels)
        return output.last_hidden_state, output.pooler_output


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
