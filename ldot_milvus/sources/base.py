"""The description of one photo or text to ingest."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ldot_milvus.arguments import path_text
from ldot_milvus.errors import printable
from ldot_milvus.json_values import json_value
from ldot_milvus.sources.metadata import joined

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """Location and description of one photo or text.

    Attributes:
        path: path or URL as the caller gave it. Bytes that are not UTF-8 are surrogates, as in Python's own paths.
        base: folder to which a relative ``path`` refers, since a worker may run in another folder.
        member: name of a photo in an uncompressed tar, or of a record in a file of region features; None otherwise.
        offset: position of the member in the file, in bytes; None without a member, and for records of an LMDB.
        size: size of the member, in bytes; None as for ``offset``.
        kind: "image" for a photo, "regions" for a photo's region features, "text" for a text.
        id: the caller's own id, at most 64 bytes; None for the SHA-256 of the content.
        caption: caption of the photo, at most 8,192 bytes; the text itself if ``kind`` is "text".
        namespace: tenant, at most 64 bytes.
        metadata: the caller's own fields, JSON values and what becomes one (``docs/collection.md``).
        problem: reason why the source cannot be ingested, if listing found one; :func:`read` raises it, so that the
            source is reported among the failures.
    """

    path: str
    base: str = ""
    member: str | None = None
    offset: int | None = None
    size: int | None = None
    kind: str = "image"
    id: str | None = None
    caption: str = ""
    namespace: str = "default"
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", path_text(self.path))

    @property
    def source(self) -> str:
        """Value of the field ``source``: an absolute path or an address, with bytes that are not UTF-8 as ``\\xff``.

        The name of a member follows the path: ``/data/shard.tar/a.jpg``. A text that was not listed from a file keeps
        its path as a label.
        """
        label = self.kind == "text" and not self.base
        return utf8(self._with_member(self.path if label else absolute(self.path, self.base)))

    @property
    def name(self) -> str:
        """The path as the caller gave it, with the member, as one printable line for messages and logs."""
        return printable(self._with_member(self.path))

    def described_by(self, fields: Mapping[str, Any]) -> Source:
        """Return a copy with ``fields`` replaced; their ``metadata`` is merged into the existing metadata."""
        return replace(self, **{**fields, "metadata": {**self.metadata, **fields.get("metadata", {})}})

    def also_described_by(self, other: Source) -> Source:
        """Return a copy with the captions and fields of both; captions that are together too long are a problem."""
        mine, theirs = ({"caption": one.caption, "metadata": one.metadata} for one in (self, other))
        try:
            return replace(self, **joined(mine, theirs))
        except ValueError as error:
            return replace(self, problem=str(error))

    def _with_member(self, path: str) -> str:
        return path if self.member is None else f"{path}/{self.member}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values that :meth:`from_dict` accepts.

        Raises:
            UsageError: a value of the metadata has no form in JSON.
        """
        return {**asdict(self), "metadata": json_value(self.metadata, f"{self.name}: metadata")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Source:
        """Create a source from the values of :meth:`to_dict`."""
        return cls(**values)


def source_at(path: str, **fields: Any) -> Source:
    """Create a source whose relative path refers to the current folder.

    Args:
        path: a path or an address.
        fields: other fields of :class:`Source`.
    """
    return Source(path, base="" if os.path.isabs(path) or scheme(path) else os.getcwd(), **fields)


def absolute(path: str, base: str = "") -> str:
    """Return an absolute path without ``.``, ``..`` and repeated separators; an address is returned as it is.

    Links are kept, except before a ``..``, whose meaning depends on them.

    Args:
        path: a path or an address.
        base: folder to which a relative path refers; empty for the current folder.
    """
    if scheme(path):
        return path
    joined = os.path.join(base, path)
    if not os.path.isabs(joined):
        joined = os.path.join(os.getcwd(), joined)
    if f"{os.sep}.." in joined:
        parts = joined.split(os.sep)
        after = len(parts) - parts[::-1].index("..") if ".." in parts else 0
        joined = os.path.join(os.path.realpath(os.sep.join(parts[:after]) or os.sep), *parts[after:])
    return os.path.normpath(os.sep + joined.lstrip(os.sep))  # normpath keeps two leading separators


def utf8(text: str) -> str:
    """Return text with bytes that are not UTF-8 escaped as ``\\xff``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def scheme(path: str) -> str | None:
    """Return the scheme of an address in lower case, such as "s3"; None for a path."""
    match = _SCHEME.match(path)
    return match[1].lower() if match else None
