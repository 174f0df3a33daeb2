"""``celery -A workers failures``: what could not be ingested, why, and again."""

from __future__ import annotations

import json
import sys
import time

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from ldot_milvus.cli.common import one_line_errors, settings_with


@click.command(cls=CeleryCommand)
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
    from ldot_milvus.ingest.ingestor import CHUNK_SIZE
    from ldot_milvus.workers.running import carry_out, journal_of
    from ldot_milvus.workers.waiting import counted

    if retry and clear:
        raise UsageError("give --retry or --clear: what is ingested after all leaves the list by itself")
    settings = settings_with(store=store)
    journal = journal_of(settings)
    found = [item for item in journal.failures(run_id) if collection in (None, item.target["collection"])]
    if clear:
        click.echo(f"{counted(journal.clear([item.key for item in found]), 'failure')} forgotten.")
        return
    if retry and found:
        groups: dict[str, list[int]] = {}
        for number, item in enumerate(found):
            groups.setdefault(json.dumps([item.task, item.target], sort_keys=True), []).append(number)
        fine = True
        for numbers in groups.values():
            first, items = found[numbers[0]], [found[number].item for number in numbers]
            fine &= carry_out(
                ctx.obj.app, settings, first.task, items, chunk_size=CHUNK_SIZE, wait=wait, target=first.target
            )
        sys.exit(0 if fine else 1)
    if not found:
        click.echo(f"No failures in the journal {journal.address}.")
    for item in found:
        if as_json:
            values = {"source": item.source, "reason": item.reason, "attempt": item.attempt, "time": item.time,
                      "run": item.run, "task": item.task, "collection": item.target["collection"]}  # fmt: skip
            click.echo(json.dumps(values))
            continue
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item.time))
        click.echo(f"{when}  attempt {item.attempt}  {item.source}: {item.reason}")
