"""Rebuilding of a collection for another model or index: a new collection replaces the old one atomically."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from ldot_milvus.batches import batched
from ldot_milvus.errors import InputError, StoreError
from ldot_milvus.ingest.ingestor import CHUNK_SIZE, Failure, Ingestor, Report
from ldot_milvus.sources import Source, locate
from ldot_milvus.stores import Record, VectorStore, validation
from ldot_milvus.stores.identity import CONTENT_ID, has_own_id
from ldot_milvus.stores.migration import migrate
from ldot_milvus.stores.recall import RECALL
from ldot_milvus.stores.region_place import RegionPlace, keep_record

log = logging.getLogger(__name__)


def rebuild_index(store: VectorStore, *, progress: Callable[[int], object] = lambda rows: None) -> int:
    """Rebuild a collection with the index that ``store`` was opened with, and measure its recall on a server.

    Searches use the old collection until the new one is complete. A second pass copies the rows that were written in
    the meantime. Rows written between that pass and the replacement are lost: stop the workers before the end.

    Args:
        store: the collection, opened with the new index.
        progress: called with the number of rows of each copied batch.

    Returns:
        Number of rows in the new collection after the first pass.

    Raises:
        CollectionNotFound: the collection does not exist.
        StoreError: the collection cannot be replaced, see :meth:`VectorStore.successor`.
    """
    validation.existing_dim(store)
    successor = store.successor()
    first_pass = migrate(store, successor, progress=progress)
    successor.finish_index()  # before the second pass, since rows may be written while it takes minutes
    second_pass = migrate(store, successor)
    if second_pass.copied:
        log.info("%d rows were written while the index was built", second_pass.copied)
    if successor.dim is not None:  # a collection without rows and model has no successor yet
        successor.set_properties({name: value for name, value in store.properties.items() if name != RECALL})
    store.replace_by(successor)
    return first_pass.rows


def reembed(
    store: VectorStore,
    model: str,
    *,
    reranker: str | None = None,
    region_store: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> Report:
    """Rebuild a collection with the vectors of another model; every photo is read again from its source.

    The new collection replaces the old one only if no item failed.

    Args:
        store: the collection.
        model: packaged name, folder or hub id of the new embedder.
        reranker: re-ranker whose region data is stored: None for the model's own, "none" for none, else a folder or hub
            id.
        region_store: address of the region data, which may be a new one; None takes the setting, else the recorded
            place, else the default.
        device: torch device such as ``cuda:0``; None chooses one.
        dtype: torch dtype such as ``float16``; None chooses one for the device.
        progress: called with the number of rows of each finished batch.

    Returns:
        Outcome of the ingestion into the new collection.

    Raises:
        CollectionNotFound: the collection does not exist.
        StoreError: photos cannot be read any more; the old collection is unchanged.
    """
    validation.existing_dim(store)
    place = RegionPlace(store, region_store)
    regions = place.given or place.find()  # a given one is new to the successor, so it may be another than before
    successor = store.successor()
    ingestor = Ingestor(successor, model, reranker=reranker, region_store=regions, device=device, dtype=dtype)
    report = Report()
    for rows in batched(store.iterate(), CHUNK_SIZE):
        sources: list[Source] = []
        for row in rows:
            try:
                sources.append(_source(row))
            except InputError as error:
                report.failed.append(Failure(row.source, str(error)))
        report.add(ingestor.ingest(sources))
        progress(len(rows))
    if report.failed:
        first = report.failed[0]
        raise StoreError(
            f"{len(report.failed)} of {report.total} photos could not be read again (first: {first.source}: "
            f"{first.reason}), so collection {store.collection!r} is unchanged: restore the photos or delete their "
            "rows, then try again"
        )
    successor.finish_index()
    keep_record(store, successor)
    store.replace_by(successor)
    return report


def _source(row: Record) -> Source:
    """Return the source that a row was ingested from, with its id if the caller chose that."""
    source = Source(row.source, kind="text") if row.kind == "text" else locate(row.source)
    metadata = {name: value for name, value in row.metadata.items() if name != CONTENT_ID}
    return replace(
        source, id=row.id if has_own_id(row) else None, caption=row.caption,
        namespace=row.namespace, metadata=metadata,
    )  # fmt: skip
