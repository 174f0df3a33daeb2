"""A collection built anew beside the old one, and put in its place at once: for another model or another index."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from ldot_milvus.batches import batched
from ldot_milvus.errors import CollectionNotFound, InputError, StoreError
from ldot_milvus.ingest.ingestor import CHUNK_SIZE, CONTENT_ID, Failure, Ingestor, Report
from ldot_milvus.sources import Source, locate
from ldot_milvus.stores import Record, VectorStore
from ldot_milvus.stores.migration import migrate

log = logging.getLogger(__name__)


def rebuild_index(store: VectorStore, *, progress: Callable[[int], object] = lambda rows: None) -> int:
    """The same rows under the index that ``store`` was opened with; returns how many.

    Searches go on over the old collection until the new one is complete. What is written meanwhile is caught up with
    in a second pass, and what is written in the instant after it is lost: stop the workers for the end of it.
    """
    _check_there(store)
    successor = store.successor()
    copied = migrate(store, successor, progress=progress)
    late = migrate(store, successor)
    if late.copied:
        log.info("%d rows came in while the index was built", late.copied)
    store.replace_by(successor)
    return copied.rows


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
    """The same photos and texts under another model: every photo is read again from its source.

    The new collection takes the old one's place only if nothing failed.

    Raises:
        StoreError: some photos are not to be had any more; the old collection stays.
    """
    _check_there(store)
    successor = store.successor()
    ingestor = Ingestor(successor, model, reranker=reranker, region_store=region_store, device=device, dtype=dtype)
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
            f"{first.reason}), so collection {store.collection!r} stays as it is: delete their rows, or bring the "
            "photos back"
        )
    store.replace_by(successor)
    return report


def _source(row: Record) -> Source:
    """The photo or text of a row as it was ingested: with the caller's id if it had one."""
    source = Source(row.source, kind="text") if row.kind == "text" else locate(row.source)
    metadata = {name: value for name, value in row.metadata.items() if name != CONTENT_ID}
    return replace(
        source, id=row.id if CONTENT_ID in row.metadata else None, caption=row.caption,
        namespace=row.namespace, metadata=metadata,
    )  # fmt: skip


def _check_there(store: VectorStore) -> None:
    if store.dim is None:
        raise CollectionNotFound(f"{store.address} has no collection {store.collection!r}: name it with --collection")
