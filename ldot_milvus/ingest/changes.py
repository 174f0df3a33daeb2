"""Deletion and renaming of rows: by id, source or filter, or because their photo has left a folder or tar file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ldot_milvus.errors import InputError, UsageError, printable
from ldot_milvus.images import content_id
from ldot_milvus.ingest.ingestor import CONTENT_ID, Report
from ldot_milvus.sources import Source, read
from ldot_milvus.stores import Record, VectorStore
from ldot_milvus.stores.base import Filter
from ldot_milvus.stores.regions import RegionStore


@dataclass(frozen=True)
class RowChange:
    """Deletion of one row, or its new source.

    Attributes:
        id: the row's id.
        source: the row's new source; None deletes the row.
    """

    id: str
    source: str | None = None

    @property
    def name(self) -> str:
        """The row's id."""
        return self.id

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values for :meth:`from_dict`; a deletion has no ``source``."""
        return {"id": self.id} if self.source is None else {"id": self.id, "source": self.source}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RowChange:
        """Build a change from the values that :meth:`to_dict` returned."""
        return cls(values["id"], values.get("source"))


def change_rows(store: VectorStore, changes: Sequence[RowChange], region_store: RegionStore | None = None) -> Report:
    """Delete rows together with their region data, and change the sources of other rows.

    Args:
        store: collection of the rows.
        changes: at most one change for each row.
        region_store: region data of the collection; None without a re-ranker.

    Returns:
        Counts of deleted, updated and unchanged rows; a row that does not exist counts as unchanged.

    Raises:
        StoreError: the store or the region store cannot be used.
    """
    deleted_ids = [change.id for change in changes if change.source is None]
    new_sources = {change.id: change.source for change in changes if change.source is not None}
    report = Report()
    if deleted_ids:
        # Rows are deleted before their region data, so that every row a search returns has region data.
        report.deleted = store.delete(deleted_ids)
        if region_store is not None:
            region_store.delete(deleted_ids)
    if new_sources:
        renamed = [replace(row, source=new_sources[row.id]) for row in store.get(list(new_sources))]
        report.updated = store.update(renamed)
    report.unchanged = len(changes) - report.deleted - report.updated
    return report


def rows_to_delete(
    store: VectorStore, *, ids: Sequence[str] = (), sources: Sequence[str] = (), filter: Filter | None = None
) -> Iterator[Record]:
    """Yield the existing rows that a deletion selects.

    Args:
        store: collection of the rows.
        ids: select rows with these ids.
        sources: select rows with these sources.
        filter: select rows that match, see ``docs/filters.md``.

    Yields:
        The selected rows, without embeddings. A row that several arguments select comes several times.

    Raises:
        UsageError: no argument selects anything, or the filter is empty and would select every row.
    """
    if filter == {}:
        raise UsageError('an empty filter would delete every row: to delete every row, use {"id": {"$ne": ""}}')
    if not ids and not sources and filter is None:
        raise UsageError("nothing selected for deletion: give ids, --source or --filter")
    if ids:
        yield from store.get(list(dict.fromkeys(ids)))
    if sources:
        yield from store.iterate({"source": {"$in": list(sources)}})
    if filter is not None:
        yield from store.iterate(filter)


@dataclass
class Pruning:
    """Result of :func:`prune`.

    Attributes:
        gone: rows whose photo no longer exists in the folders and tar files.
        moved: rows whose photo has another source now, and that source.
    """

    gone: list[Record] = field(default_factory=list)
    moved: list[tuple[Record, str]] = field(default_factory=list)

    def changes(self) -> list[RowChange]:
        """Return the deletions and the new sources, as :func:`change_rows` takes them."""
        return [RowChange(row.id) for row in self.gone] + [RowChange(row.id, to) for row, to in self.moved]


def prune(store: VectorStore, paths: Sequence[str], sources: Iterable[Source]) -> Pruning:
    """Find the rows whose photo has left a folder or tar file, or has another name there.

    A row belongs to a folder if its source is a path below the folder; relative paths count from the working
    directory. If the file (or the tar member) no longer exists, the photos that no row has as its source are read and
    hashed, since one of them may be the same photo under another name.

    Args:
        store: collection of the rows; nothing is written.
        paths: the folders and tar files, as they were given to ``enqueue``.
        sources: all sources in ``paths``.

    Raises:
        UsageError: a path is neither a folder nor a tar file, or a part of it cannot be listed.
    """
    for path in paths:
        if not os.path.isdir(path) and not path.endswith(".tar"):
            raise UsageError(f"{printable(path)} is neither a folder nor a .tar file: give --prune one of these")
    listed: dict[str, Source] = {}
    for source in sources:
        location = os.path.join(source.base, source.path)
        unlisted = source.path in paths or (os.path.isdir(location) and not os.path.islink(location))
        if source.problem is not None and source.member is None and unlisted:
            raise UsageError(f"{source.name}: {source.problem}; nothing is pruned, because it cannot be listed")
        listed[os.path.abspath(source.source)] = source
    candidates = [
        row for row in store.iterate() if _belongs(row, paths) and not listed.pop(os.path.abspath(row.source), None)
    ]
    tars = tuple(os.path.abspath(path) + os.sep for path in paths if not os.path.isdir(path))
    candidates = [row for row in candidates if not _exists(os.path.abspath(row.source), tars)]
    return _gone_or_moved(candidates, listed.values()) if candidates else Pruning()


def _belongs(row: Record, paths: Sequence[str]) -> bool:
    roots = tuple(os.path.join(os.path.abspath(path), "") for path in paths)
    return row.kind == "image" and "://" not in row.source and os.path.abspath(row.source).startswith(roots)


def _exists(path: str, tars: tuple[str, ...]) -> bool:
    """Whether an unlisted source exists all the same: hidden, with another suffix, or inside a container file."""
    if path.startswith(tars):
        return False  # the whole tar was listed
    while not os.path.lexists(path):
        path = os.path.dirname(path)
        if os.path.isfile(path) or os.path.isfile(os.path.join(path, "data.mdb")):
            return True  # a member of a tar, a line of a TSV, a record of an LMDB
        if os.path.isdir(path):
            return False
    return True


def _gone_or_moved(candidates: list[Record], unmatched: Iterable[Source]) -> Pruning:
    new_sources: dict[str, str] = {}  # by id and by content hash
    for source in unmatched:
        try:
            new_sources.setdefault(content_id(read(source)), source.source)
        except InputError:
            continue
        if source.id is not None:
            new_sources.setdefault(source.id, source.source)
    result = Pruning()
    for row in candidates:
        new_source = new_sources.get(str(row.metadata.get(CONTENT_ID))) or new_sources.get(row.id)
        if new_source is None:
            result.gone.append(row)
        else:
            result.moved.append((row, new_source))
    return result
