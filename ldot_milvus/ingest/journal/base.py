"""What the journal keeps, and its interface."""

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
"""How long a run is remembered; failures stay until they are cleared or ingested."""

_DESCRIPTION = {"caption", "namespace", "metadata", "id", "offset", "size", "problem"}
_REASONS_APART = 100


@dataclass(frozen=True)
class Run:
    """One call of a command that sends work.

    Attributes:
        task: the name of one of :mod:`~ldot_milvus.ingest.tasks`, or of another version's.
        target: as the command named it.
        items: how many sources (or rows) it is about.
        started: seconds since 1970.
    """

    id: str
    task: str
    target: Target
    items: int
    started: float

    @classmethod
    def new(cls, task: str, target: Target, items: int) -> Run:
        """A run that starts now; its id sorts by time."""
        now = time.time()
        id = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{secrets.token_hex(2)}"
        return cls(id, task, target, items, now)

    def to_json(self) -> str:
        """Text that :meth:`from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Run:
        """What :meth:`to_json` wrote, in this version or another."""
        values = json.loads(text)
        return cls(**{**values, "target": Target.from_dict(values["target"])})


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        sums: items, added, updated, unchanged, deleted, failed, bytes, and ``seconds:STAGE``, of the chunks that ended.
        working: chunks that were begun and have not ended.
        changed: when the last chunk was begun or ended, in seconds since 1970.
        trouble: what the workers wait for, such as a store that is away; empty where nothing is wrong.
    """

    run: Run
    sums: dict[str, float]
    working: int
    changed: float
    trouble: str

    @property
    def done(self) -> int:
        """How many of the run's items are done with, failed ones included."""
        return int(self.sums.get("items", 0))

    @property
    def complete(self) -> bool:
        """Whether nothing is left."""
        return self.done >= self.run.items


@dataclass(frozen=True)
class FailedItem:
    """One source that could not be ingested, or row that could not be changed, and all that it takes to try again.

    Attributes:
        source: its name for people.
        task: as in :class:`Run`.
        item: as it was in its message, plain JSON values.
        attempt: how many runs have failed at it.
        time: of the last failure, in seconds since 1970.
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
        """The same for the same source and collection, however it is described."""
        return item_key(self.task, self.target, self.item)

    def after(self, earlier: FailedItem | None) -> FailedItem:
        """This one, with the attempts counted on from an earlier failure of the same key."""
        if earlier is None:
            return self
        return replace(self, attempt=earlier.attempt + (earlier.run_id != self.run_id))

    def to_json(self) -> str:
        """Text that :meth:`from_json` reads."""
        values = asdict(self)
        values["run"] = values.pop("run_id")
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str | bytes) -> FailedItem:
        """What :meth:`to_json` wrote, in this version or another."""
        values = json.loads(text)
        return cls(run_id=values.pop("run"), **{**values, "target": Target.from_dict(values["target"])})


def item_key(task: str, target: Target, item: Mapping[str, Any]) -> str:
    """What identifies an item among the failures, from the values of its fields: 32 hex digits."""
    described = _DESCRIPTION - {"caption"} if item.get("kind") == "text" else _DESCRIPTION
    where = {name: value for name, value in item.items() if value and (task != "ingest" or name not in described)}
    text = json.dumps([task, target.collection, where], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def label_of(reason: str) -> str:
    """A reason without its figures and names, for counting."""
    return re.sub(r"[\d,]*\d", "N", re.split(r"[:(]|, not ", reason, maxsplit=1)[0]).strip()[:60]


def sums_of(items: int, counts: Mapping[str, float], seconds: Mapping[str, float], reasons: Iterable[str]) -> Sums:
    """What a chunk adds to the sums of its run."""
    sums: Sums = {"items": items, "chunks": 1, **counts}
    sums.update({f"seconds:{stage}": spent for stage, spent in seconds.items()})
    for reason in reasons:
        name = f"failures:{label_of(reason)}"
        sums[name] = sums.get(name, 0) + 1
    return {name: value for name, value in sums.items() if value}


def folded(sums: Sums, known: Iterable[str]) -> Sums:
    """The sums with new reasons counted as "other" once there are too many: a reason may hold a name after all."""
    there = {name for name in known if name.startswith("failures:")}
    result: Sums = {}
    for name, value in sums.items():
        if name.startswith("failures:") and name not in there and len(there) >= _REASONS_APART:
            name = "failures:other"
        result[name] = result.get(name, 0) + value
    return result


Sums = dict[str, float]


class Journal(ABC):
    """Runs, chunks and failures. Every call is durable when it returns; several processes may call at once.

    All methods raise :class:`~ldot_milvus.errors.StoreError` when the journal cannot be used.
    """

    address: str

    @abstractmethod
    def start(self, run: Run) -> None:
        """Note a run before its first chunk is sent."""

    @abstractmethod
    def begin(self, run_id: str, chunk_id: str) -> int:
        """How often the chunk was begun, this time included; 0 if it has ended already."""

    @abstractmethod
    def give_back(self, run_id: str, chunk_id: str) -> None:
        """Take back :meth:`begin`: the chunk will be begun again, and its worker did not die of it."""

    @abstractmethod
    def end(
        self, run_id: str, chunk_id: str, sums: Sums, failed: Sequence[FailedItem] = (), succeeded: Sequence[str] = ()
    ) -> bool:
        """Note the end of a chunk; only the first one counts. Returns whether this was it.

        Args:
            sums: what it adds to the run's; empty where the chunk was split into others.
            failed: recorded, with their attempts counted on.
            succeeded: keys of items that are failures no more.
        """

    @abstractmethod
    def ended(self, run_id: str) -> dict[str, bool]:
        """The chunks that have ended; whether they were split."""

    @abstractmethod
    def note_trouble(self, run_id: str, trouble: str) -> None:
        """Say what the workers wait for; the next chunk that ends takes it back."""

    @abstractmethod
    def progress(self, run_id: str) -> Progress | None:
        """How far the run is; None where it is not known (any more)."""

    @abstractmethod
    def runs(self) -> list[Run]:
        """The runs that are remembered, the last one first."""

    @abstractmethod
    def failures(self, run_id: str | None = None) -> list[FailedItem]:
        """What could not be ingested (in one run), the oldest first."""

    @abstractmethod
    def clear(self, keys: Sequence[str]) -> int:
        """Forget failures; returns how many."""

    @abstractmethod
    def totals(self) -> Sums:
        """The sums of all runs ever; they only grow."""
