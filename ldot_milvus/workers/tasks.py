"""Process a message in a Celery task by calling :mod:`ldot_milvus.ingest`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ldot_milvus.forks import Lock
from ldot_milvus.workers.sending import send

if TYPE_CHECKING:
    from celery import Task as CeleryTask

    from ldot_milvus.ingest.ingestor import Report
    from ldot_milvus.ingest.journal import Journal
    from ldot_milvus.ingest.target import OpenTarget, Target
    from ldot_milvus.ingest.tasks import Item

log = logging.getLogger(__name__)

_opening = Lock()


def process_message(celery_task: CeleryTask, message: dict[str, Any]) -> None:
    """Process the chunk in a message. All Celery tasks of this application run this function.

    Args:
        celery_task: the bound Celery task.
        message: the values of :meth:`Chunk.to_dict <ldot_milvus.ingest.chunks.Chunk.to_dict>`.

    Raises:
        celery.exceptions.Reject: the store or the journal is unreachable; the broker delivers the chunk again.
    """
    from celery.exceptions import Reject, SoftTimeLimitExceeded
    from celery.worker import state

    from ldot_milvus.errors import StoreError, UsageError
    from ldot_milvus.ingest.chunks import Chunk, process_chunk, retry_while_unavailable
    from ldot_milvus.ingest.target import target_of_worker
    from ldot_milvus.settings import Settings

    chunk, settings, app = Chunk.from_dict(message), Settings(), celery_task.app
    refusal: UsageError | None = None
    try:
        target = target_of_worker(chunk.target, settings)
    except UsageError as error:
        log.warning("chunk %s of run %s: %s", chunk.id, chunk.run_id, error)
        target, refusal = chunk.target, error
    journal = _journal(target.store)

    def perform(items: Sequence[Item]) -> Report:
        if refusal is not None:
            raise refusal
        try:
            return chunk.task.performer(_opened(replace(target, skip_near_duplicates=False)), target)(items)
        except SoftTimeLimitExceeded as error:
            raise TimeoutError(f"it took longer than {app.conf.task_soft_time_limit:g} s") from error

    try:
        retry_while_unavailable(
            lambda: process_chunk(chunk, journal, perform, lambda part: send(app, part)),
            min(60, settings.visibility_timeout / 2),  # seconds, then the chunk returns to the broker
            note=lambda trouble: journal.note_trouble(chunk.run_id, trouble),
            stopping=lambda: state.should_stop is not None,
        )
    except StoreError as error:
        raise Reject(str(error), requeue=True) from None


def _opened(target: Target) -> OpenTarget:
    with _opening:  # a pool of threads shares one model
        return _opened_once(os.getpid(), target)


# Each process loads its own model and opens its own connection at its first chunk, since neither survives a fork.
@lru_cache(maxsize=4)
def _opened_once(pid: int, target: Target) -> OpenTarget:
    from ldot_milvus.ingest.target import OpenTarget
    from ldot_milvus.settings import Settings

    return OpenTarget(target, Settings())


@lru_cache(maxsize=4)
def _journal(store: str) -> Journal:
    from ldot_milvus.ingest.journal import journal_address, open_journal
    from ldot_milvus.settings import Settings

    settings = Settings().model_copy(update={"store": store})
    return open_journal(journal_address(settings), settings.queue)
