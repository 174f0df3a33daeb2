"""A run from a command's side: its chunks sent, or done in this process; then waited for and summed up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from ldot_milvus.workers.broker import check_broker
from ldot_milvus.workers.command import application, invocation
from ldot_milvus.workers.formatting import counted, failure_lines, outcome, place_of
from ldot_milvus.workers.tasks import send_all
from ldot_milvus.workers.waiting import Update, updates

if TYPE_CHECKING:
    from ldot_milvus.ingest.chunks import Chunk
    from ldot_milvus.ingest.journal import Journal, Run
    from ldot_milvus.ingest.target import Target
    from ldot_milvus.ingest.tasks import Item, Task
    from ldot_milvus.settings import Settings


def journal_of(settings: Settings) -> Journal:
    """The journal of the store that the settings name."""
    from ldot_milvus.ingest.journal import journal_address, open_journal

    return open_journal(journal_address(settings))


def carry_out(
    ctx: click.Context,
    settings: Settings,
    task: Task[Any],
    items: Sequence[Item],
    *,
    wait: bool,
    chunk_size: int | None = None,
    target: Target | None = None,
) -> bool:
    """Do all items, by the workers or here, and print what became of them; whether nothing failed.

    Args:
        ctx: of the command that was called.
        wait: for the workers; without a broker there is nothing to wait for.
        chunk_size: None for the task's own.
        target: None for what the settings name.

    Raises:
        StoreError: the broker, the journal or, without a broker, the store is away.
    """
    from ldot_milvus.ingest.chunks import chunks_of
    from ldot_milvus.ingest.journal import Run
    from ldot_milvus.ingest.target import Target
    from ldot_milvus.stores.registry import parse_address

    run = Run.new(task.name, target or Target.of(settings), len(items))
    journal = journal_of(settings)
    chunks = list(chunks_of(run, items, chunk_size or task.chunk_size))
    many = counted(len(items), task.noun)
    if not settings.broker:
        click.echo(f"No broker is set (LDOT_BROKER): {task.doing} {many} in this process.")
        _show(run, task, _done_here(settings, journal, run, task, chunks))
    else:
        check_broker(settings.broker)
        journal.start(run)
        send_all(application(ctx), chunks)
        click.echo(f"Enqueued {many} in {counted(len(chunks), 'chunk')} to the workers: run {run.id}.")
        if not journal.address.startswith("redis") and parse_address(settings.store).journal is None:
            click.echo(
                f"The journal is the file {journal.address}: workers on other machines need one that they share, such "
                "as LDOT_RESULT_BACKEND=redis://HOST/0, here and there.",
                err=True,
            )
        hint = f"{invocation(ctx)} progress {run.id}"
        if not wait:
            click.echo(f"See how it goes with: {hint}")
            return True
        try:
            _show(run, task, updates(application(ctx), settings, journal, run, chunks))
        except KeyboardInterrupt:
            click.echo(f"\nThe workers go on. See how: {hint}", err=True)
            raise SystemExit(130) from None
    place = place_of(run.target) if target else f"{settings.collection} in {settings.store}"
    return _summarise(journal, run, task, place, invocation(ctx))


def _done_here(
    settings: Settings, journal: Journal, run: Run, task: Task[Any], chunks: Sequence[Chunk]
) -> Iterator[Update]:
    """Do the chunks in this process."""
    from ldot_milvus.ingest.chunks import process_chunks_inline
    from ldot_milvus.ingest.target import OpenTarget

    with OpenTarget(run.target, settings) as opened:
        perform = task.performer(opened)  # first: a collection of another model is refused before the run is noted
        journal.start(run)
        done = 0
        for report in process_chunks_inline(chunks, journal, perform):
            done += report.total
            yield Update(done)


def _show(run: Run, task: Task[Any], shown: Iterable[Update]) -> None:
    """Draw a progress bar, on a terminal, to the end."""
    from tqdm import tqdm

    with tqdm(total=run.items, unit=f" {task.unit}", disable=None, leave=False) as bar:
        for update in shown:
            if update.message:
                bar.write(update.message)
            bar.set_postfix_str(update.note, refresh=False)
            bar.update(update.done - bar.n)
            bar.refresh()


def _summarise(journal: Journal, run: Run, task: Task[Any], place: str, command: str) -> bool:
    """Print what became of the run; whether nothing failed."""
    progress = journal.progress(run.id)
    assert progress is not None
    seconds = max(time.time() - run.started, 1e-3)
    click.echo(f"{place}: {outcome(progress)} in {seconds:.1f} s ({progress.done / seconds:.1f} {task.unit}/s)")
    if task.name == "ingest" and progress.sums.get("unchanged", 0) == run.items:
        click.echo("Nothing new: every photo was there already.")
    failed = bool(progress.sums.get("failed"))
    if failed:
        click.echo(failure_lines(journal.failures(run.id), command), err=True)
    return not failed
