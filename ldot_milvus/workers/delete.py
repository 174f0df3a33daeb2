"""The command ``celery -A workers delete``: delete rows, in this process or by the workers."""

from __future__ import annotations

import sys

import click
from celery.bin.base import handle_preload_options

from ldot_milvus.cli.common import COLLECTION_HELP, STORE_HELP, one_line_errors, parse_filter, settings_with
from ldot_milvus.cli.output import say
from ldot_milvus.workers.command import LdotCommand


@click.command(cls=LdotCommand)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--source", "sources", multiple=True, metavar="PATH", help="Delete the rows of this source (repeatable).")
@click.option(
    "--filter",
    "filter_text",
    metavar="JSON",
    help='Delete the rows that match, such as \'{"metadata.album": "a"}\' (docs/filters.md).',
)
@click.option("--collection", metavar="NAME", help=COLLECTION_HELP)
@click.option("--store", metavar="ADDRESS", help=STORE_HELP)
@click.option("--dry-run", is_flag=True, help="List the rows that would be deleted, and delete nothing.")
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
    """Delete rows by id, source or filter.

    Deletes the rows and their region data; the photos' files are kept.

    To delete the rows of photos that a folder no longer contains, run:

    celery -A workers enqueue FOLDER --prune
    """
    from ldot_milvus.ingest.changes import RowChange, rows_to_delete
    from ldot_milvus.ingest.tasks import CHANGE
    from ldot_milvus.stores import open_store
    from ldot_milvus.workers.formatting import counted, first_names
    from ldot_milvus.workers.running import run_items

    filter = parse_filter(filter_text)
    settings = settings_with(collection=collection, store=store)
    with open_store(settings.store, settings.collection) as opened:
        sources_by_id = {row.id: row.source for row in rows_to_delete(opened, ids=ids, sources=sources, filter=filter)}
    if not sources_by_id:
        say(f"No matching row in {settings.collection} of {settings.store}: nothing to delete.")
        return
    if dry_run:
        say(f"{counted(len(sources_by_id), 'row')} would be deleted:")
        say(*first_names((f"{id}  {source}" for id, source in sources_by_id.items()), len(sources_by_id)))
        return
    succeeded = run_items(ctx, settings, CHANGE, [RowChange(id) for id in sources_by_id], wait=wait)
    sys.exit(0 if succeeded else 1)
