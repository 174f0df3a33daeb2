"""Region data of another re-ranker for an existing collection, made from the photos.

Rows, vectors and the region data of other re-rankers stay as they are, so searches go on with the old re-ranker until
the setting is changed. What is there already is not made again: an interrupted run is continued by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Union

from ldot_milvus.batches import batched, prefetch
from ldot_milvus.errors import InputError, LdotError, UsageError, printable
from ldot_milvus.images import content_id, decode
from ldot_milvus.ingest.ingestor import CHUNK_SIZE, PART_SIZE, READERS
from ldot_milvus.ingest.report import Failure
from ldot_milvus.ingest.row_sources import copies_of
from ldot_milvus.models.base import Embedder, KeptImage, ModelFiles, Reranker, RerankerFiles
from ldot_milvus.models.passes import image_features
from ldot_milvus.models.registry import find_model, find_reranker
from ldot_milvus.search.retriever import check_model
from ldot_milvus.settings import Settings
from ldot_milvus.sources import Source, read_all
from ldot_milvus.sources.reading import located
from ldot_milvus.sources.region_files import regions_of
from ldot_milvus.stores import Record, VectorStore, validation
from ldot_milvus.stores.identity import content_of, is_content_id
from ldot_milvus.stores.region_place import RegionPlace, region_store_at
from ldot_milvus.stores.regions import RegionStore

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldot_milvus.regions import Regions

Opened = Union["Image", "Regions"]
"""A decoded photo, or the precomputed regions that a row was ingested from."""


@dataclass
class RegionReport:
    """Outcome of :func:`add_region_data`.

    Attributes:
        photos: photos in the collection at the end.
        present: those of them with region data of the new re-ranker.
        made: those whose region data this run made.
        failed: photos without it, and why.
        former: folder with the region data of the re-ranker that was used before; None if there is none.
    """

    photos: int = 0
    present: int = 0
    made: int = 0
    failed: list[Failure] = field(default_factory=list)
    former: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every photo has region data of the new re-ranker."""
        return not self.failed and self.present >= self.photos


def add_region_data(
    store: VectorStore,
    model: str,
    reranker: str,
    *,
    region_store: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Callable[[int], object] = lambda photos: None,
) -> RegionReport:
    """Make the region data of a re-ranker for all photos of a collection that lack it.

    Args:
        store: the collection.
        model: packaged name, folder or hub id of the embedder that filled it.
        reranker: folder or hub id of the re-ranker.
        region_store: address of the region data; None takes the setting, else the recorded place, else the default.
        device: torch device such as ``cuda:0``; None chooses one.
        dtype: torch dtype such as ``float16``; None chooses one for the device.
        progress: called with the number of photos of each finished batch.

    Returns:
        Counts and failures. A photo fails if neither its source nor a copy can be read, or if none has its content.

    Raises:
        CollectionNotFound: the collection does not exist.
        UsageError: no model or re-ranker of that name, or "none".
        ModelError: the re-ranker cannot be combined with the model.
        ModelMismatch: the collection contains vectors of another model.
        RegionStoreNotFound: the region data of the collection is at another place.
    """
    validation.existing_dim(store)
    files = find_model(model)
    kept_by = find_reranker(reranker, files)
    if kept_by is None:
        raise UsageError(
            f"{reranker!r} keeps no region data, so there is nothing to make: set LDOT_RERANKER={reranker}"
        )
    check_model(store, files)
    address = RegionPlace(store, region_store).claim()
    regions = region_store_at(address, kept_by)
    report = RegionReport(former=_former_folder(address, files, kept_by))
    models = _Models(files, kept_by, device, dtype)
    ahead, readers = ThreadPoolExecutor(1, "ldot"), ThreadPoolExecutor(READERS, "ldot")
    try:
        parts = batched(_missing(store, regions, report, progress), PART_SIZE)
        for opened, failed in prefetch(ahead, lambda rows: _open(rows, readers, kept_by.least_side), parts):
            kept, refused = models.keep(opened)
            regions.put(kept)
            report.made += len(kept)
            report.failed += failed + refused
            progress(len(kept) + len(failed) + len(refused))
    finally:
        for threads in (ahead, readers):
            threads.shutdown(wait=False, cancel_futures=True)
    report.present += report.made
    report.photos = store.count({"kind": "image"})
    return report


