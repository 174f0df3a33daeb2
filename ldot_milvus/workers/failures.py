"""The command ``celery -A workers failures``: list, retry or forget the items that failed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
from celery.bin.base import handle_preload_options

from ldot_milvus.cli.common import STORE_HELP, one_line_errors, settings_with
from ldot_milvus.cli.output import say, say_json
from ldot_milvus.workers.command import LdotCommand

if TYPE_CHECKING:
    from ldot_milvus.ingest.journal import FailedItem
    from ldot_milvus.settings import Settings


@click.command(cls=LdotCommand)
@click.option("--retry", is_flag=True, help="Ingest the listed sources again.")
@click.option("--clear", is_flag=True, help="Remove the failures from the list.")
@click.option("--run", "run_id", metavar="RUN", help="Only failures of this run.")
@click.option("--collection", metavar="NAME", help="Only failures of this collection (default: all collections).")
@click.option("--store", metavar="ADDRESS", help=STORE_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option("--wait/--no-wait", default=True, help="With --retry: wait for the workers (the default).")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def failures(
    ctx: click.Context,
    retry: bool,
    clear: bool,
    run_id: str | None,
    collection: str | None,
    store: str | None,
    as_json: bool,
    wait: bool,
) -> None:
    """List or retry the sources that failed.

    Prints the time, the attempt, the source and the reason of each failure. A source that is ingested later is removed
    from the list automatically.
    """
    from ldot_milvus.errors import UsageError
    from ldot_milvus.ingest.journal import journal_of
    from ldot_milvus.workers.formatting import counted, failure_line

    if retry and clear:
        raise UsageError("give --retry or --clear, not both: a retry that succeeds also clears the failure")
    settings = settings_with(store=store)
    journal = journal_of(settings)
    failed = [item for item in journal.failures(run_id) if collection in (None, item.target.collection)]
    if clear:
        say(f"{counted(journal.clear([item.key for item in failed]), 'failure')} cleared.")
    elif retry and failed:
        sys.exit(0 if _retry(ctx, settings, failed, wait) else 1)
    elif not failed:
        say(f"No failures in the journal {journal.address}.")
    else:
        for item in failed:
            if as_json:
                say_json(item.to_dict())
            else:
                say(failure_line(item))


def _retry(ctx: click.Context, settings: Settings, failed: list[FailedItem], wait: bool) -> bool:
    """Run the failed items again, one run for each task and target; return whether all succeeded."""
    from ldot_milvus.ingest.retries import retries
    from ldot_milvus.workers.running import run_items

    succeeded = True
    for task, target, items in retries(failed):
        succeeded &= run_items(ctx, settings, task, items, wait=wait, target=target)
    return succeeded
