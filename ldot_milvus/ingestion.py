"""One chunk of sources into a store: the same code inline and in a worker.

A photo's way: read, hash, skip what is known, decode, regions, vector, region store, vector store. Reading and decoding
run ahead of the model in threads, and writing runs behind it, so that the model waits for neither.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .batches import batched, one_ahead
from .bundle import find_model
from .errors import InputError, printable
from .images import content_id, decode
from .region_store import open_region_store
from .sources import Source, read
from .stores import Record, VectorStore

if TYPE_CHECKING:
    from .embedder import LightningDOTEmbedder
    from .images import Photo
    from .regions import Regions

Unread = dict[str, tuple[Record, bytes]]
"""Rows by id with the bytes of their photos, not yet decoded."""

Decoded = list[tuple[Record, "Photo"]]

CHUNK_SIZE = 64
"""Photos a chunk: one task of a worker."""

PART_SIZE = 32
"""Photos a part: while one part of a chunk is in the model, the next one is read and decoded."""

READERS = 4
"""Threads that read and decode; waiting for a disk or a server is most of what they do."""

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
    deleted: int = 0
    failed: list[Failure] = field(default_factory=list)
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many sources were looked at."""
        return self.added + self.updated + self.unchanged + self.deleted + len(self.failed)

    def add(self, other: Report) -> None:
        """Count another chunk's report into this one."""
        self.added += other.added
        self.updated += other.updated
        self.unchanged += other.unchanged
        self.deleted += other.deleted
        self.failed += other.failed
        self.bytes += other.bytes
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
        self._embedder: LightningDOTEmbedder | None = None
        self._loading = threading.Lock()
        store.bind(files.fingerprint, files.dim)

    @property
    def embedder(self) -> LightningDOTEmbedder:
        """The model, loaded on first use: a run that finds nothing new never loads it."""
        with self._loading:  # a worker of threads works on several chunks at once
            if self._embedder is None:
                from .embedder import LightningDOTEmbedder

                self._embedder = LightningDOTEmbedder(*self._embedder_arguments)
            return self._embedder

    def ingest(self, sources: Sequence[Source]) -> Report:
        """Ingest one chunk. A source that fails is reported and the others go on.

        Photos are known by id: the same bytes twice, in this chunk or an earlier one, are one row.
        """
        report = Report()
        chunk = _Chunk(self, report)
        with (
            ThreadPoolExecutor(1, "ldot-ahead") as ahead,
            ThreadPoolExecutor(READERS, "ldot-read") as readers,
            ThreadPoolExecutor(1, "ldot-write") as writer,
        ):
            written: Future[None] | None = None
            prepared = one_ahead(ahead, lambda part: chunk.prepare(part, readers), batched(sources, PART_SIZE))
            while True:
                with chunk.clock("wait"):
                    photos = next(prepared, None)
                if photos is None:
                    break
                if photos:
                    records, regions = chunk.encode(photos)
                    if written is not None:
                        written.result()
                    written = writer.submit(chunk.write, records, regions)
            if written is not None:
                written.result()
        report.failed += chunk.failed_twins()
        return report


