"""What a worker does: one task, one chunk. The work itself is :mod:`ldot_milvus.ingest.chunks`."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from celery.exceptions import Reject, SoftTimeLimitExceeded

from ldot_milvus.workers.app import app

if TYPE_CHECKING:
    from ldot_milvus.ingest.chunks import Chunk, Perform
    from ldot_milvus.ingest.ingestor import Ingestor, Report
    from ldot_milvus.ingest.journal import Journal

_making = threading.Lock()


@app.task(name="ldot.ingest_chunk")  # type: ignore[untyped-decorator]
def ingest_chunk(chunk: dict[str, Any]) -> None:
    """Ingest the sources of a :class:`~ldot_milvus.ingest.chunks.Chunk`."""

    def perform(items: Sequence[dict[str, Any]]) -> Report:
        from ldot_milvus.sources import Source

        return _ingestor(chunk["target"]).ingest([Source.from_dict(item) for item in items])

    _work_off(chunk, perform)


@app.task(name="ldot.change_rows")  # type: ignore[untyped-decorator]
def change_rows(chunk: dict[str, Any]) -> None:
    """Delete or rename the rows of a :class:`~ldot_milvus.ingest.chunks.Chunk`."""

    def perform(items: Sequence[dict[str, Any]]) -> Report:
        from ldot_milvus.ingest.changes import change_rows
        from ldot_milvus.stores import open_store

        target = _own(chunk["target"])
        with open_store(target["store"], target["collection"]) as store:
            return change_rows(store, items, target["region_store"])

    _work_off(chunk, perform)


def send(chunk: Chunk) -> None:
    """Send a chunk to the queue of its task.

    Raises:
        StoreError: the broker is away, for longer than a restart takes.
    """
    from kombu.exceptions import OperationalError

    from ldot_milvus.errors import StoreError

    task = {"ingest": ingest_chunk, "change": change_rows}[chunk.task]
    policy = {"max_retries": 5, "interval_start": 0.2, "interval_step": 0.5, "interval_max": 2}
    try:
        # The limits are those of the worker that has the chunk, not of whoever sends it.
        task.apply_async((chunk.to_dict(),), retry=True, retry_policy=policy, time_limit=None, soft_time_limit=None)
    except (OperationalError, OSError) as error:
        raise StoreError(f"the broker does not answer ({str(error).splitlines()[0]})") from error


def _work_off(values: dict[str, Any], perform: Perform) -> None:
    from celery.worker import state

    from ldot_milvus.errors import StoreError
    from ldot_milvus.ingest.chunks import Chunk, process_chunk, retry_while_unavailable
    from ldot_milvus.settings import Settings

    chunk = Chunk(**values)
    journal = _journal(_own(chunk.target)["store"])

    def limited(items: Sequence[dict[str, Any]]) -> Report:
        try:
            return perform(items)
        except SoftTimeLimitExceeded as error:
            raise TimeoutError(f"it took longer than {app.conf.task_soft_time_limit:g} s") from error

    try:
        retry_while_unavailable(
            lambda: process_chunk(chunk, journal, limited, send),
            min(60, Settings().visibility_timeout / 2),  # then the broker has it again, and whoever is free
            note=lambda trouble: journal.note_trouble(chunk.run, trouble),
            stopping=lambda: state.should_stop is not None,
        )
    except StoreError as error:
        raise Reject(str(error), requeue=True) from None


def _own(target: dict[str, Any]) -> dict[str, Any]:
    """The target as seen from here: a server may have another address from where this worker stands."""
    from ldot_milvus.settings import Settings

    settings = Settings()
    mine = settings.model_fields_set
    own: dict[str, Any] = {name: getattr(settings, name) for name in ("store", "region_store") if name in mine}
    return {**target, **own}


def _ingestor(target: dict[str, Any]) -> Ingestor:
    own = _own(target)
    with _making:  # a pool of threads shares one model
        return _made(os.getpid(), own["store"], own["collection"], own["model"], own["region_store"])


# One model and one connection a process, made by its first task: neither survives a fork.
@lru_cache(maxsize=4)
def _made(pid: int, store: str, collection: str, model: str, region_store: str | None) -> Ingestor:
    from ldot_milvus.ingest.ingestor import Ingestor
    from ldot_milvus.settings import Settings
    from ldot_milvus.stores import open_store

    settings = Settings()
    opened = open_store(store, collection)
    return Ingestor(opened, model, region_store=region_store, device=settings.device, dtype=settings.dtype)


@lru_cache(maxsize=4)
def _journal(store: str) -> Journal:
    from ldot_milvus.ingest.journal import journal_address, open_journal
    from ldot_milvus.settings import Settings

    return open_journal(journal_address(Settings().model_copy(update={"store": store})))
