"""One chunk of sources into a store: the same code inline and in a worker.

A photo's way: read, hash, skip what is known, decode, regions, vector, region store, vector store. Photos whose regions
are ready skip two of these, and texts have just read, hash, vector, vector store.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Union

from .bundle import find_model
from .errors import InputError, UsageError
from .images import content_id, decode
from .region_store import open_region_store
from .sources import Source, read_all
from .sources.region_files import regions_of
from .stores import Record, VectorStore, checks

if TYPE_CHECKING:
    from PIL.Image import Image

    from .embedder import LightningDOTEmbedder
    from .regions import Regions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unread:
    """A new row and the bytes of its source, not yet decoded."""

    source: Source
    row: Record
    data: bytes


Opened = tuple[Record, Union["Image", "Regions"]]
"""A new photo's row, and the photo as the embedder takes it."""


CHUNK_SIZE = 64
"""Photos a chunk: one task of a worker, one write to the store."""

DEFAULT_NAMESPACE = "default"

CONTENT_ID = "content_id"
"""Metadata field that keeps the content's hash where the caller chose the id."""


@dataclass(frozen=True)
class Failure:
    """One source that could not be ingested."""

    source: str
    reason: str


@dataclass
class Report:
    """What became of the sources of one or more chunks; plain JSON values."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    failed: list[Failure] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many sources were looked at."""
        return self.added + self.updated + self.unchanged + len(self.failed)

    def add(self, other: Report) -> None:
        """Count another chunk's report into this one."""
        self.added += other.added
        self.updated += other.updated
        self.unchanged += other.unchanged
        self.failed += other.failed
        self.seconds = dict(Counter(self.seconds) + Counter(other.seconds))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_dict` is the way back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report:
        """The report that :meth:`to_dict` was made of."""
        failed = [Failure(**failure) for failure in values["failed"]]
        return cls(**{**values, "failed": failed})


class Ingestor:
    """Writes photos into a store. The model is loaded when the first photo is new.

    Args:
        store: filled with, or still empty for, this model; another one's collection is refused here.
        model: packaged name, folder or hub id.
        region_store: address for re-ranking data; None takes the setting, else the folder beside a local store.
    """

    def __init__(
        self,
        store: VectorStore,
        model: str = "ldot-mini",
        *,
        region_store: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        files = find_model(model)
        self.store = store
        self.region_store = open_region_store(store.address, files.fingerprint, region_store)
        self._embedder_arguments = (model, device, dtype)
        store.bind(files.fingerprint, files.dim)

    @cached_property
    def embedder(self) -> LightningDOTEmbedder:
        """The model, loaded on first use: a run that finds nothing new never loads it."""
        from .embedder import LightningDOTEmbedder

        return LightningDOTEmbedder(*self._embedder_arguments)

    def ingest(self, sources: Sequence[Source]) -> Report:
        """Ingest one chunk. A source that fails is reported and the others go on.

        Photos are known by id: the same bytes twice, in this chunk or an earlier one, are one row.
        """
        report = Report()
        clock = _Clock(report.seconds)
        with clock("read"):
            new, changed = self._sort_out(sources, report)
        photos: list[Opened] = []
        texts: list[Record] = []
        if new:
            embedder = self.embedder
            with clock("decode"):
                photos, texts = _decode(new, embedder, report)
        if photos or texts:
            with clock("encode"):
                records, kept = _encode(photos, texts, embedder)
            with clock("write"):
                # Region data first: whatever a search finds can be re-ranked.
                self.region_store.put(kept)
                self.store.upsert(records)
            report.added = len(records)
        if changed:
            with clock("write"):
                report.updated = self.store.update(changed)
        log.info(
            "chunk of %d: %d added, %d updated, %d unchanged, %d failed; seconds %s",
            report.total, report.added, report.updated, report.unchanged, len(report.failed),
            {stage: round(seconds, 3) for stage, seconds in report.seconds.items()},
        )  # fmt: skip
        return report

    def _sort_out(self, sources: Sequence[Source], report: Report) -> tuple[list[Unread], list[Record]]:
        """Read and hash everything; return what is new, and the rows whose description changed."""
        found: dict[str, Unread] = {}
        for source, data in zip(sources, read_all(sources), strict=True):
            if isinstance(data, InputError):
                report.failed.append(_failure(source, data))
                continue
            row = _row(source, content_id(data))
            try:
                checks.fields(row)
            except UsageError as error:
                report.failed.append(_failure(source, error))
                continue
            if row.id in found:
                report.unchanged += 1
            else:
                found[row.id] = Unread(source, row, data)
        known = {row.id: row for row in self.store.get(list(found))}
        ready = self.region_store.has([id for id, row in known.items() if row.kind == "image"])
        new: list[Unread] = []
        changed: list[Record] = []
        for id, unread in found.items():
            stored, row = known.get(id), unread.row
            if stored is None or not _same_content(stored, row) or (row.kind == "image" and id not in ready):
                new.append(unread)
                continue
            described = _described_anew(stored, row)
            if described == stored:
                report.unchanged += 1
            else:
                changed.append(described)
        return new, changed


def _decode(new: Sequence[Unread], embedder: LightningDOTEmbedder, report: Report) -> tuple[list[Opened], list[Record]]:
    """Photos as the embedder takes them, and texts."""
    photos: list[Opened] = []
    texts: list[Record] = []
    for unread in new:
        source, row = unread.source, unread.row
        try:
            if source.kind == "text":
                texts.append(row)
            elif source.kind == "regions":
                ready, width, height = regions_of(source, unread.data)
                (regions,) = embedder.regions([ready])  # refuses another extractor's
                photos.append((replace(row, width=width, height=height), regions))
            else:
                photo = decode(unread.data, name=source.name, draft_to=embedder.least_side)
                photos.append((replace(row, width=photo.width, height=photo.height), photo.image))
        except InputError as error:
            report.failed.append(_failure(source, error))
    return photos, texts


def _encode(
    photos: Sequence[Opened], texts: Sequence[Record], embedder: LightningDOTEmbedder
) -> tuple[list[Record], dict[str, Regions]]:
    """The rows with their vectors, and by id what re-ranking needs of the photos."""
    vectors = embedder.encode_texts([row.caption for row in texts])
    records = [replace(row, embedding=vector) for row, vector in zip(texts, vectors, strict=True)]
    vectors, regions = embedder.encode_for_store([photo for _, photo in photos])
    records += [replace(row, embedding=vector) for (row, _), vector in zip(photos, vectors, strict=True)]
    return records, {row.id: kept for (row, _), kept in zip(photos, regions, strict=True)}


def _row(source: Source, content: str) -> Record:
    own = {} if source.id in (None, content) else {CONTENT_ID: content}
    return Record(
        id=source.id or content,
        kind="text" if source.kind == "text" else "image",
        namespace=source.namespace,
        source=source.source,
        caption=source.caption,
        metadata={**source.metadata, **own},
    )


def _described_anew(stored: Record, row: Record) -> Record:
    """The stored row with what the source says now; what it leaves out stays."""
    return replace(
        stored,
        namespace=stored.namespace if row.namespace == DEFAULT_NAMESPACE else row.namespace,
        caption=row.caption or stored.caption,
        metadata=row.metadata or stored.metadata,
    )


def _same_content(stored: Record, row: Record) -> bool:
    """Whether the row of this id is of the same photo or text; the id tells it unless the caller chose it."""
    return stored.kind == row.kind and stored.metadata.get(CONTENT_ID) == row.metadata.get(CONTENT_ID)


def _failure(source: Source, error: InputError | UsageError) -> Failure:
    """The reason without the name that a listing shows beside it."""
    return Failure(source.name, str(error).removeprefix(f"{source.name}: "))


class _Clock:
    """Adds up the seconds of each stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - start
