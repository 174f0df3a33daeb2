"""Processing of chunks: no item is lost, no chunk is repeated without end, and a bad item affects no other item.

A chunk that was started but never finished may have killed its worker, and is split into smaller chunks. A chunk that
raised an unexpected error is split too. An item that is alone in its chunk and fails again is recorded as a failure.
An unavailable store is waited for and does not count as an attempt.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ldot_milvus.arguments import whole_number
from ldot_milvus.batches import batched
from ldot_milvus.errors import LdotError, ModelMismatch, RegionStoreNotFound, StoreError, first_line, printable
from ldot_milvus.ingest.journal import FailedItem, Journal, Run
from ldot_milvus.ingest.journal.base import item_key, sums_of
from ldot_milvus.ingest.report import Failure, Report
from ldot_milvus.ingest.target import Target
from ldot_milvus.ingest.tasks import Item, Perform, Task, task_named

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Attempts at an item that is alone in its chunk."""

PARTS = 8
"""Number of smaller chunks that a chunk is split into, at most."""

LONGEST_WAIT = 30.0
"""Longest pause between two attempts to reach an unavailable store, in seconds."""


@dataclass(frozen=True)
class Chunk:
    """A part of a run, sent to workers as one message.

    Attributes:
        run_id: id of the run.
        id: id within the run; chunk 7 is split into 7.0, 7.1, ...
        task: what is done with the items.
        target: collection and models.
        items: items of the task's type.
    """

    run_id: str
    id: str
    task: Task[Any]
    target: Target
    items: list[Item]

    def to_dict(self) -> dict[str, Any]:
        """Return the message, plain JSON values for :meth:`from_dict`; other versions read them too."""
        return {
            "run": self.run_id, "id": self.id, "task": self.task.name, "target": self.target.to_dict(),
            "items": [item.to_dict() for item in self.items],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Chunk:
        """Build a chunk from a message that :meth:`to_dict` returned.

        Raises:
            UsageError: the task is unknown to this version.
        """
        task = task_named(values["task"])
        items = [task.item(item) for item in values["items"]]
        return cls(values["run"], values["id"], task, Target.from_dict(values["target"]), items)

    def parts(self) -> list[Chunk]:
        """Split into up to :data:`PARTS` chunks, with the same ids in every process and at every attempt."""
        size = -(-len(self.items) // PARTS)
        return [
            replace(self, id=f"{self.id}.{number}", items=items)
            for number, items in enumerate(batched(self.items, size))
        ]


def chunks_of(run: Run, items: Iterable[Item], size: int) -> Iterator[Chunk]:
    """Yield the items of a run as chunks of ``size`` items; raise UsageError if it is below 1."""
    size = whole_number(size, "the chunk size", 1)
    task = task_named(run.task)
    for number, chunk_items in enumerate(batched(items, size)):
        yield Chunk(run.id, str(number), task, run.target, chunk_items)


def unfinished(chunks: Iterable[Chunk], ended: Mapping[str, bool]) -> Iterator[Chunk]:
    """Yield the chunks that are not finished; a split chunk is replaced by its unfinished parts.

    Args:
        chunks: chunks of one run.
        ended: result of :meth:`Journal.ended` for the run.
    """
    for chunk in chunks:
        if chunk.id not in ended:
            yield chunk
        elif ended[chunk.id]:
            yield from unfinished(chunk.parts(), ended)


def process_chunk(
    chunk: Chunk, journal: Journal, perform: Perform[Any], send: Callable[[Chunk], object]
) -> Report | None:
    """Process one chunk and record its end in the journal.

    The call is idempotent, also while another worker processes the same chunk.

    Args:
        chunk: the chunk.
        journal: journal of the run.
        perform: processes the items and reports the outcome of each; it may raise any error.
        send: sends a part of a split chunk to a worker.

    Returns:
        The report; None if another worker has finished the chunk, or if it was split.

    Raises:
        StoreError: the store or the journal is unavailable; the chunk can be processed again.
    """
    attempt = journal.begin(chunk.run_id, chunk.id)
    if attempt == 0:
        log.info("chunk %s of run %s is already finished", chunk.id, chunk.run_id)
        _send_parts(chunk, journal, send)
        return None
    if attempt == 1 and journal.progress(chunk.run_id) is None:
        log.warning(
            "run %s is not in the journal %s: workers and commands need the same LDOT_RESULT_BACKEND",
            chunk.run_id, journal.address,
        )  # fmt: skip
    alone = len(chunk.items) == 1
    try:
        if attempt > 1 and not alone:
            log.warning("chunk %s of run %s was started before and not finished: splitting it", chunk.id, chunk.run_id)
            report = None
        elif attempt > MAX_ATTEMPTS:
            report = _failed(chunk, f"its worker died {MAX_ATTEMPTS} times while working on it")
        else:
            report = _performed(chunk, perform)
        if report is not None:
            _note_end(chunk, journal, report)
        elif journal.end(chunk.run_id, chunk.id, {}):  # before sending, so that only the parts count its items
            _send_parts(chunk, journal, send)
    except BaseException:
        # The worker process did not die: it was asked to stop, or the store is unavailable. An unavailable journal must
        # not hide that error.
        with suppress(StoreError):
            journal.give_back(chunk.run_id, chunk.id)
        raise
    return report


def process_chunks_inline(chunks: Iterable[Chunk], journal: Journal, perform: Perform[Any]) -> Iterator[Report]:
    """Process chunks in this process, without workers; yield the report of each finished chunk."""
    for chunk in chunks:
        todo = deque([chunk])
        while todo:
            report = process_chunk(todo.popleft(), journal, perform, todo.append)
            if report is not None:
                yield report


def retry_while_unavailable(
    work: Callable[[], Report | None],
    seconds: float,
    note: Callable[[str], object],
    stopping: Callable[[], bool] = lambda: False,
) -> Report | None:
    """Call ``work`` and repeat it, with growing pauses, while a store is unavailable.

    Args:
        work: raises StoreError while a store is unavailable.
        seconds: about how long to keep trying.
        note: called with the message of each StoreError; a StoreError of its own is ignored.
        stopping: called about every half second; True stops the attempts early.

    Returns:
        The result of ``work``.

    Raises:
        StoreError: the store was unavailable at the last attempt.
    """
    deadline = time.monotonic() + seconds
    pause = 1.0
    while True:
        try:
            return work()
        except StoreError as error:
            log.warning("waiting: %s", error)
            with suppress(StoreError):
                note(printable(str(error)))
            until = time.monotonic() + pause
            if until > deadline:
                raise
            while time.monotonic() < until:
                if stopping():
                    raise
                time.sleep(min(0.5, pause))
            pause = min(2 * pause, LONGEST_WAIT)


def _performed(chunk: Chunk, perform: Perform[Any]) -> Report | None:
    """Return the report, or None if the chunk has to be split."""
    try:
        return perform(chunk.items)
    except LdotError as error:
        if isinstance(error, StoreError) and not isinstance(error, (ModelMismatch, RegionStoreNotFound)):
            raise
        return _failed(chunk, str(error))  # unknown or other model, other region store: retrying would not help
    except Exception as error:
        if len(chunk.items) == 1:
            log.exception("%s", chunk.items[0].name)
            if isinstance(error, TimeoutError):  # the worker's time limit
                return _failed(chunk, first_line(error))
            text = str(error).strip() or "no message"
            return _failed(chunk, f"unexpected error {type(error).__name__}: {text.splitlines()[0]}")
        log.warning("unexpected error in chunk %s of run %s: splitting it", chunk.id, chunk.run_id, exc_info=True)
        return None


def _failed(chunk: Chunk, reason: str) -> Report:
    return Report(failed=[Failure(item.name, reason) for item in chunk.items])


def _send_parts(chunk: Chunk, journal: Journal, send: Callable[[Chunk], object]) -> None:
    """Send the unfinished parts of a split chunk; sent again if a worker died or lost the broker while sending."""
    ended = journal.ended(chunk.run_id)
    if ended.get(chunk.id):
        for part in unfinished([chunk], ended):
            send(part)


def _note_end(chunk: Chunk, journal: Journal, report: Report) -> None:
    _log(chunk, report)
    reasons = {failure.source: failure.reason for failure in report.failed}
    failed, succeeded = [], []
    for item in chunk.items:
        if item.name in reasons:
            reason, values = reasons[item.name], item.to_dict()
            failed.append(FailedItem(item.name, reason, chunk.run_id, chunk.task.name, chunk.target, values))
        else:
            values = {name: getattr(item, name) for name in item.__dataclass_fields__}  # not to_dict(): it copies
            succeeded.append(item_key(chunk.task.name, chunk.target, values))
    sums = sums_of(len(chunk.items), report.counts, report.seconds, (failure.reason for failure in report.failed))
    journal.end(chunk.run_id, chunk.id, sums, failed, succeeded)


def _log(chunk: Chunk, report: Report) -> None:
    for one in report.near_duplicates:
        log.info("not ingested, since it shows the same: %s", one)
    stages = {stage: round(seconds, 3) for stage, seconds in report.seconds.items()}
    counts = ", ".join(f"{count} {name}" for name, count in report.counts.items() if count) or "nothing"
    log.info(
        "chunk %s of run %s: %s; seconds %s", chunk.id, chunk.run_id, counts, stages,
        extra={"run": chunk.run_id, "chunk": chunk.id, "seconds": stages, **report.counts},
    )  # fmt: skip
