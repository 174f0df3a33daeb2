"""Everything that ldot-milvus raises on purpose: one base class, a small tree by cause.

A message names the input and says what to do next; commands print it as one line.
"""

from __future__ import annotations

from typing import ClassVar


class LdotError(Exception):
    """Base class of all errors of this project.

    Attributes:
        code: a word for programs, the same in every version; the message is for people.
    """

    code: ClassVar[str] = "error"


class UsageError(LdotError):
    """The caller asked for something that cannot be: a bad argument, an unknown name, a missing path."""

    code = "usage"


class FilterError(UsageError):
    """A filter with an unknown operator or field, or a value of the wrong type."""

    code = "filter"


class InputError(LdotError):
    """One photo or text cannot be used. In a batch the others go on and this one is recorded."""

    code = "input"


class ModelError(LdotError):
    """A model's files are missing, incomplete or do not fit its configuration."""

    code = "model"


class TrainingError(LdotError):
    """A training run cannot go on."""

    code = "training"


class StoreError(LdotError):
    """A store cannot be opened, read or written."""

    code = "store"


class CollectionNotFound(StoreError):
    """The store has no collection of that name yet."""

    code = "collection_not_found"


class ModelMismatch(StoreError):
    """The collection holds vectors of another model or dimension."""

    code = "model_mismatch"


def printable(path: str) -> str:
    """A path for messages: one line of valid UTF-8, whatever bytes are in it."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason(error: OSError | ValueError) -> str:
    """What went wrong with a file, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def first_line(error: Exception) -> str:
    """What an error says, short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
