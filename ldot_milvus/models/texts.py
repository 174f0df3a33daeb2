"""Tokenize texts and pad them to batches, for every family with a text encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ldot_milvus.errors import ModelError
from ldot_milvus.forks import Lock, computation
from ldot_milvus.models.base import Array, Text
from ldot_milvus.models.inputs import text_list


class TextTokens:
    """Tokenizes texts and pads them to batches. Instances are thread-safe.

    Args:
        tokenizer: of the network that reads the ids.
        device: of the padded batches.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._device = device
        # A fast tokenizer stores its truncation settings between calls and fails if two threads use it at once.
        self._lock = Lock()

    def ids(self, texts: Iterable[Text], limit: int, vocabulary: int | None = None) -> list[list[int]]:
        """Return the token ids of each text, truncated to ``limit`` tokens.

        Args:
            texts: texts, or their token ids.
            limit: maximum number of tokens.
            vocabulary: number of ids that the network reads; None for the tokenizer's.

        Raises:
            UsageError: :func:`~.inputs.text_list` refuses the texts.
        """
        given = self.checked(texts, vocabulary)
        with computation, self._lock:
            return token_ids(self._tokenizer, given, limit)

    def checked(self, texts: Iterable[Text], vocabulary: int | None = None) -> list[Text]:
        """Return texts and token ids in the forms of :func:`~.inputs.text_list`; ``vocabulary`` as for :meth:`ids`."""
        return text_list(texts, len(self._tokenizer) if vocabulary is None else vocabulary)

    def padded(self, tokens: Sequence[Sequence[int]], length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad token ids on the right.

        Args:
            tokens: token ids of B texts.
            length: T, tokens of a padded text; None takes the longest text.

        Returns:
            int64 ids (B, T) and mask (B, T), 1 = token, 0 = padding.
        """
        length = length or max(map(len, tokens))
        padding = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row, *[padding] * (length - len(row))] for row in tokens])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in tokens])
        return ids.to(self._device), mask.to(self._device)


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], limit: int) -> list[list[int]]:
    """Tokenize texts, and truncate texts and given token ids to ``limit`` tokens, [CLS] and [SEP] included."""
    words = [text for text in texts if isinstance(text, str)]
    tokenized = iter(tokenizer(words, truncation=True, max_length=limit)["input_ids"] if words else [])
    return [next(tokenized) if isinstance(text, str) else [*text[:limit][:-1], text[-1]] for text in texts]


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
    """Run ``compute`` on batches of texts of similar length, so that little padding is computed.

    Args:
        tokens: token ids of n texts.
        size: texts in a batch.
        width: of the result.
        compute: called with the indices of a batch's texts; returns a tensor (batch, width).

    Returns:
        float32 (n, width), in the order of ``tokens``.
    """
    order = sorted(range(len(tokens)), key=lambda row: -len(tokens[row]))
    result = np.empty((len(tokens), width), np.float32)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        with computation, torch.inference_mode():
            result[rows] = compute(rows).float().cpu().numpy()
    return result
