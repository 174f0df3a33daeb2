"""Ingestion of one chunk of sources into a store; workers and the in-process mode share this code.

The steps for a photo: read, hash, skip known rows, decode, extract regions, encode, write region data, write the row.
Threads read and decode ahead of the model and write behind it, so that the model does not wait for either. Sources with
precomputed regions skip decoding and extraction; texts are read, hashed, encoded and written.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Union

from ldot_milvus.batches import batched, prefetch
from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.images import content_id, decode
from ldot_milvus.ingest.clock import Clock
from ldot_milvus.ingest.reconciliation import CONTENT_ID as CONTENT_ID
from ldot_milvus.ingest.reconciliation import COPIES, Place, at, reconcile, rewritten
from ldot_milvus.ingest.region_data import region_store_of
from ldot_milvus.ingest.report import Failure as Failure
from ldot_milvus.ingest.report import Report as Report
from ldot_milvus.models.base import Embedder, KeptImage, Reranker
from ldot_milvus.models.loading import load_reranker
from ldot_milvus.models.passes import image_features, least_side
from ldot_milvus.models.registry import find_model, find_reranker
from ldot_milvus.sources import Source, read_all
from ldot_milvus.sources.region_files import regions_of
from ldot_milvus.stores import Record, VectorStore, validation

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldot_milvus.regions import Regions

Opened = tuple[Record, Union["Image", "Regions", None]]
"""A new row and the photo or regions that the embedder encodes; None for a text."""

CHUNK_SIZE = 64
"""Photos in a chunk, which is one task of a worker."""

PART_SIZE = 32
"""Photos encoded at a time: while the model encodes one part of a chunk, threads read and decode the next."""

READERS = 4
"""Threads that decode photos."""

MAX_REPLACED = 10_000
"""Deleted rows whose descriptions are kept in memory."""

DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True)
class Unread:
    """A new row, and the bytes of its source before decoding."""

    source: Source
    row: Record
    data: bytes


class Ingestor:
    """Writes photos and texts into a store; loads the model when the first new item arrives.

    Args:
        store: collection to write to; it is empty or contains vectors of ``model``.
        model: packaged name, folder or hub id of the embedder.
        reranker: re-ranker whose region data is stored: None for the model's own, "none" for none, else a folder or hub
            id.
        region_store: address of the region data; None takes the setting, else the default beside the store.
        device: torch device such as ``cuda:0``; None chooses one.
        dtype: torch dtype such as ``float16``; None chooses one for the device.

    Raises:
        UsageError: no model or re-ranker of that name.
        ModelError: the files of a model are missing or incomplete.
        ModelMismatch: the collection contains vectors of another model.

    Attributes:
        store: collection to write to.
        region_store: region data of the collection; None without a re-ranker.
        replaced: the last rows that were deleted because their sources hold other photos, by id. One that a later chunk
            finds elsewhere keeps its description.
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
        self.replaced: dict[str, Record] = {}
        stored = store.model
        store.bind(stored if stored in files.former_fingerprints else files.fingerprint, files.dim)

    @property
    def embedder(self) -> Embedder:
        """The model, loaded on first use; a run without new items never loads it."""
        with self._loading:  # a worker with a thread pool processes several chunks at once
            if self._embedder is None:
                self._embedder = self._files.load(device=self._device, dtype=self._dtype)
            return self._embedder

    @property
    def reranker(self) -> Reranker | None:
        """The re-ranker that selects the region data to store, loaded on first use; None without one."""
        if self.region_store is None:
            return None
        embedder = self.embedder
        with self._loading:
            if self._reranker is None:
                self._reranker = load_reranker(self._reranker_name, embedder)
            return self._reranker

    def remember(self, rows: Sequence[Record]) -> None:
        """Add rows to :attr:`replaced`, which keeps the last :data:`MAX_REPLACED`."""
        self.replaced.update((row.id, row) for row in rows)
        for id in list(self.replaced)[:-MAX_REPLACED]:
            del self.replaced[id]

    def ingest(self, sources: Sequence[Source]) -> Report:
        """Ingest one chunk of sources.

        Photos are identified by the SHA-256 of their contents unless the source has an id. The same contents twice, in
        this chunk or an earlier one, give one row. A source that fails is reported and does not stop the others.

        Args:
            sources: photos, texts and precomputed regions.

        Returns:
            Counts, failures and seconds by stage.

        Raises:
            StoreError: a store cannot be used.
            ModelError: the model cannot be loaded.
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
            for threads in (ahead, readers, writer):
                # Without waiting: a chunk can be stopped although one of its photos hangs.
                threads.shutdown(wait=False, cancel_futures=True)
        report.failed += chunk.failed_duplicates()
        chunk.reconcile()
        return report


class _Chunk:
    """State that the threads of one chunk share.

    One thread prepares, one encodes and one writes; each changes other fields of the report.
    """

    def __init__(self, ingestor: Ingestor, report: Report) -> None:
        self._ingestor = ingestor
        self._report = report
        self.clock = Clock(report.seconds)
        self._names: dict[str, list[str]] = {}  # names of the sources of each id, in the order of reading
        self._refused: dict[str, str] = {}  # reason by id
        self._places: dict[str, Place] = {}  # of photos, by id
        self._elsewhere: set[str] = set()  # ids of photos that were read elsewhere than at the source of their row
        self._uncounted: set[str] = set()  # those of them that are neither new nor described in another way

    def prepare(self, sources: Sequence[Source], readers: ThreadPoolExecutor) -> list[Opened]:
        """Read one part, update the known rows whose description changed, and return the new ones decoded."""
        with self.clock("read"):
            new, changed = self._new_and_changed(sources)
        if changed:
            with self.clock("write"):
                updated = self._ingestor.store.update([row for _, row in changed])
                if updated < len(changed):  # another run has deleted some of the rows
                    kept = {row.id for row in self._ingestor.store.get([row.id for _, row in changed])}
                    lost = [unread for unread, row in changed if row.id not in kept]
                    for unread in lost:
                        self._note_new(unread.row)
                    new += lost
                self._report.updated += updated
        if not new:
            return []
        embedder, reranker = self._ingestor.embedder, self._ingestor.reranker
        with self.clock("decode"):
            return self._open(new, readers, embedder, reranker)

    def encode(self, opened: Sequence[Opened]) -> tuple[list[Record], dict[str, KeptImage]]:
        """Return the rows of one part with their vectors, and the region data of the photos by id."""
        embedder, reranker = self._ingestor.embedder, self._ingestor.reranker
        photos = [(row, photo) for row, photo in opened if photo is not None]
        texts = [row for row, photo in opened if photo is None]
        with self.clock("regions"):
            features, own = image_features(embedder, reranker, [photo for _, photo in photos])
        with self.clock("encode"):
            vectors = embedder.encode_features(features)
            kept = [] if reranker is None else reranker.keep(own)
            text_vectors = embedder.encode_texts([row.caption for row in texts])
        records = [replace(row, embedding=vector) for (row, _), vector in zip(photos, vectors, strict=True)]
        records += [replace(row, embedding=vector) for row, vector in zip(texts, text_vectors, strict=True)]
        if reranker is None:
            return records, {}
        return records, {row.id: image for (row, _), image in zip(photos, kept, strict=True)}

    def write(self, records: list[Record], kept: dict[str, KeptImage]) -> None:
        """Write region data before rows, so that every row a search returns can be re-ranked."""
        with self.clock("write"):
            if self._ingestor.region_store is not None:
                self._ingestor.region_store.put(kept)
            self._ingestor.store.upsert(records)
        self._report.added += len(records)

    def failed_duplicates(self) -> list[Failure]:
        """Return a failure for each further source with the contents of a photo that could not be decoded."""
        duplicates = [Failure(name, reason) for id, reason in self._refused.items() for name in self._names[id][1:]]
        self._report.unchanged -= len(duplicates)
        return duplicates

    def reconcile(self) -> None:
        """Bring rows and files into agreement, after everything else is written."""
        report, ids = self._report, self._elsewhere - self._refused.keys()
        if not ids:
            return
        with self.clock("write"):
            places = {id: self._places[id] for id in sorted(ids)}
            outcome = reconcile(self._ingestor.store, self._ingestor.region_store, places)
        missing = outcome.missing & self._uncounted
        report.updated += len(outcome.moved & self._uncounted)
        report.unchanged += len(self._uncounted - outcome.moved - missing)
        report.failed += [Failure(self._names[id][0], "another run has deleted its row: repeat this") for id in missing]
        report.replaced += len(outcome.replaced)
        self._ingestor.remember(outcome.replaced)
        report.stale += outcome.stale

    def _note_place(self, row: Record, size: int) -> None:
        earlier = self._places.get(row.id)
        self._places[row.id] = Place([*(earlier.sources if earlier else ()), row.source], size, False)
        if earlier is not None and row.source not in earlier.sources:
            self._elsewhere.add(row.id)

    def _note_new(self, row: Record) -> None:
        if row.kind == "image":
            self._places[row.id] = replace(self._places[row.id], new=True)
            self._elsewhere.add(row.id)

    def _new_and_changed(self, sources: Sequence[Source]) -> tuple[list[Unread], list[tuple[Unread, Record]]]:
        """Read and hash the sources; return the new ones, and the known ones with the rows of another description."""
        store, regions, report = self._ingestor.store, self._ingestor.region_store, self._report
        unread_by_id: dict[str, Unread] = {}
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
            if row.kind == "image":
                self._note_place(row, len(data))
            if len(names) > 1:
                report.unchanged += 1
            else:
                unread_by_id[row.id] = Unread(source, row, data)
        known = {row.id: row for row in store.get(list(unread_by_id))}
        photos = [id for id, row in known.items() if row.kind == "image"]
        with_regions = set(photos) if regions is None else regions.has(photos)
        new: list[Unread] = []
        changed: list[tuple[Unread, Record]] = []
        for id, unread in unread_by_id.items():
            stored, row = known.get(id), unread.row
            same = stored is not None and _same_content(stored, row)
            if stored is None or not same or (row.kind == "image" and id not in with_regions):
                if stored is not None and same:
                    row = rewritten(row, stored)
                elif (former := self._ingestor.replaced.pop(id, None)) is not None and _same_content(former, row):
                    row = at(_with_description(former, row), row.source, [])
                new.append(replace(unread, row=row))
                self._note_new(row)
                continue
            moved = row.kind == "image" and stored.source != row.source
            if moved:
                self._elsewhere.add(id)
            described = _with_description(stored, row)
            if described != stored:
                changed.append((unread, described))
            elif moved:
                self._uncounted.add(id)
            else:
                report.unchanged += 1
        return new, changed

    def _open(
        self, new: Sequence[Unread], readers: ThreadPoolExecutor, embedder: Embedder, reranker: Reranker | None
    ) -> list[Opened]:
        opened: list[Opened] = []
        for unread, outcome in zip(
            new, readers.map(lambda unread: _opened(unread, embedder, reranker), new), strict=True
        ):
            if isinstance(outcome, InputError):
                failure = _failure(unread.source, outcome)
                self._report.failed.append(failure)
                self._refused[unread.row.id] = failure.reason
            else:
                opened.append(outcome)
        return opened


def _opened(unread: Unread, embedder: Embedder, reranker: Reranker | None) -> Opened | InputError:
    source, row = unread.source, unread.row
    try:
        if source.kind == "text":
            return row, None
        if source.kind == "regions":
            regions, width, height = regions_of(source, unread.data)
            image_features(embedder, reranker, [regions])  # raises InputError for regions of another extractor
            return replace(row, width=width, height=height), regions
        photo = decode(unread.data, name=source.name, draft_to=least_side(embedder, reranker))
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


def _with_description(stored: Record, row: Record) -> Record:
    """Return the stored row with the namespace, caption and metadata of the new one, where that has any."""
    copies = {COPIES: stored.metadata[COPIES]} if COPIES in stored.metadata else {}
    return replace(
        stored,
        namespace=stored.namespace if row.namespace == DEFAULT_NAMESPACE else row.namespace,
        caption=row.caption or stored.caption,
        metadata={**row.metadata, **copies} if row.metadata else stored.metadata,
    )


def _same_content(stored: Record, row: Record) -> bool:
    """Whether two rows of one id have the same content; rows differ only where the caller chose the id."""
    return stored.kind == row.kind and stored.metadata.get(CONTENT_ID) == row.metadata.get(CONTENT_ID)


def _failure(source: Source, error: InputError | UsageError) -> Failure:
    """Return the failure, without the source's name in its reason."""
    return Failure(source.name, str(error).removeprefix(f"{source.name}: "))
