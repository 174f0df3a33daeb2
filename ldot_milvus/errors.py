"""Exceptions of ldot-milvus: one base class, and one class for each cause.

A message names the input, says what is wrong and what to do next, in one line.
"""

from __future__ import annotations

import re
from typing import ClassVar

from ldot_milvus.redaction import masked


class LdotError(Exception):
    """Base class of all exceptions of this project.

    A message goes to terminals and logs, and may repeat file names and the messages of libraries. It therefore contains
    no control characters and no password of an address, whatever it is built from.

    Attributes:
        code: identifier for programs, the same in every version; the message is for people.
    """

    code: ClassVar[str] = "error"

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(masked(value)) if isinstance(value, str) else value for value in args))


class UsageError(LdotError):
    """A bad argument, an unknown name or a missing path."""

    code = "usage"


class FilterError(UsageError):
    """A filter has an unknown operator or field, or a value of the wrong type."""

    code = "filter"


class RowNotFound(UsageError):
    """The collection has no row of that id."""

    code = "row_not_found"


class InputError(LdotError):
    """A photo or text cannot be used; a batch records it and continues with the others."""

    code = "input"


class ModelError(LdotError):
    """The files of a model are missing, incomplete or do not match its configuration."""

    code = "model"


class TrainingError(LdotError):
    """A training run cannot continue."""

    code = "training"


class StoreError(LdotError):
    """A store cannot be opened, read or written."""

    code = "store"


class CollectionNotFound(StoreError):
    """The store has no collection of that name yet."""

    code = "collection_not_found"


class ModelMismatch(StoreError):
    """The collection contains vectors of another model or dimension."""

    code = "model_mismatch"


class RegionStoreNotFound(StoreError):
    """The collection's region data is at a place that this process does not reach."""

    code = "region_store_not_found"


class UnknownField(UserWarning):
    """A filter names a field of ``metadata`` that no row has, or that no row has with a value of that type.

    It is told once in a process for each field of a collection. The filter is applied as it is.
    """


def printable(text: str) -> str:
    """Return a file name or a text as one line of valid UTF-8 that cannot steer a terminal.

    Bytes that are not UTF-8, control characters, line separators, and characters without a width of their own, such as
    those that reverse the order of a line, are escaped: ``\\xff``, ``\\n``, ``\\u202e``.
    """
    text = _BYTES.sub(lambda run: run[0].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"), text)
    if text.isprintable():
        return text
    return _UNUSUAL.sub(_escaped, text)


_BYTES = re.compile("[\udc80-\udcff]+")  # as Python has file names that are not in the locale's encoding
_UNUSUAL = re.compile("[^\x20-\x7e\u3000]")  # U+3000 is the space of Chinese and Japanese texts
_JOINERS = "\u200c\u200d"  # between letters of Persian or Hindi, and between the parts of an emoji


def _escaped(found: re.Match[str]) -> str:
    character, text, place = found[0], found.string, found.start()
    neighbours = (text[place - 1 : place], text[place + 1 : place + 2])
    if character in _JOINERS and all(one > "\x7f" and one.isprintable() for one in neighbours):
        return character
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def reason(error: OSError | ValueError) -> str:
    """Return in a few words why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
