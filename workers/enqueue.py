"""``celery -A workers enqueue PATH...``: photos into the collection, here or through the broker.

The ``celery`` command imports this module at every call, so it imports nothing heavy.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

if TYPE_CHECKING:
    from celery import Celery

    from ldot_milvus.ingestion import Report
    from ldot_milvus.settings import Settings
    from ldot_milvus.sources import Source

LISTED_FAILURES = 20


@click.command(cls=CeleryCommand)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--collection", help="Collection to fill (default: LDOT_COLLECTION, 'images').")
@click.option("--metadata", metavar="FILE.jsonl", help="Captions and fields of the photos, one JSON object a line.")
@click.option("--model", help="Model: packaged name, folder or hub id (default: LDOT_MODEL, 'ldot-mini').")
@click.option("--store", help="Address of the store (default: LDOT_STORE, 'faiss:./ldot-data').")
@click.option("--chunk-size", type=click.IntRange(1, 10_000), default=64, show_default=True, help="Photos a task.")
@click.option("--wait/--no-wait", default=True, help="Wait for the workers and print a summary (the default).")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def enqueue(
    ctx: click.Context,
    paths: tuple[str, ...],
    collection: str | None,
    metadata: str | None,
    model: str | None,
    store: str | None,
    chunk_size: int,
    wait: bool,
) -> None:
    """Ingest photos: files, folders, globs, .tar, .txt lists, .jsonl manifests, s3://, URLs, region features.

    With a broker (LDOT_BROKER) the photos go to the workers in chunks; without one they are ingested in this
    process. A photo that is there already is not read again by the model. Exit status: 0, or 1 if some photos
    failed (they are listed), or 2 if nothing could be done.
    """
    from ldot_milvus.descriptions import load_metadata
    from ldot_milvus.errors import LdotError
    from ldot_milvus.settings import Settings
    from ldot_milvus.sources import expand

    settings = Settings()
    chosen = {"collection": collection, "model": model, "store": store}
    settings = settings.model_copy(update={name: value for name, value in chosen.items() if value is not None})
    try:
        sources = list(expand(paths, metadata=load_metadata(metadata) if metadata else None))
        run = _through_broker if settings.broker else _in_process
        report = run(ctx.obj.app, settings, sources, chunk_size, wait)
    except LdotError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    if report is None:
        return
    sys.exit(1 if report.failed else 0)


def _in_process(app: Celery, settings: Settings, sources: list[Source], chunk_size: int, wait: bool) -> Report:
    from ldot_milvus.batches import batched
    from ldot_milvus.ingestion import Ingestor
    from ldot_milvus.stores import open_store

    click.echo(f"No broker is set (LDOT_BROKER): ingesting {_photos(len(sources))} in this process.")

    with open_store(settings.store, settings.collection) as store:
        ingestor = Ingestor(
            store, settings.model, region_store=settings.region_store, device=settings.device, dtype=settings.dtype
        )
        reports = (ingestor.ingest(chunk) for chunk in batched(sources, chunk_size))
        return _summarise(reports, len(sources), settings)


def _through_broker(
    app: Celery, settings: Settings, sources: list[Source], chunk_size: int, wait: bool
) -> Report | None:
    from kombu.exceptions import OperationalError

    from ldot_milvus.batches import batched
    from ldot_milvus.bundle import find_model
    from ldot_milvus.errors import StoreError

    from .tasks import ingest_chunk

    find_model(settings.model)  # an unknown name is told here, not by every worker
    target = {
        "store": _absolute(settings.store),
        "collection": settings.collection,
        "model": settings.model,
        "region_store": settings.region_store,
    }
    _check_broker(app)
    sent: list[tuple[Any, list[Source]]] = []
    for chunk in batched(sources, chunk_size):
        try:
            task = ingest_chunk.apply_async((target, [source.to_dict() for source in chunk]), retry=False)
        except (OperationalError, RuntimeError) as error:  # RuntimeError: Celery's word for a lost result backend
            raise StoreError(
                f"the broker or the result backend was lost after {len(sent)} chunks ({_first_line(error)}): see to "
                "it and enqueue again, what is there already is skipped"
            ) from error
        sent.append((task, chunk))
    click.echo(f"Enqueued {_photos(len(sources))} in {len(sent)} chunks to the workers.")
    if not wait:
        return None
    if app.conf.result_backend is None:
        click.echo("No result backend is set (LDOT_RESULT_BACKEND): not waiting for the workers.", err=True)
        return None
    return _summarise((_outcome(result, chunk) for result, chunk in sent), len(sources), settings)


def _check_broker(app: Celery) -> None:
    """A broker that is not there is told at once, not after Celery's own long series of attempts."""
    from kombu.exceptions import OperationalError

    from ldot_milvus.errors import StoreError

    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=2, interval_start=0.2, timeout=5)
    except (OperationalError, OSError) as error:
        raise StoreError(
            f"the broker at LDOT_BROKER ({app.connection_for_write().as_uri()}) does not answer "
            f"({_first_line(error)}): start it, or unset LDOT_BROKER to ingest in this process"
        ) from error


def _outcome(result: Any, chunk: list[Source]) -> Report:
    """A chunk's report as its worker gave it; a chunk that failed as a whole fails each of its photos."""
    from ldot_milvus.ingestion import Failure, Report

    value = result.get(propagate=False)
    if result.successful():
        return Report.from_dict(value)
    return Report(failed=[Failure(source.name, str(value)) for source in chunk])


def _summarise(reports: Iterator[Report], expected: int, settings: Settings) -> Report:
    """Show progress while the reports come in, then the summary and the failures."""
    from tqdm import tqdm

    from ldot_milvus.ingestion import Report

    started = time.perf_counter()
    total = Report()
    with tqdm(total=expected, unit=" photos", disable=None, leave=False) as bar:
        for report in reports:
            total.add(report)
            bar.update(report.total)
    seconds = time.perf_counter() - started
    rate = total.total / seconds if seconds else 0.0
    click.echo(
        f"{settings.collection} in {settings.store}: {total.added} added, {total.updated} updated, "
        f"{total.unchanged} unchanged, {len(total.failed)} failed in {seconds:.1f} s ({rate:.1f} images/s)"
    )
    if not total.added and not total.updated and not total.failed:
        click.echo("Nothing new: every photo was there already.")
    for failure in total.failed[:LISTED_FAILURES]:
        click.echo(f"  failed: {failure.source}: {failure.reason}", err=True)
    if len(total.failed) > LISTED_FAILURES:
        click.echo(f"  ... and {len(total.failed) - LISTED_FAILURES} more", err=True)
    return total


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _photos(count: int) -> str:
    return f"{count} photo{'' if count == 1 else 's'}"


def _absolute(store: str) -> str:
    """A local store's address that means the same in a worker's folder."""
    scheme, _, path = store.partition(":")
    if scheme == "faiss":
        return f"faiss:{os.path.abspath(path)}"
    return store if "://" in store else os.path.abspath(store)  # a file of Milvus Lite
