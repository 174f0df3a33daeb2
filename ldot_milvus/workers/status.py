"""``celery -A workers status RUN``: how far a run is. Without RUN it is Celery's own list of workers.

Celery has a command of that name, and adds its own commands after those of others; so this is Celery's, with a run.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click
from celery.bin.control import status

from ldot_milvus.cli.common import one_line_errors, settings_with

if TYPE_CHECKING:
    from ldot_milvus.ingest.journal import Progress

_celerys_own = status.callback


@one_line_errors
def _status(run: str | None = None, store: str | None = None, **options: Any) -> None:
    if run is None:
        assert _celerys_own is not None
        _celerys_own(**options)
        return
    from ldot_milvus.errors import UsageError
    from ldot_milvus.workers.running import journal_of

    journal = journal_of(settings_with(store=store))
    progress = journal.progress(run)
    if progress is None:
        known = ", ".join(found.id for found in journal.runs()[:5]) or "none"
        raise UsageError(f"no run {run!r} in the journal {journal.address}; the last ones are: {known}")
    click.echo(_as_json(progress) if options.get("json") else _as_text(progress))


def _as_text(progress: Progress) -> str:
    from ldot_milvus.workers.running import outcome, where

    run, sums, done = progress.run, progress.sums, progress.done
    spent = progress.changed - run.started
    rate = done / spent if spent > 0 else 0.0
    share = 100 * done / run.items if run.items else 100.0
    lines = [
        f"run {run.id}: {run.task} {where(run)}",
        f"started {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(run.started))}, "
        f"last heard of {_span(time.time() - progress.changed)} ago",
        f"{done:,} of {run.items:,} ({share:.0f} %), {rate:.1f}/s, "
        + ("complete" if progress.complete else f"{_span((run.items - done) / rate) if rate else 'unknown time'} left, "
           f"{progress.working} chunks in work"),
        outcome(progress),
    ]  # fmt: skip
    stages = {name.partition(":")[2]: value for name, value in sums.items() if name.startswith("seconds:")}
    if stages:
        lines.append("seconds: " + ", ".join(f"{stage} {value:.1f}" for stage, value in sorted(stages.items())))
    if progress.trouble:
        lines.append(f"waiting: {progress.trouble}")
    return "\n".join(lines)


def _as_json(progress: Progress) -> str:
    return json.dumps({
        "run": progress.run.id, "task": progress.run.task, "items": progress.run.items, "done": progress.done,
        "complete": progress.complete, "working": progress.working, "started": progress.run.started,
        "changed": progress.changed, "trouble": progress.trouble, "sums": progress.sums,
    })  # fmt: skip


def _span(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


status.callback = _status
status.params.insert(0, click.Argument(["run"], required=False, metavar="[RUN]"))
status.params.append(click.Option(["--store"], help="Store that RUN went to (default: LDOT_STORE)."))
status.help = "Show the workers that are online, or how far RUN is (of enqueue, delete or failures --retry)."
