"""Outcome of a chunk: counts, failures and seconds."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Failure:
    """One source that could not be ingested.

    Attributes:
        source: name of the source, for people.
        reason: what is wrong with it, without the name.
    """

    source: str
    reason: str


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
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of processed items, failed ones included."""
        return self.added + self.updated + self.unchanged + self.deleted + len(self.failed)

    def add(self, other: Report) -> None:
        """Add another chunk's report to this one."""
        self.added += other.added
        self.updated += other.updated
        self.unchanged += other.unchanged
        self.deleted += other.deleted
        self.replaced += other.replaced
        self.stale += other.stale
        self.failed += other.failed
        self.bytes += other.bytes
        self.seconds = dict(Counter(self.seconds) + Counter(other.seconds))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values for :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report:
        """Build a report from the values that :meth:`to_dict` returned."""
        failed = [Failure(**failure) for failure in values["failed"]]
        return cls(**{**values, "failed": failed})
