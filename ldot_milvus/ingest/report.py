"""Outcome of a chunk: counts, failures and seconds."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from ldot_milvus.errors import printable


@dataclass(frozen=True)
class Failure:
    """One source that could not be ingested.

    Attributes:
        source: name of the source, for people.
        reason: what is wrong with it, without the name.
    """

    source: str
    reason: str


@dataclass(frozen=True)
class NearDuplicate:
    """One photo that was left out, since it shows the same as another.

    Attributes:
        source: name of the photo's source, for people.
        of: source of the row, or of the photo of the same chunk, that shows the same.
    """

    source: str
    of: str

    def __str__(self) -> str:
        return f"{self.source} [of {printable(self.of)}]"


@dataclass
class Report:
    """Outcome of one or more chunks.

    Attributes:
        added: rows written with a new vector.
        updated: existing rows with a new caption, namespace, metadata or source.
        unchanged: items that needed no write.
        deleted: rows deleted.
        replaced: further rows deleted, because their source now holds another photo.
        stale: rows kept, although their source seems to hold another photo.
        failed: sources that could not be ingested.
        near_duplicates: photos that were left out, if this was asked for.
        bytes: bytes read from the sources.
        seconds: seconds of each stage: wait, read, decode, regions, encode, write. Stages overlap.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    replaced: int = 0
    stale: int = 0
    failed: list[Failure] = field(default_factory=list)
    near_duplicates: list[NearDuplicate] = field(default_factory=list)
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of processed items, failed ones and near-duplicates included."""
        written = self.added + self.updated + self.unchanged + self.deleted
        return written + len(self.failed) + len(self.near_duplicates)

    @property
    def counts(self) -> dict[str, int]:
        """All numbers of the report, of its lists their lengths."""
        values = {name: value for name, value in vars(self).items() if name != "seconds"}
        return {name: len(value) if isinstance(value, list) else value for name, value in values.items()}

    def add(self, other: Report) -> None:
        """Add another chunk's report to this one."""
        self.added += other.added
        self.updated += other.updated
        self.unchanged += other.unchanged
        self.deleted += other.deleted
        self.replaced += other.replaced
        self.stale += other.stale
        self.failed += other.failed
        self.near_duplicates += other.near_duplicates
        self.bytes += other.bytes
        self.seconds = dict(Counter(self.seconds) + Counter(other.seconds))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values for :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report:
        """Build a report from the values that :meth:`to_dict` returned."""
        failed = [Failure(**failure) for failure in values["failed"]]
        near_duplicates = [NearDuplicate(**one) for one in values.get("near_duplicates", [])]
        return cls(**{**values, "failed": failed, "near_duplicates": near_duplicates})
