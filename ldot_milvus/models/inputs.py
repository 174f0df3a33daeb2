"""Normalise what callers give as texts and images, once, at the entries of every model."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

from ldot_milvus.arguments import described, listed, shown
from ldot_milvus.errors import UsageError
from ldot_milvus.images import each_image
from ldot_milvus.models.base import ImageInput, Text
from ldot_milvus.regions.base import Regions


def image_inputs(images: Iterable[ImageInput]) -> Iterator[ImageInput]:
    """Iterate over images in the forms of :func:`~ldot_milvus.images.as_image`; regions are passed on.

    Raises:
        UsageError: a single image is given instead of a list.
        InputError: an entry is not an image, or cannot be read; the message has its number.
    """
    return each_image(images, also=(Regions,))


def text_list(texts: Iterable[Text], vocabulary: int) -> list[Text]:
    """Return texts as a list of ``str``, and token ids as lists of ``int``.

    Args:
        texts: a list, a tuple, a generator, a NumPy array, a pandas Series, ...
        vocabulary: number of token ids.

    Raises:
        UsageError: a single text is given instead of a list; a text is empty, not a ``str``, or has half a surrogate
            pair; or token ids are out of range.
    """
    return [_checked(text, f"text {number}", vocabulary) for number, text in enumerate(listed(texts, "texts"), start=1)]


def words_only(name: str, texts: Iterable[Text]) -> list[str]:
    """Return the texts of a model that reads no token ids as a list of ``str``.

    Args:
        name: the model's name, for the message.
        texts: as for :func:`text_list`.

    Raises:
        UsageError: as :func:`text_list`, or token ids are given.
    """
    words: list[str] = []
    for text in text_list(texts, 2**63):
        if not isinstance(text, str):
            raise UsageError(f"model {name!r} reads texts, not token ids: give the words")
        words.append(text)
    return words


def _checked(text: Any, where: str, vocabulary: int) -> Text:
    if isinstance(text, str):
        if not text.strip():
            raise UsageError("the text is empty: describe what to look for")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise UsageError(f"{where} has half a surrogate pair, which is no character: {shown(repr(text))}")
        return str(text)  # NumPy has a subclass
    if isinstance(text, (bytes, bytearray)):
        raise UsageError(f"{where} is {described(text)}: decode it, as in text.decode()")
    ids = _token_ids(text)
    if ids is None:
        raise UsageError(f"{where} is {described(text)}: give a str")
    if not ids or not all(0 <= id < vocabulary for id in ids):
        raise UsageError(f"{where}: token ids are at least one number from 0 to {vocabulary - 1:,}")
    return ids


def _token_ids(values: Any) -> list[int] | None:
    if not isinstance(values, (list, tuple)) and getattr(values, "ndim", 0) != 1:
        return None
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        return None
