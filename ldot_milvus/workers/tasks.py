"""A chunk from sender to worker: one message, one Celery task. The work is in :mod:`ldot_milvus.ingest`."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery
    from celery import Task as CeleryTask

    from ldot_milvus.ingest.chunks import Chunk
    from ldot_milvus.ingest.ingestor import Report
    from ldot_milvus.ingest.journal import Journal
    from ldot_milvus.ingest.target import OpenTarget, Target
    from ldot_milvus.ingest.tasks import Item
    from ldot_milvus.settings import Settings

_opening = threading.Lock()


def send(app: Celery, chunk: Chunk) -> None:
    """Send a chunk to the queue of its task.

    Raises:
        StoreError: the broker is away, for longer than a restart takes.
    """
    from kombu.exceptions import OperationalError

    from ldot_milvus.errors import StoreError, first_line

    policy = {"max_retries": 5, "interval_start": 0.2, "interval_step": 0.5, "interval_max": 2}
    try:
        # The limits are those of the worker that has the chunk, not of whoever sends it.
        app.tasks[chunk.task.celery_name].apply_async(
            (chunk.to_dict(),), retry=True, retry_policy=policy, time_limit=None, soft_time_limit=None
        )
    except (OperationalError, OSError) as error:
        raise StoreError(f"the broker does not answer ({first_line(error)})") from error


def send_all(app: Celery, chunks: Sequence[Chunk]) -> None:
    """Send chunks to their queues.

    Raises:
        StoreError: the broker was lost.
    """
    from ldot_milvus.errors import StoreError

    for number, chunk in enumerate(chunks):
        try:
            send(app, chunk)
        except StoreError as error:
            raise StoreError(
                f"{error} after {number} of {len(chunks)} chunks: see to it and enqueue again, what is there already "
                "is skipped"
            ) from error


def process_message(celery_task: CeleryTask, message: dict[str, Any]) -> None:
    """Do the chunk that a message holds: the body of all our Celery tasks.

    Raises:
        Reject: the store or the journal is away; the broker is to hand the chunk out again.
    """
    from celery.exceptions import Reject, SoftTimeLimitExceeded
    from celery.worker import state

    from ldot_milvus.errors import StoreError
    from ldot_milvus.ingest.chunks import Chunk, process_chunk, retry_while_unavailable
    from ldot_milvus.settings import Settings

    chunk, settings, app = Chunk.from_dict(message), Settings(), celery_task.app
    target = _as_seen_here(chunk.target, settings)
    journal = _journal(target.store)

    def perform(items: Sequence[Item]) -> Report:
        try:
            return chunk.task.performer(_opened(target))(items)
        except SoftTimeLimitExceeded as error:
            raise TimeoutError(f"it took longer than {app.conf.task_soft_time_limit:g} s") from error

    try:
        retry_while_unavailable(
            lambda: process_chunk(chunk, journal, perform, lambda part: send(app, part)),
            min(60, settings.visibility_timeout / 2),  # then the broker has it again, and whoever is free
            note=lambda trouble: journal.note_trouble(chunk.run_id, trouble),
            stopping=lambda: state.should_stop is not None,
        )
    except StoreError as error:
        raise Reject(str(error), requeue=True) from None


def _as_seen_here(target: Target, settings: Settings) -> Target:
    """A server may have another address from where this worker stands."""
    own = {name: getattr(settings, name) for name in ("store", "region_store") if name in settings.model_fields_set}
    return replace(target, **own)


def _opened(target: Target) -> OpenTarget:
    with _opening:  # a pool of threads shares one model
        return _opened_once(os.getpid(), target)


# One model and one connection a process, made by its first chunk: neither survives a fork.
@lru_cache(maxsize=4)
def _opened_once(pid: int, target: Target) -> OpenTarget:
    from ldot_milvus.ingest.target import OpenTarget
    from ldot_milvus.settings import Settings

    return OpenTarget(target, Settings())


@lru_cache(maxsize=4)
def _journal(store: str) -> Journal:
    from ldot_milvus.ingest.journal import journal_address, open_journal
    from ldot_milvus.settings import Settings

    return open_journal(journal_address(Settings().model_copy(update={"store": store})))
