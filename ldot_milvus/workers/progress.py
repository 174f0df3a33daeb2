"""``celery -A workers progress [RUN]``: how far a run is, or the last runs."""

from __future__ import annotations

import time

import click
from celery.bin.base import handle_preload_options

from ldot_milvus.cli.common import one_line_errors, settings_with
from ldot_milvus.workers.command import LdotCommand

RUNS = 10


@click.command(cls=LdotCommand)
@click.argument("run_id", required=False, metavar="[RUN]")
@click.option("--store", help="Store that the run went to (default: LDOT_STORE, 'faiss:./ldot-data').")
@click.option("--json", "as_json", is_flag=True, help="JSON, one object a line.")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def progress(ctx: click.Context, run_id: str | None, store: str | None, as_json: bool) -> None:
    """Show how far RUN is (of enqueue, delete or failures --retry); without RUN the last runs, a line each."""
    from ldot_milvus.errors import UsageError
    from ldot_milvus.workers.formatting import progress_json, progress_line, progress_report
    from ldot_milvus.workers.running import journal_of

    journal = journal_of(settings_with(store=store))
    if run_id is not None:
        state = journal.progress(run_id)
        if state is None:
            known = ", ".join(run.id for run in journal.runs()[:5]) or "none"
            raise UsageError(f"no run {run_id!r} in the journal {journal.address}; the last ones are: {known}")
        click.echo(progress_json(state) if as_json else progress_report(state, time.time()))
        return
    states = [state for run in journal.runs()[:RUNS] if (state := journal.progress(run.id)) is not None]
    if not states and not as_json:
        click.echo(f"No runs in the journal {journal.address}.")
    for state in states:
        click.echo(progress_json(state) if as_json else progress_line(state))
