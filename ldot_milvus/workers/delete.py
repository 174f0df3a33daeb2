"""``celery -A workers delete``: rows out of the collection, here or through the broker."""

from __future__ import annotations

import sys

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from ldot_milvus.cli.common import one_line_errors, parse_filter, settings_with
from ldot_milvus.workers.enqueue import CHANGES_A_CHUNK


@click.command(cls=CeleryCommand)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--source", "sources", multiple=True, help="Delete the rows with this source (repeatable).")
@click.option("--filter", "filter_text", metavar="JSON", help='Delete what passes: {"metadata.album": "a"}.')
@click.option("--collection", help="Collection (default: LDOT_COLLECTION, 'images').")
@click.option("--store", help="Address of the store (default: LDOT_STORE, 'faiss:./ldot-data').")
@click.option("--dry-run", is_flag=True, help="Delete nothing, say what would be deleted.")
@click.option("--wait/--no-wait", default=True, help="Wait for the workers and print a summary (the default).")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def delete(
    ctx: click.Context,
    ids: tuple[str, ...],
    sources: tuple[str, ...],
    filter_text: str | None,
    collection: str | None,
    store: str | None,
    dry_run: bool,
    wait: bool,
) -> None:
    """Delete rows and their region data: by id, by source, by filter.

    Rows whose photo is in a folder no more: celery -A workers enqueue FOLDER --prune. Photos stay where they are.
    """
    from ldot_milvus.ingest.changes import rows_to_delete
    from ldot_milvus.stores import open_store
    from ldot_milvus.workers.running import carry_out, listed
    from ldot_milvus.workers.waiting import counted

    filter = parse_filter(filter_text)
    settings = settings_with(collection=collection, store=store)
    with open_store(settings.store, settings.collection) as opened:
        rows = {row.id: row.source for row in rows_to_delete(opened, ids=ids, sources=sources, filter=filter)}
    if not rows:
        click.echo(f"No such row in {settings.collection} of {settings.store}: nothing to delete.")
        return
    if dry_run:
        click.echo(f"{counted(len(rows), 'row')} would be deleted:")
        listed((f"{id}  {source}" for id, source in rows.items()), len(rows))
        return
    items = [{"id": id} for id in rows]
    fine = carry_out(ctx.obj.app, settings, "change", items, chunk_size=CHANGES_A_CHUNK, wait=wait)
    sys.exit(0 if fine else 1)
