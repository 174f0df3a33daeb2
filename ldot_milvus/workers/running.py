"""Run a task from a command: send its chunks or process them in this process, wait, and print a summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from ldot_milvus.cli.output import line_for, say
from ldot_milvus.workers.command import application, invocation
from ldot_milvus.workers.formatting import (
    MAX_NAMES,
    counted,
    describe_target,
    failure_lines,
    near_duplicates_line,
    outcome,
)
from ldot_milvus.workers.runs import NewRun, new_run, process_run, send_run
from ldot_milvus.workers.waiting import Update, updates

if TYPE_CHECKING:
    from ldot_milvus.ingest.journal import Journal, Run
    from ldot_milvus.ingest.report import NearDuplicate
    from ldot_milvus.ingest.target import Target
    from ldot_milvus.ingest.tasks import Item, Task
    from ldot_milvus.settings import Settings


def run_items(
    ctx: click.Context,
    settings: Settings,
    task: Task[Any],
    items: Sequence[Item],
    *,
    wait: bool,
    chunk_size: int | None = None,
    target: Target | None = None,
) -> bool:
    """Process items by the workers, or in this process without a broker, and print a summary.

    Args:
        ctx: context of the command that was called.
        settings: settings, of which the broker decides where the items are processed.
        task: the task to run.
        items: the items to process.
        wait: whether to wait for the workers; ignored without a broker.
        chunk_size: number of items per chunk; None takes the task's default.
        target: the collection and model to use; None takes those of the settings.

    Returns:
        Whether no item failed; True if the command does not wait.

    Raises:
        StoreError: the broker or the journal is unreachable, or, without a broker, the store.
        SystemExit: the user interrupted the wait; the status is 130.
    """
    from ldot_milvus.stores.registry import parse_address

    new = new_run(settings, task, items, target=target, chunk_size=chunk_size)
    run, journal, chunks = new.run, new.journal, new.chunks
    described = counted(len(items), task.noun)
    near_duplicates: list[NearDuplicate] = []
    if not settings.broker:
        say(f"No broker is set (LDOT_BROKER): {task.doing} {described} in this process.")
        _show_progress(run, task, _process_here(settings, new, near_duplicates))
    else:
        send_run(application(ctx), settings.broker, new)
        say(f"Enqueued {described} in {counted(len(chunks), 'chunk')} to the workers: run {run.id}.")
        if not journal.address.startswith("redis") and parse_address(settings.store).journal is None:
            say(
                f"The journal is the file {journal.address}, which workers on other machines cannot read: set "
                "LDOT_RESULT_BACKEND, such as redis://HOST/0, for this command and for all workers.",
                err=True,
            )
        hint = f"{invocation(ctx)} progress {run.id}"
        if not wait:
            say(f"Follow the run with: {hint}")
            return True
        try:
            _show_progress(run, task, updates(application(ctx), settings, journal, run, chunks))
        except KeyboardInterrupt:
            say("", f"The workers continue. Follow the run with: {hint}", err=True)
            raise SystemExit(130) from None
    place = describe_target(run.target) if target else f"{settings.collection} in {settings.store}"
    return _summarise(journal, run, task, place, invocation(ctx), near_duplicates)


def _process_here(settings: Settings, new: NewRun, near_duplicates: list[NearDuplicate]) -> Iterator[Update]:
    """Process the chunks in this process, and note the first near-duplicates, which the journal only counts."""
    done = 0
    for report in process_run(settings, new):
        done += report.total
        near_duplicates += report.near_duplicates[: MAX_NAMES - len(near_duplicates)]
        yield Update(done)


def _show_progress(run: Run, task: Task[Any], progress: Iterable[Update]) -> None:
    """Consume the updates and, on a terminal, draw a progress bar."""
    from tqdm import tqdm

    with tqdm(total=run.items, unit=f" {task.unit}", disable=None, leave=False) as bar:
        for update in progress:
            if update.message:
                bar.write(line_for(sys.stdout, update.message))
            bar.set_postfix_str(line_for(sys.stderr, update.note), refresh=False)
            bar.update(update.done - bar.n)
            bar.refresh()


def _summarise(
    journal: Journal, run: Run, task: Task[Any], place: str, command: str, near_duplicates: Sequence[NearDuplicate]
) -> bool:
    """Print the counts and the failures of a run; return whether nothing failed."""
    progress = journal.progress(run.id)
    assert progress is not None
    seconds = max(time.time() - run.started, 1e-3)
    say(f"{place}: {outcome(progress)} in {seconds:.1f} s ({progress.done / seconds:.1f} {task.unit}/s)")
    if task.name == "ingest" and progress.sums.get("unchanged", 0) == run.items:
        say("Nothing new: the collection already contained every photo.")
    replaced, stale, near = (int(progress.sums.get(name, 0)) for name in ("replaced", "stale", "near_duplicates"))
    if near:
        say(near_duplicates_line(near, near_duplicates))
    if replaced:
        say(f"{counted(replaced, 'old row')} deleted, since another photo now has the same source.")
    if stale:
        say(
            f"{counted(stale, 'row')} kept, although another photo now has the same source: see docs/ingestion.md.",
            err=True,
        )
    failed = bool(progress.sums.get("failed"))
    if failed:
        say(*failure_lines(journal.failures(run.id), command), err=True)
    return not failed
