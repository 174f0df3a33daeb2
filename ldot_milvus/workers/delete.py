"""``celery -A workers delete``: rows out of the collection, here or through the broker."""

from __future__ import annotations

import sys

import click
from celery.bin.base import handle_preload_options

from ldot_milvus.cli.common import one_line_errors, parse_filter, settings_with
from ldot_milvus.workers.command import LdotCommand


@click.command(cls=LdotCommand)
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
    from ldot_milvus.ingest.changes import RowChange, rows_to_delete
    from ldot_milvus.ingest.tasks import CHANGE
    from ldot_milvus.stores import open_store
    from ldot_milvus.workers.formatting import counted, first_names
    from ldot_milvus.workers.running import carry_out

    filter = parse_filter(filter_text)
    settings = settings_with(collection=collection, store=store)
    with open_store(settings.store, settings.collection) as opened:
        sources_by_id = {row.id: row.source for row in rows_to_delete(opened, ids=ids, sources=sources, filter=filter)}
    if not sources_by_id:
        click.echo(f"No such row in {settings.collection} of {settings.store}: nothing to delete.")
        return
    if dry_run:
        click.echo(f"{counted(len(sources_by_id), 'row')} would be deleted:")
        click.echo(first_names((f"{id}  {source}" for id, source in sources_by_id.items()), len(sources_by_id)))
        return
    fine = carry_out(ctx, settings, CHANGE, [RowChange(id) for id in sources_by_id], wait=wait)
    sys.exit(0 if fine else 1)
