"""Tokenize texts and pad them to batches, without torch. ``models/texts.py`` does the same for torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.errors import ModelError, first_line
from ldot_milvus.forks import Lock, computation
from ldot_milvus.models.base import Array, Text
from ldot_milvus.models.inputs import text_list

LEAST_SHARE = 0.85
"""Least length of a text relative to the longest of its batch. Padding costs more than another batch does."""

FEW = 64
"""Texts that are tokenized in one thread. It takes 0.05 ms a text; a pool of threads would wait for cores."""

Tokenize = Callable[[list[str], int], list[list[int]]]
"""Returns the ids of each text, truncated to a number of tokens, [CLS] and [SEP] included."""


Encode = Callable[[str, int], Any]
"""Returns the ``tokenizers.Encoding`` of a text, truncated to a number of tokens."""


@dataclass(frozen=True)
class Word:
    """A word of a text.

    Attributes:
        text: the word as the text has it.
        start, end: its place in the text, in characters; ``text[start:end]`` is the word.
        tokens: positions of its tokens among those of the text.
    """

    text: str
    start: int
    end: int
    tokens: range


class Tokens:
    """Tokenizes texts and pads them to batches. Instances are thread-safe.

    Args:
        tokenize: the tokenizer of the network that reads the ids.
        encode: the same tokenizer, for the words of a text.
        vocabulary: number of the tokenizer's ids.
        padding: the id of the padding.

    Attributes:
        vocabulary: number of the tokenizer's ids.
    """

    def __init__(self, tokenize: Tokenize, encode: Encode, vocabulary: int, padding: int) -> None:
        self._tokenize, self._encode = tokenize, encode
        self.vocabulary, self._padding = vocabulary, padding
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
            return joined_ids(self._tokenize, given, limit)

    def checked(self, texts: Iterable[Text], vocabulary: int | None = None) -> list[Text]:
        """Return texts and token ids in the forms of :func:`~.inputs.text_list`; ``vocabulary`` as for :meth:`ids`."""
        return text_list(texts, self.vocabulary if vocabulary is None else vocabulary)

    def words(self, text: str, limit: int) -> tuple[list[int], list[Word]]:
        """Return the token ids of a text, truncated to ``limit`` tokens, and the words that they are the tokens of.

        Raises:
            UsageError: the text is empty.
        """
        self.checked([text])
        with computation, self._lock:
            encoded = self._encode(text, limit)
        positions: dict[int, list[int]] = {}
        for position, word in enumerate(encoded.word_ids):
            if word is not None:  # of [CLS] and [SEP]
                positions.setdefault(word, []).append(position)
        words = []
        for places in positions.values():
            start, end = encoded.offsets[places[0]][0], encoded.offsets[places[-1]][1]
            words.append(Word(text[start:end], start, end, range(places[0], places[-1] + 1)))
        return list(encoded.ids), words

    def arrays(
        self, tokens: Sequence[Sequence[int]], length: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pad token ids on the right.

        Args:
            tokens: token ids of B texts.
            length: T, tokens of a padded text; None takes the longest text.

        Returns:
            ids (B, T) and mask (B, T), 1 = token, 0 = padding.
        """
        length = length or max(map(len, tokens))
        ids = np.array([[*row, *[self._padding] * (length - len(row))] for row in tokens], np.int64)
        mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in tokens], np.int64)
        return ids, mask


def joined_ids(tokenize: Tokenize, texts: Sequence[Text], limit: int) -> list[list[int]]:
    """Tokenize texts, and truncate texts and given token ids to ``limit`` tokens, [CLS] and [SEP] included."""
    words = list(dict.fromkeys(text for text in texts if isinstance(text, str)))  # a re-ranker repeats its text
    tokenized = dict(zip(words, tokenize(words, limit) if words else [], strict=True))
    return [tokenized[text] if isinstance(text, str) else [*text[:limit][:-1], text[-1]] for text in texts]


def distinct_texts(tokens: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Return the distinct texts among the token ids of texts, and the index of each text among these.

    A search compares one text with many photos: what depends on the text alone is computed once.
    """
    keys = [tuple(row) for row in tokens]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return list(numbers), [numbers[key] for key in keys]


def load_tokens(folder: Path) -> Tokens | None:
    """Load ``tokenizer.json`` without transformers; None if the folder has none.

    Raises:
        ModelError: the file is damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(f"{path} cannot be loaded ({first_line(error)}): copy it again") from error
    tokenizer.no_padding()

    def tokenize(words: list[str], limit: int) -> list[list[int]]:
        tokenizer.enable_truncation(limit)
        if len(words) <= FEW:
            return [tokenizer.encode(word).ids for word in words]
        return [encoding.ids for encoding in tokenizer.encode_batch(words)]

    def encode(text: str, limit: int) -> Any:
        tokenizer.enable_truncation(limit)
        return tokenizer.encode(text)

    return Tokens(tokenize, encode, tokenizer.get_vocab_size(), tokenizer.token_to_id("[PAD]") or 0)


def by_length(
    tokens: Sequence[Sequence[int]], size: int, width: int, compute: Callable[[list[int]], Array], *, threads: int = 1
) -> Array:
    """Run ``compute`` on batches of texts of similar length, so that little padding is computed.

    Args:
        tokens: token ids of n texts.
        size: texts in a batch.
        width: of the result.
        compute: called with the indices of a batch's texts; returns an array (batch, width).
        threads: number of batches that are computed at once, for a network that uses one thread. Above 1, the caller
            must not be in a computation, since each batch takes its own turn.

    Returns:
        float32 (n, width), in the order of ``tokens``.
    """
    order = sorted(range(len(tokens)), key=lambda row: -len(tokens[row]))
    result = np.empty((len(tokens), width), np.float32)
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        least = LEAST_SHARE * len(tokens[order[start]])
        batches.append([row for row in order[start : start + size] if len(tokens[row]) >= least])
        start += len(batches[-1])

    def run(rows: list[int]) -> None:
        with computation:
            result[rows] = compute(rows)

    if min(threads, len(batches)) < 2:
        for rows in batches:
            run(rows)
    else:
        with ThreadPoolExecutor(threads, "ldot-compute") as pool:
            list(pool.map(run, batches))
    return result
