"""Waiting for the workers: a run's progress, read from the journal, and chunks that got lost sent again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldot_milvus.workers.broker import queue_depths
from ldot_milvus.workers.formatting import counted
from ldot_milvus.workers.tasks import send_all

if TYPE_CHECKING:
    from celery import Celery

    from ldot_milvus.ingest.chunks import Chunk
    from ldot_milvus.ingest.journal import Journal, Progress, Run
    from ldot_milvus.settings import Settings

POLL_SECONDS = 0.5
JOURNAL_PATIENCE = 300.0
RESENDS = 3


@dataclass(frozen=True)
class Update:
    """What a progress bar shows.

    Attributes:
        done: how many items.
        note: beside the bar, such as what is waited for.
        message: a line of its own, once.
    """

    done: int
    note: str = ""
    message: str = ""


def updates(app: Celery, settings: Settings, journal: Journal, run: Run, chunks: Sequence[Chunk]) -> Iterator[Update]:
    """How far the run is, every half second until it is complete; chunks that the broker lost are sent again.

    The journal is what is watched, so no worker's death matters.

    Raises:
        StoreError: the journal is away for minutes, or chunks get lost again and again.
        UsageError: the journal has forgotten the run.
    """
    from ldot_milvus.errors import StoreError
    from ldot_milvus.ingest.chunks import unfinished

    done, resends, sent_at = 0, 0, time.time()
    away_since: float | None = None
    while True:
        try:
            progress = _progress(journal, run)
        except StoreError as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > JOURNAL_PATIENCE:
                raise
            yield Update(done, f"waiting: {error}"[:100])
            time.sleep(POLL_SECONDS)
            continue
        away_since = None
        resends, done = (resends if progress.done == done else 0), progress.done
        yield Update(done, _note(progress))
        if progress.complete:
            return
        if _are_lost(app, settings, progress, sent_at):
            left = list(unfinished(chunks, journal.ended(run.id)))
            lost = f"{counted(len(left), 'chunk')} that the broker does not have any more"
            if resends == RESENDS:
                raise StoreError(f"{lost} came to no end, although sent {RESENDS} times again: is a worker running?")
            yield Update(done, message=f"Sending again {lost}.")
            send_all(app, left)
            sent_at, resends = time.time(), resends + 1
        time.sleep(POLL_SECONDS)


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
