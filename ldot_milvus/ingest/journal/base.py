"""Interface of the journal, and the data that it stores."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from ldot_milvus.ingest.target import Target

DAYS_KEPT = 30
"""Days until a run is forgotten; failures stay until they are cleared or their items succeed."""

_DESCRIPTION = {"caption", "namespace", "metadata", "id", "offset", "size", "problem"}
_MAX_LABELS = 100


@dataclass(frozen=True)
class Run:
    """One call of a command that sends work.

    Attributes:
        id: start time and four random hex digits; ids sort by time.
        task: name of a task in :mod:`~ldot_milvus.ingest.tasks`, possibly of another version.
        target: collection and models.
        items: number of sources or rows to process.
        started: start time, in seconds since 1970.
    """

    id: str
    task: str
    target: Target
    items: int
    started: float

    @classmethod
    def new(cls, task: str, target: Target, items: int) -> Run:
        """Create a run that starts now."""
        now = time.time()
        id = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{secrets.token_hex(2)}"
        return cls(id, task, target, items, now)

    def to_json(self) -> str:
        """Return JSON text for :meth:`from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Run:
        """Build a run from text that :meth:`to_json` of this version or another returned."""
        values = json.loads(text)
        return cls(**{**values, "target": Target.from_dict(values["target"])})


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        run: the run.
        sums: sums over the finished chunks: items, added, updated, unchanged, deleted, failed,
            near_duplicates, bytes, and ``seconds:STAGE``.
        working: number of chunks that were started and are not finished.
        changed: time when a chunk was last started or finished, in seconds since 1970.
        trouble: message about what the workers wait for, such as an unavailable store; empty without trouble.
    """

    run: Run
    sums: dict[str, float]
    working: int
    changed: float
    trouble: str

    @property
    def done(self) -> int:
        """Number of processed items, failed ones included."""
        return int(self.sums.get("items", 0))

    @property
    def complete(self) -> bool:
        """Whether all items are processed."""
        return self.done >= self.run.items

    @property
    def rate(self) -> float:
        """Items processed in a second, from the start to the last change; 0 if that is not known yet."""
        spent = self.changed - self.run.started
        return self.done / spent if spent > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the other items take at this rate; None if that is not known yet."""
        if self.complete:
            return 0.0
        return (self.run.items - self.done) / self.rate if self.rate else None

    def to_dict(self) -> dict[str, Any]:
        """Return the state of the run as plain JSON values, for people and programs."""
        run = self.run
        return {
            "run": run.id, "task": run.task, "collection": run.target.collection, "items": run.items,
            "done": self.done, "complete": self.complete, "working": self.working, "started": run.started,
            "changed": self.changed, "rate": self.rate, "seconds_left": self.seconds_left, "trouble": self.trouble,
            "sums": self.sums,
        }  # fmt: skip


@dataclass(frozen=True)
class FailedItem:
    """One source that could not be ingested, or row that could not be changed, with everything needed to retry it.

    Attributes:
        source: name of the source or row, for people.
        reason: message of the last failure.
        run_id: id of the last run that failed at the item.
        task: as in :class:`Run`.
        target: as in :class:`Run`.
        item: the item as plain JSON values, as in its message.
        attempt: number of runs that failed at the item.
        time: time of the last failure, in seconds since 1970.
    """

    source: str
    reason: str
    run_id: str
    task: str
    target: Target
    item: dict[str, Any]
    attempt: int = 1
    time: float = field(default_factory=time.time)

    @cached_property
    def key(self) -> str:
        """Key of the failure, see :func:`item_key`."""
        return item_key(self.task, self.target, self.item)

    def after(self, earlier: FailedItem | None) -> FailedItem:
        """Return this failure with the attempts of an earlier failure of the same key added.

        Args:
            earlier: the earlier failure; None without one. A failure in the same run is not counted again.
        """
        if earlier is None:
            return self
        return replace(self, attempt=earlier.attempt + (earlier.run_id != self.run_id))

    def to_dict(self) -> dict[str, Any]:
        """Return the failure as plain JSON values, for people and programs."""
        return {
            "source": self.source, "reason": self.reason, "attempt": self.attempt, "time": self.time,
            "run": self.run_id, "task": self.task, "collection": self.target.collection, "key": self.key,
        }  # fmt: skip

    def to_json(self) -> str:
        """Return JSON text for :meth:`from_json`."""
        values = asdict(self)
        values["run"] = values.pop("run_id")
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str | bytes) -> FailedItem:
        """Build a failure from text that :meth:`to_json` of this version or another returned."""
        values = json.loads(text)
        return cls(run_id=values.pop("run"), **{**values, "target": Target.from_dict(values["target"])})


def item_key(task: str, target: Target, item: Mapping[str, Any]) -> str:
    """Return the key of an item among the failures.

    Captions, metadata and other descriptions of a source do not change its key.

    Args:
        task: name of the task.
        target: only the collection's name is part of the key.
        item: values of the item's fields.

    Returns:
        32 hex digits.
    """
    ignored = _DESCRIPTION - {"caption"} if item.get("kind") == "text" else _DESCRIPTION
    ignored = ignored if task == "ingest" else {"was"}
    identity = {name: value for name, value in item.items() if value and name not in ignored}
    text = json.dumps([task, target.collection, identity], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def label_of(reason: str) -> str:
    """Return a failure's reason without numbers and names, at most 60 characters, to count failures by."""
    return re.sub(r"[\d,]*\d", "N", re.split(r"[:(]|, not ", reason, maxsplit=1)[0]).strip()[:60]


def sums_of(items: int, counts: Mapping[str, float], seconds: Mapping[str, float], reasons: Iterable[str]) -> Sums:
    """Return what a chunk adds to the sums of its run.

    Args:
        items: number of items in the chunk.
        counts: numbers of its report, by name.
        seconds: seconds of its report, by stage.
        reasons: reason of each failure.

    Returns:
        Nonzero sums: ``items``, ``chunks``, the counts, ``seconds:STAGE`` and ``failures:LABEL``.
    """
    sums: Sums = {"items": items, "chunks": 1, **counts}
    sums.update({f"seconds:{stage}": spent for stage, spent in seconds.items()})
    for reason in reasons:
        name = f"failures:{label_of(reason)}"
        sums[name] = sums.get(name, 0) + 1
    return {name: value for name, value in sums.items() if value}


def folded(sums: Sums, known: Iterable[str]) -> Sums:
    """Return the sums with new failure labels counted as "other" once 100 labels exist.

    A label may contain a name after all, so the number of labels needs a limit.

    Args:
        sums: sums of one chunk.
        known: names in the sums of all runs.
    """
    known_labels = {name for name in known if name.startswith("failures:")}
    result: Sums = {}
    for name, value in sums.items():
        if name.startswith("failures:") and name not in known_labels and len(known_labels) >= _MAX_LABELS:
            name = "failures:other"
        result[name] = result.get(name, 0) + value
    return result


Sums = dict[str, float]
"""Sums over chunks by name, see :func:`sums_of`."""


class Journal(ABC):
    """A durable record of runs, chunks and failures, which several processes may use at once.

    A call's effect is durable when the call returns. All methods raise :class:`~ldot_milvus.errors.StoreError` if the
    journal cannot be used.

    Attributes:
        address: Redis address without the password, or path of the file.
    """

    address: str

    @abstractmethod
    def start(self, run: Run) -> None:
        """Record a run, before its first chunk is sent. Runs older than :data:`DAYS_KEPT` days are forgotten."""

    @abstractmethod
    def begin(self, run_id: str, chunk_id: str) -> int:
        """Record the start of a chunk.

        Returns:
            Number of starts, this one included; 0 if the chunk is already finished.
        """

    @abstractmethod
    def give_back(self, run_id: str, chunk_id: str) -> None:
        """Undo :meth:`begin` of a chunk that did not kill its worker and will be started again."""

    @abstractmethod
    def end(
        self, run_id: str, chunk_id: str, sums: Sums, failed: Sequence[FailedItem] = (), succeeded: Sequence[str] = ()
    ) -> bool:
        """Record the end of a chunk, unless it has been recorded before.

        Args:
            run_id: id of the run.
            chunk_id: id of the chunk.
            sums: what the chunk adds to the sums of its run; empty if the chunk was split.
            failed: failures to record; the attempts of an earlier failure of the same key are added.
            succeeded: keys of failures to remove.

        Returns:
            Whether this call recorded the end; if not, the sums are not added.
        """

    @abstractmethod
    def ended(self, run_id: str) -> dict[str, bool]:
        """Return the ids of the finished chunks of a run; the value is True for a split chunk."""

    @abstractmethod
    def note_trouble(self, run_id: str, trouble: str) -> None:
        """Record a message about what the workers wait for; the next :meth:`end` of the run clears it."""

    @abstractmethod
    def progress(self, run_id: str) -> Progress | None:
        """Return the progress of a run; None if the run is unknown or forgotten."""

    @abstractmethod
    def runs(self) -> list[Run]:
        """Return all runs that are not forgotten, newest first."""

    def last_progress(self, count: int) -> list[Progress]:
        """Return the progress of the last ``count`` runs, newest first."""
        states = (self.progress(run.id) for run in self.runs()[:count])
        return [state for state in states if state is not None]

    @abstractmethod
    def failures(self, run_id: str | None = None) -> list[FailedItem]:
        """Return the failures, oldest first; with ``run_id`` only those whose last failure was in that run."""

    @abstractmethod
    def clear(self, keys: Sequence[str]) -> int:
        """Remove the failures of these keys; return how many were removed."""

    @abstractmethod
    def check_writable(self) -> None:
        """Find out whether the journal can be written, and leave nothing behind."""

    @abstractmethod
    def totals(self) -> Sums:
        """Return the sums over all chunks ever finished; they never decrease."""