class _Models:
    """The model and the re-ranker, loaded for the first photo."""

    def __init__(self, files: ModelFiles, kept_by: RerankerFiles, device: str | None, dtype: str | None) -> None:
        self._files, self._kept_by, self._device, self._dtype = files, kept_by, device, dtype
        self._loaded: tuple[Embedder, Reranker] | None = None

    def keep(self, opened: Sequence[tuple[Record, Opened]]) -> tuple[dict[str, KeptImage], list[Failure]]:
        """Return region data by id, and the photos that a model refuses."""
        if not opened:
            return {}, []
        if self._loaded is None:
            embedder = self._files.load(device=self._device, dtype=self._dtype)
            self._loaded = embedder, self._kept_by.load(embedder)
        embedder, reranker = self._loaded
        try:
            _, features = image_features(embedder, reranker, [photo for _, photo in opened])
            return dict(zip((row.id for row, _ in opened), reranker.keep(features), strict=True)), []
        except InputError as error:
            if len(opened) == 1:
                return {}, [_failure(opened[0][0], error)]
        kept: dict[str, KeptImage] = {}
        refused: list[Failure] = []
        for one in opened:  # the others of the batch are not to blame
            good, bad = self.keep([one])
            kept.update(good)
            refused += bad
        return kept, refused


def _missing(
    store: VectorStore, regions: RegionStore, report: RegionReport, progress: Callable[[int], object]
) -> Iterator[Record]:
    """Yield the photos without region data, and count the others."""
    for rows in batched(store.iterate({"kind": "image"}), CHUNK_SIZE):
        present = regions.has([row.id for row in rows])
        report.present += len(present)
        progress(len(present))
        yield from (row for row in rows if row.id not in present)


def _open(
    rows: Sequence[Record], readers: ThreadPoolExecutor, draft_to: int | None
) -> tuple[list[tuple[Record, Opened]], list[Failure]]:
    """Read the photos of rows from their sources, decoded."""
    sources = [located(row.source) for row in rows]
    read = [_checked(*one) for one in zip(rows, sources, read_all(sources), strict=True)]
    opened: list[tuple[Record, Opened]] = []
    failed: list[Failure] = []
    for row, photo in zip(rows, readers.map(lambda one: _decoded(one, draft_to), read), strict=True):
        if isinstance(photo, InputError):
            failed.append(_failure(row, photo))
        else:
            opened.append((row, photo))
    return opened, failed


def _checked(row: Record, source: Source, data: bytes | InputError) -> tuple[Source, bytes] | InputError:
    """Return the source and bytes with the content of a row: its own source's, or those of a copy that it lists."""
    content = content_of(row)
    known = is_content_id(content)  # not for a row that another program wrote
    refused: InputError | None = None
    for copy in [None, *copies_of(row)]:
        if copy is not None:
            source = located(copy)
            (data,) = read_all([source])
        if isinstance(data, InputError):
            refused = refused or data
        elif known and content_id(data) != content:
            refused = refused or InputError("the source holds another photo now: enqueue it again")
        else:
            return source, data
    assert refused is not None
    return refused


def _decoded(one: tuple[Source, bytes] | InputError, draft_to: int | None) -> Opened | InputError:
    if isinstance(one, InputError):
        return one
    source, data = one
    try:
        if source.kind == "regions":
            return regions_of(source, data)[0]
        return decode(data, name=source.name, draft_to=draft_to).image
    except InputError as error:
        return error


def _failure(row: Record, error: InputError) -> Failure:
    name = f"{printable(row.source)}: "
    return Failure(row.source, str(error).removeprefix(name).removeprefix(name))  # one by reading, one by locating


def _former_folder(address: str, files: ModelFiles, kept_by: RerankerFiles) -> str | None:
    """Return the folder of the re-ranker that the settings name, else of the model's own, if it is another one."""
    existing = RegionStore(address, "").fingerprints()
    new = {fingerprint[:16] for fingerprint in (kept_by.fingerprint, *kept_by.former_fingerprints)}
    for name in dict.fromkeys((Settings().reranker, None)):
        try:
            former = find_reranker(name, files)
        except LdotError:  # the old re-ranker need not be there any more
            continue
        folder = None if former is None else former.fingerprint[:16]
        if folder in existing and folder not in new:
            return f"{address.rstrip('/')}/{folder}"
    return None
