"""Send chunks as messages, and process a message in a Celery task by calling :mod:`ldot_milvus.ingest`."""

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
        StoreError: the broker does not answer within a few seconds of retries, in which it can restart.
    """
    from kombu.exceptions import OperationalError

    from ldot_milvus.errors import StoreError, first_line

    policy = {"max_retries": 5, "interval_start": 0.2, "interval_step": 0.5, "interval_max": 2}
    try:
        # Time limits in the message would override those of the worker that processes the chunk.
        app.tasks[chunk.task.celery_name].apply_async(
            (chunk.to_dict(),), retry=True, retry_policy=policy, time_limit=None, soft_time_limit=None
        )
    except (OperationalError, OSError) as error:
        raise StoreError(f"the broker does not answer ({first_line(error)})") from error


def send_all(app: Celery, chunks: Sequence[Chunk]) -> None:
    """Send chunks to their queues.

    Raises:
        StoreError: the broker became unreachable; the message says how many chunks were sent.
    """
    from ldot_milvus.errors import StoreError

    for number, chunk in enumerate(chunks):
        try:
            send(app, chunk)
        except StoreError as error:
            raise StoreError(
                f"{error} after {number} of {len(chunks)} chunks: restart it and run the command again, which skips "
                "what is already done"
            ) from error


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

    from ldot_milvus.errors import StoreError
    from ldot_milvus.ingest.chunks import Chunk, process_chunk, retry_while_unavailable
    from ldot_milvus.settings import Settings

    chunk, settings, app = Chunk.from_dict(message), Settings(), celery_task.app
    target = _with_own_addresses(chunk.target, settings)
    journal = _journal(target.store)

    def perform(items: Sequence[Item]) -> Report:
        try:
            return chunk.task.performer(_opened(target))(items)
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


def _with_own_addresses(target: Target, settings: Settings) -> Target:
    """Replace the store addresses by this worker's own settings: a server's address may differ between machines."""
    own = {name: getattr(settings, name) for name in ("store", "region_store") if name in settings.model_fields_set}
    return replace(target, **own)


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

    return open_journal(journal_address(Settings().model_copy(update={"store": store})))
