"""The tasks: what can be done with the items of a chunk, by a worker or in this process. One class each.

The Celery application reads this table for its queues, so it imports nothing heavy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from ldot_milvus.errors import UsageError

if TYPE_CHECKING:
    from ldot_milvus.ingest.changes import RowChange
    from ldot_milvus.ingest.ingestor import Report
    from ldot_milvus.ingest.target import OpenTarget
    from ldot_milvus.sources import Source


class Item(Protocol):
    """One piece of work, a dataclass. Messages and failures keep its ``to_dict()``; the task's ``item`` reads that."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """For people, and what a report calls it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""


ItemT = TypeVar("ItemT", bound=Item)
Perform = Callable[[Sequence[ItemT]], "Report"]
"""Does items and reports on each of them."""


class Task(ABC, Generic[ItemT]):
    """What is done with the items of a run, and what people and Celery call it.

    Attributes:
        name: in journals and messages, which other versions read too.
        celery_name: of the Celery task that does a chunk; it is in messages too.
        queue: of that Celery task.
        chunk_size: how many items a chunk has unless somebody asks for another number.
        noun, unit: one item, and the many that a rate counts.
        doing: what the task does to its items, as in "ingesting 5 photos".
        counters: the numbers of a report that a summary shows.
    """

    name: ClassVar[str]
    celery_name: ClassVar[str]
    queue: ClassVar[str]
    chunk_size: ClassVar[int]
    noun: ClassVar[str]
    unit: ClassVar[str]
    doing: ClassVar[str]
    counters: ClassVar[tuple[str, ...]]

    @abstractmethod
    def item(self, values: Mapping[str, Any]) -> ItemT:
        """The item that ``to_dict`` gave these values for."""

    @abstractmethod
    def performer(self, opened: OpenTarget) -> Perform[ItemT]:
        """What does items of this task at this target.

        Raises:
            LdotError: the target cannot be used for it, or is away.
        """


class IngestTask(Task["Source"]):
    """Photos and texts into the collection. It needs the model, so its queue is for workers with a GPU, if any has."""

    name = "ingest"
    celery_name = "ldot.ingest_chunk"
    queue = "ldot"
    chunk_size = 64
    noun, unit, doing = "photo", "images", "ingesting"
    counters = ("added", "updated", "unchanged", "failed")

    def item(self, values: Mapping[str, Any]) -> Source:
        """A source."""
        from ldot_milvus.sources import Source

        return Source.from_dict(values)

    def performer(self, opened: OpenTarget) -> Perform[Source]:
        """The target's ingestor."""
        return opened.ingestor.ingest


class ChangeTask(Task["RowChange"]):
    """Rows that are deleted or get another source: any worker that reaches the store will do."""

    name = "change"
    celery_name = "ldot.change_rows"
    queue = "ldot.changes"
    chunk_size = 500
    noun, unit, doing = "row", "rows", "changing"
    counters = ("deleted", "updated", "unchanged", "failed")

    def item(self, values: Mapping[str, Any]) -> RowChange:
        """A row's change."""
        from ldot_milvus.ingest.changes import RowChange

        return RowChange.from_dict(values)

    def performer(self, opened: OpenTarget) -> Perform[RowChange]:
        """:func:`~ldot_milvus.ingest.changes.change_rows` in the target's store."""
        from ldot_milvus.ingest.changes import change_rows
        from ldot_milvus.ingest.region_data import region_store_to_delete_from

        target = opened.target
        regions = region_store_to_delete_from(opened.store, target.model, target.reranker, target.region_store)
        return partial(change_rows, opened.store, region_store=regions)


INGEST = IngestTask()
CHANGE = ChangeTask()
TASKS: dict[str, Task[Any]] = {task.name: task for task in (INGEST, CHANGE)}


def task_named(name: str) -> Task[Any]:
    """The task of that name.

    Raises:
        UsageError: another version's.
    """
    if name not in TASKS:
        raise UsageError(f"the task {name!r} is of another version of ldot-milvus: upgrade this one")
    return TASKS[name]
