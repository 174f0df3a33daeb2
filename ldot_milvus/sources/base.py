"""One source: where a photo or a text is, and what its owner says about it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ldot_milvus.errors import printable

MAX_BYTES = 256 * 2**20  # of one photo's file

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """Where one photo or text is, and what its owner says about it; plain JSON values throughout.

    Attributes:
        path: as the caller gave it; bytes that are not UTF-8 are in it as surrogates, as Python does with paths.
        base: the folder that a relative ``path`` starts from, since a worker runs elsewhere.
        member, offset, size: a photo inside an uncompressed tar, or a record of a file of region features: its name
            there and the bytes that it takes.
        kind: "image" for an encoded photo, "regions" for one whose region features are ready, "text" for a text.
        id: the caller's own id; None for the content's hash.
        caption: the text itself where this is a text.
        problem: found while listing; :func:`read` raises it, so that it ends among the failures like any other.
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

    @property
    def source(self) -> str:
        """The stored field: the path as given, ``shard.tar/member.jpg`` in a tar; stray bytes as ``\\xff``."""
        path = self.path if self.member is None else f"{self.path}/{self.member}"
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    @property
    def name(self) -> str:
        """The same for messages and logs: one line, printable."""
        return printable(self.source)

    def described_by(self, fields: Mapping[str, Any]) -> Source:
        """The same with what its owner says: these fields win, and their metadata is added to what is there."""
        return replace(self, **{**fields, "metadata": {**self.metadata, **fields.get("metadata", {})}})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_dict` is the way back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Source:
        """What :meth:`to_dict` gave, back from JSON."""
        return cls(**values)


def source_at(path: str, **fields: Any) -> Source:
    """A source as seen from the current folder; an address is the same from everywhere."""
    return Source(path, base="" if os.path.isabs(path) or scheme(path) else os.getcwd(), **fields)


def too_large(size: int) -> str:
    """Why a file of so many bytes is not read."""
    return f"{size:,} bytes are more than the limit of {MAX_BYTES:,} bytes"


def scheme(path: str) -> str | None:
    """What stands before ``://`` in an address, in small letters; None for a path."""
    found = _SCHEME.match(path)
    return found[1].lower() if found else None
