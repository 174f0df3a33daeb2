"""Failed items as runs that process them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ldot_milvus.ingest.journal import FailedItem
from ldot_milvus.ingest.target import Target
from ldot_milvus.ingest.tasks import Item, Task, task_named


def retries(failed: Iterable[FailedItem]) -> Iterator[tuple[Task[Any], Target, list[Item]]]:
    """Return the runs that process failed items again: one for each task and target.

    Args:
        failed: failures of a journal.

    Yields:
        The task, the target and the items of a run.

    Raises:
        UsageError: the task of an item comes from another version.
    """
    groups: dict[tuple[str, Target], list[FailedItem]] = {}
    for item in failed:
        groups.setdefault((item.task, item.target), []).append(item)
    for (name, target), group in groups.items():
        task = task_named(name)
        yield task, target, [task.item(item.item) for item in group]
