"""Task types: the operations on the items of a chunk, one class each; workers and this process both run them.

The Celery application takes its tasks from :data:`TASKS`, so this module imports nothing heavy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from typing_extensions import override

from ldot_milvus.errors import UsageError

if TYPE_CHECKING:
    from ldot_milvus.ingest.changes import RowChange
    from ldot_milvus.ingest.ingestor import Report
    from ldot_milvus.ingest.target import OpenTarget, Target
    from ldot_milvus.sources import Source


class Item(Protocol):
    """A dataclass that describes one unit of work.

    Messages and failures contain its ``to_dict()``; :meth:`Task.item` builds the item again.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """Name in reports and for people."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values for :meth:`Task.item`."""


ItemT = TypeVar("ItemT", bound=Item)
Perform = Callable[[Sequence[ItemT]], "Report"]
"""Processes items and returns a report that counts each of them."""


class Task(ABC, Generic[ItemT]):
    """An operation on the items of a run, and its names for people and for Celery.

    Attributes:
        name: name in journals and messages, which other versions read too.
        celery_name: name of the Celery task that processes a chunk, in messages too.
        queue_suffix: ending of the task's queue, after ``LDOT_QUEUE``.
        chunk_size: default number of items in a chunk.
        noun: one item, in the singular.
        unit: items in a rate, in the plural, as in "images/s".
        doing: the operation as a participle, as in "ingesting 5 photos".
        counters: numbers of a report that a summary shows.
    """

    name: ClassVar[str]
    celery_name: ClassVar[str]
    queue_suffix: ClassVar[str]
    chunk_size: ClassVar[int]
    noun: ClassVar[str]
    unit: ClassVar[str]
    doing: ClassVar[str]
    counters: ClassVar[tuple[str, ...]]

    def queue(self, name: str) -> str:
        """Return the Celery queue of this task in the deployment whose ``LDOT_QUEUE`` is ``name``."""
        return name + self.queue_suffix

    @abstractmethod
    def item(self, values: Mapping[str, Any]) -> ItemT:
        """Build an item from the values that its ``to_dict`` returned."""

    @abstractmethod
    def performer(self, opened: OpenTarget, target: Target) -> Perform[ItemT]:
        """Return the function that processes items of this task at a target.

        Args:
            opened: the open store and models of the target. Targets that differ only in what is left out share them.
            target: the target.

        Raises:
            LdotError: the target is unavailable, or cannot be used for this task.
        """


class IngestTask(Task["Source"]):
    """Ingestion of photos and texts. It needs the model, so its queue suits workers with a GPU."""

    name = "ingest"
    celery_name = "ldot.ingest_chunk"
    queue_suffix = ""
    chunk_size = 64
    noun, unit, doing = "photo", "images", "ingesting"
    counters = ("added", "updated", "unchanged", "failed")

    @override
    def item(self, values: Mapping[str, Any]) -> Source:
        from ldot_milvus.sources import Source

        return Source.from_dict(values)

    @override
    def performer(self, opened: OpenTarget, target: Target) -> Perform[Source]:
        return partial(opened.ingestor.ingest, skip_near_duplicates=target.skip_near_duplicates)


class ChangeTask(Task["RowChange"]):
    """Deletion of rows and changes of their source, on any worker that reaches the store."""

    name = "change"
    celery_name = "ldot.change_rows"
    queue_suffix = ".changes"
    chunk_size = 500
    noun, unit, doing = "row", "rows", "changing"
    counters = ("deleted", "updated", "unchanged", "failed")

    @override
    def item(self, values: Mapping[str, Any]) -> RowChange:
        from ldot_milvus.ingest.changes import RowChange

        return RowChange.from_dict(values)

    @override
    def performer(self, opened: OpenTarget, target: Target) -> Perform[RowChange]:
        from ldot_milvus.ingest.changes import change_rows
        from ldot_milvus.ingest.region_data import region_store_to_delete_from

        regions = region_store_to_delete_from(opened.store, target.model, target.reranker, target.region_store)
        return partial(change_rows, opened.store, region_store=regions)


INGEST = IngestTask()
CHANGE = ChangeTask()
TASKS: dict[str, Task[Any]] = {task.name: task for task in (INGEST, CHANGE)}


def task_named(name: str) -> Task[Any]:
    """Return the task of that name.

    Raises:
        UsageError: the name is unknown; another version wrote it.
    """
    if name not in TASKS:
        raise UsageError(f"task {name!r} comes from another version of ldot-milvus: upgrade this one")
    return TASKS[name]
