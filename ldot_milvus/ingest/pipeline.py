"""The steps that one chunk of sources takes, each for a part of the chunk.

::

    prepare     read, hash, skip known rows, decode
    encode      extract regions, encode
    write       write region data, then rows
    reconcile   bring rows and files into agreement
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Union

from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.images import content_id, decode
from ldot_milvus.ingest.clock import Clock
from ldot_milvus.ingest.reconciliation import Place, reconcile
from ldot_milvus.ingest.report import Failure, Report
from ldot_milvus.ingest.row_sources import at, copies_of, described, is_absolute
from ldot_milvus.models.base import KeptImage
from ldot_milvus.models.passes import image_features
from ldot_milvus.sources import Source, read_all
from ldot_milvus.sources.region_files import regions_of
from ldot_milvus.stores import Record, validation
from ldot_milvus.stores.identity import CONTENT_ID, content_of, row_id

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldot_milvus.ingest.ingestor import Ingestor
    from ldot_milvus.regions import Regions

Opened = tuple[Record, Union["Image", "Regions", None]]
"""A new row and the photo or regions that the embedder encodes; None for a text."""


@dataclass(frozen=True)
class Unread:
    """A new row, and the bytes of its source before decoding."""

    source: Source
    row: Record
    data: bytes


class Pipeline:
    """State that the threads of one chunk share.

    One thread prepares, one encodes and one writes; each changes other fields of the report.
    """

    def __init__(self, ingestor: Ingestor, report: Report, draft_to: int | None) -> None:
        self._ingestor = ingestor
        self._report = report
        self._draft_to = draft_to
        self.clock = Clock(report.seconds)
        self.names: dict[str, list[str]] = {}  # names of the sources of each id, in the order of reading
        self._rows: dict[str, Record] = {}  # of the first source of each id
        self._refused: dict[str, str] = {}  # reason by id
        self._places: dict[str, Place] = {}  # of photos, by id
        self._elsewhere: set[str] = set()  # ids of photos that were read elsewhere than at the source of their row
        self._uncounted: set[str] = set()  # those of them that are not new

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
        with self.clock("decode"):
            return self._open(new, readers)

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
        duplicates = [Failure(name, reason) for id, reason in self._refused.items() for name in self.names[id][1:]]
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
        lost = outcome.missing & self._uncounted
        report.failed += [Failure(self.names[id][0], "another run has deleted its row: repeat this") for id in lost]
        report.failed += [Failure(self.names[id][-1], reason) for id, reason in outcome.refused.items()]
        report.unchanged -= len(outcome.refused.keys() - self._uncounted)  # a further source, counted before
        report.updated += len(outcome.updated & self._uncounted)
        report.unchanged += len(self._uncounted - outcome.updated - lost - outcome.refused.keys())
        report.replaced += len(outcome.replaced)
        self._ingestor.remember(outcome.replaced)
        report.stale += outcome.stale

    def _note_place(self, row: Record, size: int) -> None:
        said = {row.source: (row.caption, row.metadata)}
        earlier = self._places.get(row.id)
        if earlier is not None and row.source not in earlier.sources:
            self._elsewhere.add(row.id)
        self._places[row.id] = Place({**earlier.sources, **said} if earlier else said, size, False)

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
            try:
                row = validation.fields(_row(source, content_id(data)))
                _check_namespace(row, self._rows.setdefault(row.id, row))
            except UsageError as error:
                report.failed.append(_failure(source, error))
                continue
            names = self.names.setdefault(row.id, [])
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
            try:
                row, outcome = self._decided(unread, known.get(id), id in with_regions)
                row = validation.fields(row)
            except UsageError as error:
                self._refused[id] = str(error)
                report.failed.append(_failure(unread.source, error))
                continue
            if outcome == "new":
                new.append(replace(unread, row=row))
                self._note_new(row)
            elif outcome == "changed":
                changed.append((unread, row))
            elif outcome == "elsewhere":
                self._elsewhere.add(id)
                self._uncounted.add(id)
            else:
                report.unchanged += 1
        return new, changed

    def _decided(self, unread: Unread, stored: Record | None, has_regions: bool) -> tuple[Record, str]:
        """Return the row to write for a source that was read, and what it is: new, changed, elsewhere or unchanged.

        Raises:
            UsageError: the row with this id belongs to another namespace.
        """
        row = unread.row
        if stored is not None:
            _check_namespace(row, stored)
        if stored is None or not _same_content(stored, row):
            former = self._ingestor.replaced.pop(row.id, None)
            if former is not None and _same_content(former, row):
                row = described(at(former, row.source, []), row.source, row.caption, row.metadata)
            return row, "new"
        if row.kind == "image" and not has_regions:
            others = [stored.source] if is_absolute(stored.source) else []
            stored = at(stored, row.source, [*others, *copies_of(stored)])
            return described(stored, row.source, row.caption, row.metadata), "new"
        if row.kind == "image" and stored.source != row.source:
            return stored, "elsewhere"
        updated = described(stored, row.source, row.caption, row.metadata)
        return updated, "unchanged" if updated == stored else "changed"

    def _open(self, new: Sequence[Unread], readers: ThreadPoolExecutor) -> list[Opened]:
        opened: list[Opened] = []
        outcomes = readers.map(lambda unread: _opened(unread, self._ingestor, self._draft_to), new)
        for unread, outcome in zip(new, outcomes, strict=True):
            if isinstance(outcome, InputError):
                failure = _failure(unread.source, outcome)
                self._report.failed.append(failure)
                self._refused[unread.row.id] = failure.reason
            else:
                opened.append(outcome)
        return opened


def _opened(unread: Unread, ingestor: Ingestor, draft_to: int | None) -> Opened | InputError:
    source, row = unread.source, unread.row
    try:
        if source.kind == "text":
            return row, None
        if source.kind == "regions":
            regions, width, height = regions_of(source, unread.data)
            image_features(
                ingestor.embedder, ingestor.reranker, [regions]
            )  # raises InputError for regions of another extractor
            return replace(row, width=width, height=height), regions
        photo = decode(unread.data, name=source.name, draft_to=draft_to)
        return replace(row, width=photo.width, height=photo.height), photo.image
    except InputError as error:
        return error


def _row(source: Source, content: str) -> Record:
    id = source.id or row_id(source.namespace, content)
    return Record(
        id=id,
        kind="text" if source.kind == "text" else "image",
        namespace=source.namespace,
        source=source.source,
        caption=source.caption,
        metadata={**source.metadata, CONTENT_ID: content} if id != content else source.metadata,
    )


def _check_namespace(row: Record, other: Record) -> None:
    """Raise UsageError if a row would take the id of a row of another namespace."""
    if row.namespace != other.namespace:
        raise UsageError(f'the id "{row.id}" belongs to a row of another namespace: choose another id')


def _same_content(stored: Record, row: Record) -> bool:
    """Whether two rows of one id have the same content; rows differ only where the caller chose the id."""
    return stored.kind == row.kind and content_of(stored) == content_of(row)


def _failure(source: Source, error: InputError | UsageError) -> Failure:
    """Return the failure, without the source's name in its reason."""
    return Failure(source.name, str(error).removeprefix(f"{source.name}: "))
