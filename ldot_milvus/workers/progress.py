"""The command ``celery -A workers progress [RUN]``: show the state of a run, or of the last runs."""

from __future__ import annotations

import time

import click
from celery.bin.base import handle_preload_options

from ldot_milvus.cli.common import STORE_HELP, one_line_errors, settings_with
from ldot_milvus.cli.output import say, say_json
from ldot_milvus.workers.command import LdotCommand

MAX_RUNS = 10
"""Number of runs that are listed without RUN."""


@click.command(cls=LdotCommand)
@click.argument("run_id", required=False, metavar="[RUN]")
@click.option("--store", metavar="ADDRESS", help=STORE_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
@one_line_errors
def progress(ctx: click.Context, run_id: str | None, store: str | None, as_json: bool) -> None:
    """Show the progress of a run, or list the last runs.

    RUN is the id that enqueue, delete or failures --retry printed. Without RUN, the last 10 runs are listed.
    """
    from ldot_milvus.errors import UsageError
    from ldot_milvus.ingest.journal import journal_of
    from ldot_milvus.workers.formatting import progress_line, progress_report

    journal = journal_of(settings_with(store=store))
    if run_id is not None:
        state = journal.progress(run_id)
        if state is None:
            last = ", ".join(run.id for run in journal.runs()[:5]) or "none"
            raise UsageError(f"no run {run_id!r} in the journal {journal.address}; last runs: {last}")
        if as_json:
            say_json(state.to_dict())
        else:
            say(*progress_report(state, time.time()))
        return
    states = journal.last_progress(MAX_RUNS)
    if not states and not as_json:
        say(f"No runs in the journal {journal.address}.")
    for state in states:
        if as_json:
            say_json(state.to_dict())
        else:
            say(progress_line(state))
