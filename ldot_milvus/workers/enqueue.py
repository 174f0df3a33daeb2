"""``celery -A workers enqueue PATH...``: photos into the collection, here or through the broker.

The ``celery`` command imports this module at every call, so it imports nothing heavy.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
from celery.bin.base import handle_preload_options

from ldot_milvus.cli.common import RERANKER_HELP, one_line_errors, settings_with
from ldot_milvus.workers.command import LdotCommand

if TYPE_CHECKING:
    from ldot_milvus.settings import Settings
    from ldot_milvus.sources import Source


@click.command(cls=LdotCommand)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--collection", help="Collection to fill (default: LDOT_COLLECTION, 'images').")
@click.option("--metadata", metavar="FILE.jsonl", help="Captions and fields of the photos, one JSON object a line.")
@click.option("--model", help="Model: packaged name, folder or hub id (default: LDOT_MODEL, 'ldot-mini').")
@click.option("--reranker", help=RERANKER_HELP)
@click.option("--store", help="Address of the store (default: LDOT_STORE, 'faiss:./ldot-data').")
@click.option("--chunk-size", type=click.IntRange(1, 10_000), default=64, show_default=True, help="Photos a chunk.")
@click.option("--wait/--no-wait", default=True, help="Wait for the workers and print a summary (the default).")
@click.option("--prune", is_flag=True, help="Then delete the rows whose photo is in these folders no more.")
@click.option("--dry-run", is_flag=True, help="With --prune: ingest and delete nothing, say what would be deleted.")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def enqueue(
    ctx: click.Context,
    paths: tuple[str, ...],
    collection: str | None,
    metadata: str | None,
    model: str | None,
    reranker: str | None,
    store: str | None,
    chunk_size: int,
    wait: bool,
    prune: bool,
    dry_run: bool,
) -> None:
    """Ingest photos: files, folders, globs, .tar, .txt lists, .jsonl manifests, s3://, URLs, region features.

    With a broker (LDOT_BROKER) the photos go to the workers in chunks; without one they are ingested in this
    process. A photo that is there already is not read again by the model. Exit status: 0, or 1 if some photos
    failed (they are listed), or 2 if nothing could be done.
    """
    from ldot_milvus.errors import UsageError
    from ldot_milvus.ingest.tasks import INGEST
    from ldot_milvus.models.registry import find_model, find_reranker
    from ldot_milvus.sources import expand
    from ldot_milvus.sources.metadata import load_metadata
    from ldot_milvus.workers.running import carry_out

    if dry_run and not prune:
        raise UsageError("--dry-run goes with --prune")
    settings = settings_with(collection=collection, model=model, reranker=reranker, store=store)
    find_reranker(settings.reranker, find_model(settings.model))  # an unknown name is refused here, not by every worker
    sources = list(expand(paths, metadata=load_metadata(metadata) if metadata else None))
    fine = True
    if not dry_run:
        fine = carry_out(ctx, settings, INGEST, sources, chunk_size=chunk_size, wait=wait)
    if prune:
        fine &= _prune(ctx, settings, paths, sources, wait, dry_run)
    sys.exit(0 if fine else 1)


def _prune(
    ctx: click.Context, settings: Settings, paths: tuple[str, ...], sources: list[Source], wait: bool, dry_run: bool
) -> bool:
    from ldot_milvus.ingest.changes import prune
    from ldot_milvus.ingest.tasks import CHANGE
    from ldot_milvus.stores import open_store
    from ldot_milvus.workers.formatting import counted, first_names
    from ldot_milvus.workers.running import carry_out

    with open_store(settings.store, settings.collection) as store:
        pruning = prune(store, paths, sources)
    would = "would be" if dry_run else "will be"
    if pruning.gone:
        click.echo(f"{counted(len(pruning.gone), 'row')} {would} deleted, since the photos are gone:")
        click.echo(first_names((row.source for row in pruning.gone), len(pruning.gone)))
    if pruning.moved:
        click.echo(f"{counted(len(pruning.moved), 'row')} {would} given the new names of the photos:")
        click.echo(first_names((f"{row.source} -> {to}" for row, to in pruning.moved), len(pruning.moved)))
    changes = pruning.changes()
    if not changes:
        click.echo("Nothing to prune: every row's photo is there.")
    if dry_run or not changes:
        return True
    return carry_out(ctx, settings, CHANGE, changes, wait=wait)
