"""One chunk of sources into a store: the same code inline and in a worker.

A photo's way: read, hash, skip what is known, decode, regions, vector, region store, vector store. Reading and decoding
run ahead of the model in threads, and writing runs behind it, so that the model waits for neither. Photos whose regions
are ready skip two of these steps, and texts have just read, hash, vector, vector store.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Union

from ldot_milvus.batches import batched, prefetch
from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.images import content_id, decode
from ldot_milvus.ingest.region_data import region_store_of
from ldot_milvus.models.base import Embedder, KeptImage, Reranker
from ldot_milvus.models.loading import load_reranker
from ldot_milvus.models.registry import find_model, find_reranker
from ldot_milvus.sources import Source, read_all
from ldot_milvus.sources.region_files import regions_of
from ldot_milvus.stores import Record, VectorStore, validation

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldot_milvus.regions import Regions

Opened = tuple[Record, Union["Image", "Regions", None]]
"""A new row and its photo as the embedder takes it; None for a text."""

CHUNK_SIZE = 64
"""Photos a chunk: one task of a worker."""

PART_SIZE = 32
"""Photos a part: while one part of a chunk is in the model, the next one is read and decoded."""

READERS = 4
"""Threads that decode."""

DEFAULT_NAMESPACE = "default"

CONTENT_ID = "content_id"
"""Metadata field that keeps the content's hash where the caller chose the id."""


@dataclass(frozen=True)
class Failure:
    """One source that could not be ingested."""

    source: str
    reason: str


