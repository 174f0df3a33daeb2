"""``celery -A workers failures``: what could not be ingested, why, and again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
from celery.bin.base import handle_preload_options

from ldot_milvus.cli.common import one_line_errors, settings_with
from ldot_milvus.workers.command import LdotCommand

if TYPE_CHECKING:
    from ldot_milvus.ingest.journal import FailedItem
    from ldot_milvus.ingest.target import Target
    from ldot_milvus.settings import Settings


@click.command(cls=LdotCommand)
@click.option("--retry", is_flag=True, help="Ingest them again, by the workers or here.")
@click.option("--clear", is_flag=True, help="Forget them.")
@click.option("--run", "run_id", metavar="RUN", help="Only those of this run.")
@click.option("--collection", help="Only those of this collection.")
@click.option("--store", help="Address of the store (default: LDOT_STORE, 'faiss:./ldot-data').")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
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
    """List what could not be ingested: when, in which attempt, which source, and why.

    A source that is ingested after all leaves the list by itself.
    """
    from ldot_milvus.errors import UsageError
    from ldot_milvus.workers.formatting import counted, failure_json, failure_line
    from ldot_milvus.workers.running import journal_of

    if retry and clear:
        raise UsageError("give --retry or --clear: what is ingested after all leaves the list by itself")
    settings = settings_with(store=store)
    journal = journal_of(settings)
    failed = [item for item in journal.failures(run_id) if collection in (None, item.target.collection)]
    if clear:
        click.echo(f"{counted(journal.clear([item.key for item in failed]), 'failure')} forgotten.")
    elif retry and failed:
        sys.exit(0 if _retry(ctx, settings, failed, wait) else 1)
    elif not failed:
        click.echo(f"No failures in the journal {journal.address}.")
    else:
        for item in failed:
            click.echo(failure_json(item) if as_json else failure_line(item))


def _retry(ctx: click.Context, settings: Settings, failed: list[FailedItem], wait: bool) -> bool:
    """One run for each task and target among them; whether nothing failed again."""
    from ldot_milvus.ingest.tasks import task_named
    from ldot_milvus.workers.running import carry_out

    groups: dict[tuple[str, Target], list[FailedItem]] = {}
    for item in failed:
        groups.setdefault((item.task, item.target), []).append(item)
    fine = True
    for (name, target), group in groups.items():
        task = task_named(name)
        items = [task.item(item.item) for item in group]
        fine &= carry_out(ctx, settings, task, items, wait=wait, target=target)
    return fine
