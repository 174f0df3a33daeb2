"""Runs: items as chunks that are sent to the workers or, without a broker, processed in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ldot_milvus.workers.broker import check_broker
from ldot_milvus.workers.sending import send_all

if TYPE_CHECKING:
    from celery import Celery

    from ldot_milvus.ingest.chunks import Chunk
    from ldot_milvus.ingest.journal import Journal, Run
    from ldot_milvus.ingest.report import Report
    from ldot_milvus.ingest.target import Target
    from ldot_milvus.ingest.tasks import Item, Task
    from ldot_milvus.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewRun:
    """A run that has not begun.

    Attributes:
        run: the run.
        task: what is done with its items.
        chunks: its items.
        journal: where it will be recorded.
    """

    run: Run
    task: Task[Any]
    chunks: Sequence[Chunk]
    journal: Journal


def new_run(
    settings: Settings,
    task: Task[Any],
    items: Sequence[Item],
    *,
    target: Target | None = None,
    chunk_size: int | None = None,
) -> NewRun:
    """Cut items into the chunks of a new run; nothing is recorded or sent yet.

    Args:
        settings: store, queue and, without ``target``, what it consists of.
        task: the task to run.
        items: the items to process.
        target: the collection and model to use; None takes those of the settings.
        chunk_size: number of items per chunk; None takes the task's default.
    """
    from ldot_milvus.ingest.chunks import chunks_of
    from ldot_milvus.ingest.journal import Run, journal_of
    from ldot_milvus.ingest.target import Target

    run = Run.new(task.name, target or Target.of(settings), len(items))
    return NewRun(run, task, list(chunks_of(run, items, chunk_size or task.chunk_size)), journal_of(settings))


def send_run(app: Celery, broker: str, new: NewRun) -> None:
    """Record a run and send its chunks to the workers.

    Raises:
        StoreError: the broker or the journal is unreachable.
    """
    check_broker(broker)
    new.journal.start(new.run)
    send_all(app, new.chunks)


def process_run(settings: Settings, new: NewRun, *, recorded: bool = False) -> Iterator[Report]:
    """Process the chunks of a run in this process.

    Args:
        settings: device and dtype of the models.
        new: the run.
        recorded: whether the journal has the run; else this records it.

    Yields:
        The report of each finished chunk.

    Raises:
        LdotError: the store or a model cannot be used; nothing is recorded then.
    """
    from ldot_milvus.ingest.chunks import process_chunks_inline
    from ldot_milvus.ingest.target import OpenTarget

    with OpenTarget(new.run.target, settings) as opened:
        # Before the journal records the run, since this refuses a collection of another model.
        perform = new.task.performer(opened, new.run.target)
        if not recorded:
            new.journal.start(new.run)
        yield from process_chunks_inline(new.chunks, new.journal, perform)


class Runs:
    """Runs that a service begins: the workers process them or, without a broker, one thread of this process does.

    Args:
        settings: broker, journal, and device and dtype of the models.

    Attributes:
        waiting: number of runs that the thread has not finished.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, "ldot-runs")
        self.waiting = 0

    def start(self, new: NewRun) -> None:
        """Begin a run and return. What goes wrong later is in the journal.

        Raises:
            StoreError: the broker or the journal is unreachable.
        """
        if self._settings.broker:
            from ldot_milvus.workers import app

            send_run(app, self._settings.broker, new)
        else:
            new.journal.start(new.run)
            self.waiting += 1
            self._thread.submit(self._process, new)

    def close(self) -> None:
        """Wait for the run that is being processed; those that wait are dropped."""
        self._thread.shutdown(cancel_futures=True)

    def _process(self, new: NewRun) -> None:
        from ldot_milvus.errors import LdotError

        try:
            for _ in process_run(self._settings, new, recorded=True):
                pass
        except LdotError as error:
            log.error("run %s: %s", new.run.id, error)
            new.journal.note_trouble(new.run.id, str(error))
        except Exception:
            log.exception("run %s failed", new.run.id)
        finally:
            self.waiting -= 1
