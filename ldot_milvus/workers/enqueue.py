"""The command ``celery -A workers enqueue PATH...``: ingest photos, in this process or by the workers.

Every ``celery`` command imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click
from celery.bin.base import handle_preload_options

from ldot_milvus.cli.common import (
    COLLECTION_HELP,
    MODEL_HELP,
    RERANKER_HELP,
    STORE_HELP,
    one_line_errors,
    settings_with,
)
from ldot_milvus.cli.output import say
from ldot_milvus.workers.command import LdotCommand

if TYPE_CHECKING:
    from ldot_milvus.settings import Settings
    from ldot_milvus.sources import Source


@click.command(cls=LdotCommand)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--collection", metavar="NAME", help=COLLECTION_HELP)
@click.option("--metadata", metavar="FILE.jsonl", help="Captions and fields of the photos, one JSON object per line.")
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out files and folders with such a name or path in PATH, such as '*.gif'. May be repeated.",
)
@click.option("--model", metavar="NAME", help=MODEL_HELP)
@click.option("--reranker", metavar="NAME", help=RERANKER_HELP)
@click.option("--store", metavar="ADDRESS", help=STORE_HELP)
@click.option(
    "--chunk-size",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    metavar="N",
    help="Number of photos per chunk.",
)
@click.option(
    "--skip-near-duplicates",
    is_flag=True,
    help="Leave out new photos that show the same as a photo of the collection (docs/ingestion.md).",
)
@click.option("--wait/--no-wait", default=True, help="Wait for the workers and print a summary (the default).")
@click.option("--prune", is_flag=True, help="Then delete the rows of photos that these folders no longer contain.")
@click.option("--dry-run", is_flag=True, help="With --prune: list the rows to delete; ingest and delete nothing.")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def enqueue(
    ctx: click.Context,
    paths: tuple[str, ...],
    collection: str | None,
    metadata: str | None,
    exclude: tuple[str, ...],
    model: str | None,
    reranker: str | None,
    store: str | None,
    chunk_size: int,
    skip_near_duplicates: bool,
    wait: bool,
    prune: bool,
    dry_run: bool,
) -> None:
    """Ingest photos into a collection.

    PATH is a photo, a folder, a glob pattern, a .tar of photos, a .txt list of paths or URLs, a .jsonl manifest, an
    s3:// address, a URL (if LDOT_ALLOW_URLS=true), or a file of region features. See docs/ingestion.md.

    With a broker (LDOT_BROKER), chunks of photos are sent to the workers. Without one, the photos are ingested in this
    process. Photos that the collection already contains are not encoded again. The summary counts, by reason, what was
    seen in folders and tars and not ingested.

    Exit status: 0 if all photos succeeded, 1 if some failed (they are listed), 2 if nothing was done.
    """
    from ldot_milvus.errors import UsageError
    from ldot_milvus.ingest.target import Target
    from ldot_milvus.ingest.tasks import INGEST
    from ldot_milvus.models.registry import find_model, find_reranker
    from ldot_milvus.sources import expand, join_descriptions
    from ldot_milvus.sources.metadata import load_metadata
    from ldot_milvus.sources.selection import Skipped
    from ldot_milvus.workers.formatting import skipped_lines
    from ldot_milvus.workers.running import run_items

    if dry_run and not prune:
        raise UsageError("--dry-run works only with --prune: add --prune, or omit --dry-run")
    settings = settings_with(collection=collection, model=model, reranker=reranker, store=store)
    find_reranker(settings.reranker, find_model(settings.model))  # refuses an unknown name before any worker sees it
    described, skipped = load_metadata(metadata) if metadata else None, Skipped()
    sources = join_descriptions(expand(paths, metadata=described, exclude=exclude, skipped=skipped))
    succeeded = True
    if not dry_run:
        target = replace(Target.of(settings), skip_near_duplicates=True) if skip_near_duplicates else None
        succeeded = run_items(ctx, settings, INGEST, sources, chunk_size=chunk_size, wait=wait, target=target)
    if skipped.counts:
        say(*skipped_lines(skipped))
    if prune:
        everything = list(expand(paths)) if exclude else sources  # an excluded photo exists, and its row stays
        succeeded &= _prune(ctx, settings, paths, everything, wait, dry_run)
    sys.exit(0 if succeeded else 1)


def _prune(
    ctx: click.Context, settings: Settings, paths: tuple[str, ...], sources: list[Source], wait: bool, dry_run: bool
) -> bool:
    """Delete or rename the rows of missing photos; return whether no change failed."""
    from ldot_milvus.ingest.changes import prune
    from ldot_milvus.ingest.tasks import CHANGE
    from ldot_milvus.stores import open_store
    from ldot_milvus.workers.formatting import counted, first_names
    from ldot_milvus.workers.running import run_items

    with open_store(settings.store, settings.collection) as store:
        pruning = prune(store, paths, sources, ingested=not dry_run and (wait or not settings.broker))
    verb = "would be" if dry_run else "will be"
    if pruning.gone:
        say(f"{counted(len(pruning.gone), 'row')} {verb} deleted, since the photos no longer exist:")
        say(*first_names((row.source for row in pruning.gone), len(pruning.gone)))
    if pruning.moved:
        say(f"{counted(len(pruning.moved), 'row')} {verb} updated with the new names of the photos:")
        say(*first_names((f"{row.source} -> {to}" for row, to in pruning.moved), len(pruning.moved)))
    if pruning.undecided:
        count = len(pruning.undecided)
        say(f"{counted(count, 'row')} kept, since it is not certain that the photos no longer exist:", err=True)
        say(*first_names((row.source for row in pruning.undecided), count), err=True)
    changes = pruning.changes()
    if not changes:
        undecided = "no row is known to have lost its photo" if pruning.undecided else "the photo of every row exists"
        say(f"Nothing to prune: {undecided}.")
    if dry_run or not changes:
        return True
    return run_items(ctx, settings, CHANGE, changes, wait=wait)
