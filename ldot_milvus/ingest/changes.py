"""Rows that go or get another source: by id, source or filter, or since their photo is not in a folder any more."""

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
    """One row that goes, or whose photo is there under another name.

    Attributes:
        source: the row's new one; None to delete the row.
    """

    id: str
    source: str | None = None

    @property
    def name(self) -> str:
        """The row's id."""
        return self.id

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without a source for a deletion; :meth:`from_dict` is the way back."""
        return {"id": self.id} if self.source is None else {"id": self.id, "source": self.source}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RowChange:
        """What :meth:`to_dict` gave."""
        return cls(values["id"], values.get("source"))


def change_rows(store: VectorStore, changes: Sequence[RowChange], region_store: RegionStore | None = None) -> Report:
    """Delete rows with their region data, and rename sources. A row that is not there is unchanged.

    Args:
        store: the rows' collection.
        changes: each of another row.
        region_store: of the collection; None where nothing is kept for re-ranking.
    """
    doomed = [change.id for change in changes if change.source is None]
    sources = {change.id: change.source for change in changes if change.source is not None}
    report = Report()
    if doomed:
        # The row first: what a search finds always has its region data.
        report.deleted = store.delete(doomed)
        if region_store is not None:
            region_store.delete(doomed)
    if sources:
        renamed = [replace(row, source=sources[row.id]) for row in store.get(list(sources))]
        report.updated = store.update(renamed)
    report.unchanged = len(changes) - report.deleted - report.updated
    return report


def rows_to_delete(
    store: VectorStore, *, ids: Sequence[str] = (), sources: Sequence[str] = (), filter: Filter | None = None
) -> Iterator[Record]:
    """The rows that exist and are meant: of these ids, with these sources, and that pass the filter.

    Raises:
        UsageError: nothing is asked for; an empty filter, which would mean every row.
    """
    if filter == {}:
        raise UsageError('an empty filter would delete every row: if that is meant, say {"id": {"$ne": ""}}')
    if not ids and not sources and filter is None:
        raise UsageError("say what to delete: ids, --source or --filter")
    if ids:
        yield from store.get(list(dict.fromkeys(ids)))
    if sources:
        yield from store.iterate({"source": {"$in": list(sources)}})
    if filter is not None:
        yield from store.iterate(filter)


@dataclass
class Pruning:
    """What :func:`prune` found.

    Attributes:
        gone: rows whose photo is not in the folders any more.
        moved: rows whose photo is there under another name, and that name.
    """

    gone: list[Record] = field(default_factory=list)
    moved: list[tuple[Record, str]] = field(default_factory=list)

    def changes(self) -> list[RowChange]:
        """What :func:`change_rows` takes."""
        return [RowChange(row.id) for row in self.gone] + [RowChange(row.id, to) for row, to in self.moved]


def prune(store: VectorStore, paths: Sequence[str], sources: Iterable[Source]) -> Pruning:
    """Compare rows with what is in folders and tars now.

    A row belongs to a folder if its source is a path below it, seen from the current folder. It is gone if there is no
    such file any more (or no such member of a tar). Photos that are no row's source are read then, since one of them
    may be the same photo under another name.

    Args:
        paths: the folders and tars, as they were given to ``enqueue``.
        sources: all that is in them.

    Raises:
        UsageError: a path that is neither folder nor tar, or a part of one that cannot be listed.
    """
    for path in paths:
        if not os.path.isdir(path) and not path.endswith(".tar"):
            raise UsageError(f"--prune compares with folders and tars, and {printable(path)} is neither")
    there: dict[str, Source] = {}
    for source in sources:
        place = os.path.join(source.base, source.path)
        unseen = source.path in paths or (os.path.isdir(place) and not os.path.islink(place))
        if source.problem is not None and source.member is None and unseen:
            raise UsageError(f"{source.name}: {source.problem}; nothing is pruned, since not all can be seen")
        there[_place(source.source)] = source
    candidates = [row for row in store.iterate() if _belongs(row, paths) and not there.pop(_place(row.source), None)]
    tars = tuple(_place(path) + os.sep for path in paths if not os.path.isdir(path))
    candidates = [row for row in candidates if not _is_there(_place(row.source), tars)]
    return _sort_out(candidates, there.values()) if candidates else Pruning()


def _belongs(row: Record, paths: Sequence[str]) -> bool:
    roots = tuple(os.path.join(_place(path), "") for path in paths)
    return row.kind == "image" and "://" not in row.source and _place(row.source).startswith(roots)


def _is_there(place: str, tars: tuple[str, ...]) -> bool:
    """Whether what no listing gave is there all the same: hidden, of another suffix, or inside a file of its own."""
    if place.startswith(tars):
        return False  # the whole tar was listed
    while not os.path.lexists(place):
        place = os.path.dirname(place)
        if os.path.isfile(place) or os.path.isfile(os.path.join(place, "data.mdb")):
            return True  # a member of a tar, a line of a TSV, a record of an LMDB
        if os.path.isdir(place):
            return False
    return True


def _sort_out(candidates: list[Record], others: Iterable[Source]) -> Pruning:
    elsewhere: dict[str, str] = {}  # id or content to a name
    for source in others:
        try:
            elsewhere.setdefault(content_id(read(source)), source.source)
        except InputError:
            continue
        if source.id is not None:
            elsewhere.setdefault(source.id, source.source)
    result = Pruning()
    for row in candidates:
        name = elsewhere.get(str(row.metadata.get(CONTENT_ID))) or elsewhere.get(row.id)
        if name is None:
            result.gone.append(row)
        else:
            result.moved.append((row, name))
    return result


def _place(path: str) -> str:
    return os.path.abspath(path)