@dataclass(frozen=True)
class Unread:
    """A new row and the bytes of its source, not yet decoded."""

    source: Source
    row: Record
    data: bytes


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
        reranker: whose region data is kept: None for the model's own, "none" for none, else a folder or hub id.
        region_store: address for region data; None takes the setting, else the place beside the store.

    Attributes:
        region_store: None where nothing is kept for re-ranking.
    """

    def __init__(
        self,
        store: VectorStore,
        model: str = "ldot-mini",
        *,
        reranker: str | None = None,
        region_store: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        files = find_model(model)
        kept = find_reranker(reranker, files)
        self.store = store
        self.region_store = region_store_of(store, kept, region_store)
        self._files, self._reranker_name = files, reranker
        self._device, self._dtype = device, dtype
        self._embedder: Embedder | None = None
        self._reranker: Reranker | None = None
        self._loading = threading.Lock()
        stored = store.model
        store.bind(stored if stored in files.former_fingerprints else files.fingerprint, files.dim)

    @property
    def embedder(self) -> Embedder:
        """The model, loaded on first use: a run that finds nothing new never loads it."""
        with self._loading:  # a worker of threads works on several chunks at once
            if self._embedder is None:
                self._embedder = self._files.load(device=self._device, dtype=self._dtype)
            return self._embedder

    @property
    def reranker(self) -> Reranker | None:
        """What decides which region data is kept; None where none is."""
        if self.region_store is None:
            return None
        embedder = self.embedder
        with self._loading:
            if self._reranker is None:
                self._reranker = load_reranker(self._reranker_name, embedder)
            return self._reranker

    def ingest(self, sources: Sequence[Source]) -> Report:
        """Ingest one chunk. A source that fails is reported and the others go on.

        Photos are known by id: the same bytes twice, in this chunk or an earlier one, are one row.
        """
        report = Report()
        chunk = _Chunk(self, report)
        ahead, readers, writer = (ThreadPoolExecutor(count, "ldot") for count in (1, READERS, 1))
        written: Future[None] | None = None
        try:
            prepared = prefetch(ahead, lambda part: chunk.prepare(part, readers), batched(sources, PART_SIZE))
            while True:
                with chunk.clock("wait"):
                    opened = next(prepared, None)
                if opened is None:
                    break
                if opened:
                    records, kept = chunk.encode(opened)
                    if written is not None:
                        written.result()
                    written = writer.submit(chunk.write, records, kept)
            if written is not None:
                written.result()
        finally:
            for threads in (
                ahead,
                readers,
                writer,
            ):  # where a photo hangs, whoever stops the chunk must not wait for it
                threads.shutdown(wait=False, cancel_futures=True)
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

    def prepare(self, sources: Sequence[Source], readers: ThreadPoolExecutor) -> list[Opened]:
        """Read and decode one part; what is known is done with here, and what is new comes back decoded."""
        with self.clock("read"):
            new, changed = self._sort_out(sources)
        if changed:
            with self.clock("write"):
                self._report.updated += self._ingestor.store.update(changed)
        if not new:
            return []
        embedder = self._ingestor.embedder
        with self.clock("decode"):
            return self._open(new, readers, embedder)

    def encode(self, opened: Sequence[Opened]) -> tuple[list[Record], dict[str, KeptImage]]:
        """The rows of one part with their vectors, and by id what the re-ranker keeps of the photos."""
        embedder, reranker = self._ingestor.embedder, self._ingestor.reranker
        photos = [(row, photo) for row, photo in opened if photo is not None]
        texts = [row for row, photo in opened if photo is None]
        with self.clock("regions"):
            features = embedder.image_features([photo for _, photo in photos])
        with self.clock("encode"):
            vectors = embedder.encode_features(features)
            kept = [] if reranker is None else reranker.keep(features)
            text_vectors = embedder.encode_texts([row.caption for row in texts])
        records = [replace(row, embedding=vector) for (row, _), vector in zip(photos, vectors, strict=True)]
        records += [replace(row, embedding=vector) for row, vector in zip(texts, text_vectors, strict=True)]
        if reranker is None:
            return records, {}
        return records, {row.id: one for (row, _), one in zip(photos, kept, strict=True)}

    def write(self, records: list[Record], kept: dict[str, KeptImage]) -> None:
        """Region data first: whatever a search finds can be re-ranked."""
        with self.clock("write"):
            if self._ingestor.region_store is not None:
                self._ingestor.region_store.put(kept)
            self._ingestor.store.upsert(records)
        self._report.added += len(records)

    def failed_twins(self) -> list[Failure]:
        """The same bytes again as those of a photo that could not be decoded: they fail as it did."""
        twins = [
            Failure(name, reason) for id, reason in self._refused.items() for name in self._names[id][1:]
        ]  # fmt: skip
        self._report.unchanged -= len(twins)
        return twins

    def _sort_out(self, sources: Sequence[Source]) -> tuple[list[Unread], list[Record]]:
        """Read and hash everything; return what is new, and the rows whose description changed."""
        store, regions, report = self._ingestor.store, self._ingestor.region_store, self._report
        found: dict[str, Unread] = {}
        for source, data in zip(sources, read_all(sources), strict=True):
            if isinstance(data, InputError):
                report.failed.append(_failure(source, data))
                continue
            report.bytes += len(data)
            row = _row(source, content_id(data))
            try:
                validation.fields(row)
            except UsageError as error:
                report.failed.append(_failure(source, error))
                continue
            names = self._names.setdefault(row.id, [])
            names.append(source.name)
            if len(names) > 1:
                report.unchanged += 1
            else:
                found[row.id] = Unread(source, row, data)
        known = {row.id: row for row in store.get(list(found))}
        photos = [id for id, row in known.items() if row.kind == "image"]
        ready = set(photos) if regions is None else regions.has(photos)
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

    def _open(self, new: Sequence[Unread], readers: ThreadPoolExecutor, embedder: Embedder) -> list[Opened]:
        opened: list[Opened] = []
        for unread, outcome in zip(new, readers.map(lambda unread: _opened(unread, embedder), new), strict=True):
            if isinstance(outcome, InputError):
                failure = _failure(unread.source, outcome)
                self._report.failed.append(failure)
                self._refused[unread.row.id] = failure.reason
            else:
                opened.append(outcome)
        return opened


def _opened(unread: Unread, embedder: Embedder) -> Opened | InputError:
    source, row = unread.source, unread.row
    try:
        if source.kind == "text":
            return row, None
        if source.kind == "regions":
            ready, width, height = regions_of(source, unread.data)
            embedder.image_features([ready])  # refuses another extractor's
            return replace(row, width=width, height=height), ready
        photo = decode(unread.data, name=source.name, draft_to=embedder.least_side)
        return replace(row, width=photo.width, height=photo.height), photo.image
    except InputError as error:
        return error


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
