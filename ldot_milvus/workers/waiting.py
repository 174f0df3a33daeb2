"""Wait for the workers: read a run's progress from the journal, and send lost chunks again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldot_milvus.workers.broker import has_worker, queue_depths
from ldot_milvus.workers.formatting import counted
from ldot_milvus.workers.sending import send_all

if TYPE_CHECKING:
    from celery import Celery

    from ldot_milvus.ingest.chunks import Chunk
    from ldot_milvus.ingest.journal import Journal, Progress, Run
    from ldot_milvus.settings import Settings

POLL_SECONDS = 0.5

JOURNAL_PATIENCE = 300.0
"""Seconds to wait for an unreachable journal."""

MAX_RUNS = 10
"""Number of runs in which a busy worker is looked for."""

NO_WORKER_SECONDS = 10.0
"""Seconds without a sign of a worker after which the user is told, and between two checks."""

MAX_RESENDS = 3
"""How often in a row lost chunks are sent again without any progress."""


@dataclass(frozen=True)
class Update:
    """A state of the progress bar.

    Attributes:
        done: number of finished items.
        note: text beside the bar, such as the reason for waiting.
        message: text to print once, on its own line.
    """

    done: int
    note: str = ""
    message: str = ""


def updates(app: Celery, settings: Settings, journal: Journal, run: Run, chunks: Sequence[Chunk]) -> Iterator[Update]:
    """Yield the progress of a run every half second until it is complete, and send chunks again that the broker lost.

    Progress is read from the journal, so it survives the death of any worker.

    Args:
        app: the application whose queues have the chunks.
        settings: settings, of which the visibility time-out decides when a chunk counts as lost.
        journal: the journal of the run.
        run: the run.
        chunks: all chunks of the run.

    Raises:
        StoreError: the journal is unreachable for :data:`JOURNAL_PATIENCE` seconds, or chunks were lost
            :data:`MAX_RESENDS` times in a row.
        UsageError: the journal has lost the run.
    """
    from ldot_milvus.errors import StoreError
    from ldot_milvus.ingest.chunks import unfinished

    done, resends, sent_at = 0, 0, time.time()
    watch = _Watch(app, settings, journal, run)
    unreachable_since: float | None = None
    while True:
        try:
            progress = _progress(journal, run)
        except StoreError as error:
            unreachable_since = unreachable_since or time.monotonic()
            if time.monotonic() - unreachable_since > JOURNAL_PATIENCE:
                raise
            yield Update(done, f"waiting: {error}"[:100])
            time.sleep(POLL_SECONDS)
            continue
        unreachable_since = None
        resends, done = (resends if progress.done == done else 0), progress.done
        yield Update(done, _note(progress))
        if progress.complete:
            return
        if message := watch.message(progress):
            yield Update(done, _note(progress), message)
        if _are_lost(app, settings, progress, sent_at):
            lost = list(unfinished(chunks, journal.ended(run.id)))
            described = f"{counted(len(lost), 'chunk')} that the broker no longer has"
            if resends == MAX_RESENDS:
                raise StoreError(
                    f"{described} did not finish although they were sent again {MAX_RESENDS} times: check that a "
                    'worker is running ("celery -A workers status")'
                )
            yield Update(done, message=f"Sending again {described}.")
            send_all(app, lost)
            sent_at, resends = time.time(), resends + 1
        time.sleep(POLL_SECONDS)


class _Watch:
    """Notices that no worker listens to the queue of a run, and says so once until chunks are processed again."""

    def __init__(self, app: Celery, settings: Settings, journal: Journal, run: Run) -> None:
        from ldot_milvus.ingest.tasks import task_named

        self._app, self._settings, self._journal = app, settings, journal
        self._queue = task_named(run.task).queue(settings.queue)
        self._changed = 0.0  # the run's last change
        self._unseen_since = self._next_check = 0.0
        self._told = False

    def message(self, progress: Progress) -> str:
        """Return the message if it is due, else an empty text."""
        now = time.monotonic()
        if progress.changed != self._changed:
            self._changed, self._told, self._unseen_since = progress.changed, False, now
            self._next_check = now + NO_WORKER_SECONDS
        if self._told or now < self._next_check:
            return ""
        if self._is_seen():
            self._unseen_since, self._next_check = now, now + NO_WORKER_SECONDS
            return ""
        self._told = True
        return (
            f"Waiting: no worker listens to queue {self._queue} (none seen for {now - self._unseen_since:.0f} s): "
            "start one with the LDOT_BROKER and LDOT_QUEUE of this command, as with: celery -A workers worker"
        )

    def _is_seen(self) -> bool:
        from ldot_milvus.errors import StoreError

        try:
            if has_worker(self._app, self._queue):
                return True
            # A worker that did not answer may be busy, with this run or another.
            limit = time.time() - self._settings.visibility_timeout
            states = (self._journal.progress(run.id) for run in self._journal.runs()[:MAX_RUNS])
            return any(state.working and state.changed > limit for state in states if state is not None)
        except StoreError:
            return True  # broker or journal do not answer, which is not the workers' fault


def _progress(journal: Journal, run: Run) -> Progress:
    from ldot_milvus.errors import UsageError

    progress = journal.progress(run.id)
    if progress is None:
        raise UsageError(
            f"the journal {journal.address} has lost this run, as Redis does at a restart without appendonly yes: "
            "run the command again, which skips what is already done"
        )
    return progress


def _note(progress: Progress) -> str:
    if progress.trouble:
        return f"waiting: {progress.trouble}"[:100]
    if not progress.working and time.time() - progress.changed > 10:
        return "no worker is processing a chunk"
    failed = int(progress.sums.get("failed", 0))
    return f"{failed} failed" if failed else ""


def _are_lost(app: Celery, settings: Settings, progress: Progress, sent_at: float) -> bool:
    """Return whether the unfinished chunks are in no queue and at no worker.

    A Redis without persistence loses its queues at a restart. One chunk is also lost if a worker is killed between
    removing it from the queue and recording it as unacknowledged, which kombu does in two steps.
    """
    from ldot_milvus.errors import StoreError

    quiet = time.time() - max(progress.changed, sent_at)
    if progress.trouble or quiet < 1.5 * settings.visibility_timeout + 10:
        return False
    try:
        return not sum(queue_depths(app).values())
    except StoreError:
        return False  # unreachable: whether it lost its queues shows when it is back
