"""Waiting for the workers: a run's progress, read from the journal, and chunks that got lost sent again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from celery import Celery

    from ldot_milvus.ingest.chunks import Chunk
    from ldot_milvus.ingest.journal import Journal, Progress, Run
    from ldot_milvus.settings import Settings

POLL_SECONDS = 0.5
JOURNAL_PATIENCE = 300.0
RESENDS = 3


def send_all(chunks: Sequence[Chunk]) -> None:
    """Send chunks to their queues.

    Raises:
        StoreError: the broker was lost.
    """
    from ldot_milvus.errors import StoreError
    from ldot_milvus.workers.tasks import send

    for number, chunk in enumerate(chunks):
        try:
            send(chunk)
        except StoreError as error:
            raise StoreError(
                f"{error} after {number} of {len(chunks)} chunks: see to it and enqueue again, what is there already "
                "is skipped"
            ) from error


def queue_depths(app: Celery) -> dict[str, int]:
    """Chunks that wait in each queue; those that a worker has taken are not counted.

    Raises:
        OSError or a kombu error where the broker is away.
    """
    from amqp.exceptions import NotFound

    depths = {}
    for queue in app.conf.task_queues:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            try:
                declared = connection.default_channel.queue_declare(queue.name, passive=True)
                depths[queue.name] = int(declared.message_count)
            except (NotFound, *connection.channel_errors):  # nobody has sent anything there yet
                depths[queue.name] = 0
    return depths


def wait_for(app: Celery, settings: Settings, journal: Journal, run: Run, chunks: Sequence[Chunk]) -> None:
    """Show progress until the run is complete. The journal is what is watched, so no worker's death matters."""
    from tqdm import tqdm

    from ldot_milvus.errors import StoreError
    from ldot_milvus.ingest.chunks import unfinished

    lost_at, sent_at, resent, done = None, time.time(), 0, 0
    try:
        with tqdm(total=run.items, unit=f" {unit(run)}", disable=None, leave=False) as bar:
            while True:
                try:
                    progress, lost_at = _progress(journal, run), None
                except StoreError as error:
                    lost_at = lost_at or time.monotonic()
                    if time.monotonic() - lost_at > JOURNAL_PATIENCE:
                        raise
                    bar.set_postfix_str(f"waiting: {error}"[:100])
                    progress = None
                if progress is not None:
                    bar.set_postfix_str(_note(progress), refresh=False)
                    bar.update(progress.done - bar.n)
                    bar.refresh()
                    if progress.complete:
                        return
                    resent, done = (resent if progress.done == done else 0), progress.done
                    if _are_lost(app, settings, progress, sent_at):
                        left = list(unfinished(chunks, journal.ended(run.id)))
                        what = f"{counted(len(left), 'chunk')} that the broker does not have any more"
                        if resent == RESENDS:
                            raise StoreError(f"{what} came to no end, although sent {RESENDS} times again: is a "
                                             "worker running?")  # fmt: skip
                        bar.write(f"Sending again {what}.")
                        send_all(left)
                        sent_at, resent = time.time(), resent + 1
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        click.echo(f"\nThe workers go on. See how: celery -A workers status {run.id}", err=True)
        raise SystemExit(130) from None


def _progress(journal: Journal, run: Run) -> Progress:
    from ldot_milvus.errors import UsageError

    progress = journal.progress(run.id)
    if progress is None:
        raise UsageError(
            f"the journal {journal.address} has forgotten this run, as Redis does at a restart without appendonly yes: "
            "enqueue again, what is there already is skipped"
        )
    return progress


def _note(progress: Progress) -> str:
    if progress.trouble:
        return f"waiting: {progress.trouble}"[:100]
    if not progress.working and time.time() - progress.changed > 10:
        return "no worker has a chunk"
    failed = int(progress.sums.get("failed", 0))
    return f"{failed} failed" if failed else ""


def _are_lost(app: Celery, settings: Settings, progress: Progress, sent_at: float) -> bool:
    """Whether what is left is in no queue and with no worker any more.

    A Redis without persistence forgets its queues at a restart, and one chunk is lost if a worker is killed in the
    instant between taking it out of the queue and noting that it has it (kombu does this in two steps).
    """
    from kombu.exceptions import OperationalError

    quiet = time.time() - max(progress.changed, sent_at)
    if progress.trouble or quiet < 1.5 * settings.visibility_timeout + 10:
        return False
    try:
        return not sum(queue_depths(app).values())
    except (OperationalError, OSError):
        return False  # it is away: what it has forgotten is known when it is back


def counted(count: int, name: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count} {name}{'' if count == 1 else 's'}"


def unit(run: Run) -> str:
    """What the run counts."""
    return "images" if run.task == "ingest" else "rows"