class _Chunk:
    """What the threads that work on one chunk share.

    Only one thread prepares, one encodes and one writes, and each has its own fields of the report.
    """

    def __init__(self, ingestor: Ingestor, report: Report) -> None:
        self._ingestor = ingestor
        self._report = report
        self.clock = _Clock(report.seconds)
        self._names: dict[str, list[str]] = {}  # id to the sources that have it, the first one's first
        self._refused: dict[str, str] = {}  # id to the reason

    def prepare(self, sources: Sequence[Source], readers: ThreadPoolExecutor) -> Decoded:
        """Read and decode one part; what is known is done with here, and what is new comes back decoded."""
        with self.clock("read"):
            new, changed = self._sort_out(sources, readers)
        if changed:
            with self.clock("write"):
                self._report.updated += self._ingestor.store.update(changed)
        if not new:
            return []
        least_side = self._ingestor.embedder.least_side
        with self.clock("decode"):
            return self._decode(new, readers, least_side)

    def encode(self, photos: Decoded) -> tuple[list[Record], dict[str, Regions]]:
        """Vectors and region data of one part."""
        embedder = self._ingestor.embedder
        with self.clock("regions"):
            found = embedder.regions([photo.image for _, photo in photos])
        with self.clock("encode"):
            vectors, kept = embedder.encode_for_store(found)
        records = [
            replace(row, embedding=vector, width=photo.width, height=photo.height)
            for (row, photo), vector in zip(photos, vectors, strict=True)
        ]
        return records, {row.id: regions for row, regions in zip(records, kept, strict=True)}

    def write(self, records: list[Record], regions: dict[str, Regions]) -> None:
        """Region data first: whatever a search finds can be re-ranked."""
        with self.clock("write"):
            self._ingestor.region_store.put(regions)
            self._ingestor.store.upsert(records)
        self._report.added += len(records)

    def failed_twins(self) -> list[Failure]:
        """The same bytes again as those of a photo that could not be decoded: they fail as it did."""
        twins = [
            Failure(name, reason) for id, reason in self._refused.items() for name in self._names[id][1:]
        ]  # fmt: skip
        self._report.unchanged -= len(twins)
        return twins

    def _sort_out(self, sources: Sequence[Source], readers: ThreadPoolExecutor) -> tuple[Unread, list[Record]]:
        """Read and hash everything; return what is new, by id, and the rows whose description changed."""
        store, regions, report = self._ingestor.store, self._ingestor.region_store, self._report
        found: Unread = {}
        for source, outcome in zip(sources, readers.map(_read, sources), strict=True):
            if isinstance(outcome, InputError):
                report.failed.append(_failure(source.name, outcome))
                continue
            row, data = outcome
            report.bytes += len(data)
            names = self._names.setdefault(row.id, [])
            names.append(source.name)
            if len(names) > 1:
                report.unchanged += 1
            else:
                found[row.id] = (row, data)
        known = {row.id: row for row in store.get(list(found))}
        ready = regions.has(list(known))
        new: Unread = {}
        changed: list[Record] = []
        for id, (row, data) in found.items():
            stored = known.get(id)
            if stored is None or id not in ready or stored.metadata.get(CONTENT_ID) != row.metadata.get(CONTENT_ID):
                new[id] = (row, data)
                continue
            described = _described_anew(stored, row)
            if described == stored:
                report.unchanged += 1
            else:
                changed.append(described)
        return new, changed

    def _decode(self, new: Unread, readers: ThreadPoolExecutor, least_side: int | None) -> Decoded:
        def decoded(item: tuple[Record, bytes]) -> Photo | InputError:
            row, data = item
            try:
                return decode(data, name=printable(row.source), draft_to=least_side)
            except InputError as error:
                return error

        photos: Decoded = []
        for (row, _), outcome in zip(new.values(), readers.map(decoded, new.values()), strict=True):
            if isinstance(outcome, InputError):
                failure = _failure(printable(row.source), outcome)
                self._report.failed.append(failure)
                self._refused[row.id] = failure.reason
            else:
                photos.append((row, outcome))
        return photos


def _read(source: Source) -> tuple[Record, bytes] | InputError:
    try:
        data = read(source)
    except InputError as error:
        return error
    return _row(source, content_id(data)), data


def _row(source: Source, content: str) -> Record:
    own = {} if source.id in (None, content) else {CONTENT_ID: content}
    return Record(
        id=source.id or content,
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


def _failure(name: str, error: InputError) -> Failure:
    """The reason without the name that a listing shows beside it."""
    return Failure(name, str(error).removeprefix(f"{name}: "))


class _Clock:
    """Adds up the seconds of each stage; stages that overlap count each in full."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            with self._lock:
                self._seconds[stage] = self._seconds.get(stage, 0.0) + spent
