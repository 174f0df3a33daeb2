"""What a worker does with a chunk, so that nothing is lost, nothing loops, and one bad item harms no other.

A chunk that was begun before and never ended has perhaps killed its worker, so it is split; so is one that raised what
nobody expected. An item that is alone in its chunk and does it again ends among the failures. A store that is away is
waited for: that is no fault of the chunk.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ldot_milvus.batches import batched
from ldot_milvus.errors import LdotError, ModelMismatch, StoreError, first_line, printable
from ldot_milvus.ingest.ingestor import Failure, Report
from ldot_milvus.ingest.journal import FailedItem, Journal, Run
from ldot_milvus.ingest.journal.base import item_key, sums_of
from ldot_milvus.ingest.target import Target
from ldot_milvus.ingest.tasks import Item, Perform, Task, task_named

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""How often an item that is alone in its chunk is begun."""

PARTS = 8
"""Into how many a suspicious chunk is split."""

LONGEST_WAIT = 30.0
"""Seconds between two attempts to reach a store that is away, at most."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a run: what one message carries.

    Attributes:
        run_id, id: its place; the parts of chunk 7 are 7.0, 7.1, ...
        items: of the type that the task works on.
    """

    run_id: str
    id: str
    task: Task[Any]
    target: Target
    items: list[Item]

    def to_dict(self) -> dict[str, Any]:
        """The message: plain JSON values, which other versions read too; :meth:`from_dict` is the way back."""
        return {
            "run": self.run_id, "id": self.id, "task": self.task.name, "target": self.target.to_dict(),
            "items": [item.to_dict() for item in self.items],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Chunk:
        """What :meth:`to_dict` gave.

        Raises:
            UsageError: another version's task.
        """
        task = task_named(values["task"])
        items = [task.item(item) for item in values["items"]]
        return cls(values["run"], values["id"], task, Target.from_dict(values["target"]), items)

    def parts(self) -> list[Chunk]:
        """The same items in up to eight chunks; their ids do not depend on who splits, or how often."""
        size = -(-len(self.items) // PARTS)
        return [
            replace(self, id=f"{self.id}.{number}", items=items)
            for number, items in enumerate(batched(self.items, size))
        ]


def chunks_of(run: Run, items: Iterable[Item], size: int) -> Iterator[Chunk]:
    """A run's items as chunks."""
    task = task_named(run.task)
    for number, part in enumerate(batched(items, size)):
        yield Chunk(run.id, str(number), task, run.target, part)


def unfinished(chunks: Iterable[Chunk], ended: Mapping[str, bool]) -> Iterator[Chunk]:
    """The chunks, and the parts of those that were split, that have not ended (see :meth:`Journal.ended`)."""
    for chunk in chunks:
        if chunk.id not in ended:
            yield chunk
        elif ended[chunk.id]:
            yield from unfinished(chunk.parts(), ended)


def process_chunk(
    chunk: Chunk, journal: Journal, perform: Perform[Any], send: Callable[[Chunk], object]
) -> Report | None:
    """Do one chunk and note its end. Doing it twice, or at the same time as another worker, changes nothing.

    Args:
        perform: does the items and reports each of them; it may raise anything.
        send: hands on the parts of a chunk that was split.

    Returns:
        The report; None where another worker has done the chunk, or where it was split.

    Raises:
        StoreError: the store or the journal is away; the chunk can be begun again.
    """
    attempt = journal.begin(chunk.run_id, chunk.id)
    if attempt == 0:
        log.info("chunk %s of run %s has been done already", chunk.id, chunk.run_id)
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
            log.warning("chunk %s of run %s was begun before and not ended: it is split", chunk.id, chunk.run_id)
            report = None
        elif attempt > MAX_ATTEMPTS:
            report = _failed(chunk, f"its worker died {MAX_ATTEMPTS} times while working on it")
        else:
            report = _performed(chunk, perform)
        if report is not None:
            _note_end(chunk, journal, report)
        elif journal.end(chunk.run_id, chunk.id, {}):  # first, so that its items are counted by its parts or not at all
            _send_parts(chunk, journal, send)
    except BaseException:
        # The worker lives: it is told to stop, or the store is away. Only a journal that is away too must not hide it.
        with suppress(StoreError):
            journal.give_back(chunk.run_id, chunk.id)
        raise
    return report


def process_chunks_inline(chunks: Iterable[Chunk], journal: Journal, perform: Perform[Any]) -> Iterator[Report]:
    """The same in this process, without workers: a report a chunk, as they are done."""
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
    """Do ``work``, again and again with growing pauses while a store is away, for about so many seconds.

    Args:
        note: told what is waited for.
        stopping: asked every half second whether to give up early.

    Raises:
        StoreError: the store is still away.
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
    """The report, or None where the chunk has to be split."""
    try:
        return perform(chunk.items)
    except LdotError as error:
        if isinstance(error, StoreError) and not isinstance(error, ModelMismatch):
            raise
        return _failed(chunk, str(error))  # an unknown model, another one's collection: waiting would not help
    except Exception as error:
        if len(chunk.items) == 1:
            log.exception("%s", chunk.items[0].name)
            if isinstance(error, TimeoutError):  # the worker's time limit
                return _failed(chunk, first_line(error))
            text = str(error).strip() or "no message"
            return _failed(chunk, f"unexpected error {type(error).__name__}: {text.splitlines()[0]}")
        log.warning("chunk %s of run %s is split", chunk.id, chunk.run_id, exc_info=True)
        return None


def _failed(chunk: Chunk, reason: str) -> Report:
    return Report(failed=[Failure(item.name, reason) for item in chunk.items])


def _send_parts(chunk: Chunk, journal: Journal, send: Callable[[Chunk], object]) -> None:
    """Send what is left of a chunk that was split; again, if a worker died or lost the broker while it sent them."""
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
    counts = {name: getattr(report, name) for name in ("added", "updated", "unchanged", "deleted", "bytes")}
    counts["failed"] = len(report.failed)
    sums = sums_of(len(chunk.items), counts, report.seconds, (failure.reason for failure in report.failed))
    journal.end(chunk.run_id, chunk.id, sums, failed, succeeded)


def _log(chunk: Chunk, report: Report) -> None:
    values = {**report.to_dict(), "failed": len(report.failed)}
    stages = {stage: round(seconds, 3) for stage, seconds in values.pop("seconds").items()}
    counts = ", ".join(f"{count} {name}" for name, count in values.items() if count) or "nothing"
    log.info(
        "chunk %s of run %s: %s; seconds %s", chunk.id, chunk.run_id, counts, stages,
        extra={"run": chunk.run_id, "chunk": chunk.id, "seconds": stages, **values},
    )  # fmt: skip
