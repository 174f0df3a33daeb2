"""Exceptions of ldot-milvus: one base class, and one class for each cause.

A message names the input, says what is wrong and what to do next, in one line.
"""

from __future__ import annotations

from typing import ClassVar


class LdotError(Exception):
    """Base class of all exceptions of this project.

    Attributes:
        code: identifier for programs, the same in every version; the message is for people.
    """

    code: ClassVar[str] = "error"


class UsageError(LdotError):
    """A bad argument, an unknown name or a missing path."""

    code = "usage"


class FilterError(UsageError):
    """A filter has an unknown operator or field, or a value of the wrong type."""

    code = "filter"


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


def printable(path: str) -> str:
    """Return a path as one line of valid UTF-8 for messages, with other bytes and control characters escaped."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
