"""Tokenize texts with transformers and pad them to tensors, for every family with a text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ldot_milvus.errors import ModelError
from ldot_milvus.models.base import Array, Text
from ldot_milvus.models.tokens import Tokens, joined_ids
from ldot_milvus.models.tokens import by_length as tokens_by_length


class TextTokens(Tokens):
    """Tokenizes texts with transformers and pads them to batches of tensors. Instances are thread-safe.

    Args:
        tokenizer: of the network that reads the ids.
        device: of the padded batches.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        super().__init__(
            partial(_tokenize, tokenizer), partial(_encode, tokenizer), len(tokenizer), tokenizer.pad_token_id or 0
        )
        self._device = device

    def padded(self, tokens: Sequence[Sequence[int]], length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what :meth:`arrays` returns as tensors."""
        ids, mask = self.arrays(tokens, length)
        return torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device)


def _tokenize(tokenizer: PreTrainedTokenizerBase, words: list[str], limit: int) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(words, truncation=True, max_length=limit)["input_ids"]
    return ids


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> Any:
    encodings = tokenizer(text, truncation=True, max_length=limit).encodings
    assert encodings is not None, "only tokenizers of the tokenizers library know the words of their tokens"
    return encodings[0]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], limit: int) -> list[list[int]]:
    """Tokenize texts, and truncate texts and given token ids to ``limit`` tokens, [CLS] and [SEP] included."""
    return joined_ids(partial(_tokenize, tokenizer), texts, limit)


def load_tokenizer(name: str, folder: Path, vocabulary_size: int) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model in transformers' layout.

    ``tokenizer.json`` is read as it is. The class that ``tokenizer_config.json`` names would rebuild it, differently in
    each version of transformers, and SigLIP's needs the package sentencepiece.

    Args:
        name: the model's name, for the message.
        folder: the model's folder.
        vocabulary_size: rows of the network's word embeddings.

    Raises:
        ModelError: the folder has no tokenizer, or the network has no embedding for some of its ids.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exception, transformers many types
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"the tokenizer of model {name!r} cannot be loaded: {first}") from error
    if len(tokenizer) > vocabulary_size:  # torch would fail on the first text with such an id
        raise ModelError(
            f"the tokenizer of model {name!r} has {len(tokenizer):,} entries and its text encoder reads "
            f"{vocabulary_size:,}: they belong to different models"
        )
    return tokenizer


def by_length(
    tokens: Sequence[Sequence[int]], size: int, width: int, compute: Callable[[list[int]], torch.Tensor]
) -> Array:
    """Do what :func:`.tokens.by_length` does, without gradients, where ``compute`` returns a tensor."""

    def without_gradients(rows: list[int]) -> Array:
        with torch.inference_mode():
            return compute(rows).float().cpu().numpy()

    return tokens_by_length(tokens, size, width, without_gradients)
