"""Deletion and renaming of rows: by id, source or filter, or because their photo has left a folder or tar file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldot_milvus.batches import batched
from ldot_milvus.errors import InputError, UsageError, printable
from ldot_milvus.images import content_id
from ldot_milvus.ingest.reconciliation import BATCH, delete_rows, other_source
from ldot_milvus.ingest.report import Report
from ldot_milvus.ingest.row_sources import at, copies_of, is_absolute
from ldot_milvus.sources import Source, read
from ldot_milvus.sources.base import absolute, scheme
from ldot_milvus.sources.reading import holds, present
from ldot_milvus.stores import Record, VectorStore
from ldot_milvus.stores.base import Filter
from ldot_milvus.stores.identity import content_of
from ldot_milvus.stores.regions import RegionStore


@dataclass(frozen=True)
class RowChange:
    """Deletion of one row, or its new source.

    Attributes:
        id: the row's id.
        source: the row's new source; None deletes the row.
        was: the source for which the change was decided: a row that has another source by now is not changed. None
            changes the row whatever its source is.
    """

    id: str
    source: str | None = None
    was: str | None = None

    @property
    def name(self) -> str:
        """The row's id."""
        return self.id

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values for :meth:`from_dict`, without those that are None."""
        values = {"id": self.id, "source": self.source, "was": self.was}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RowChange:
        """Build a change from the values that :meth:`to_dict` returned."""
        return cls(values["id"], values.get("source"), values.get("was"))


def change_rows(store: VectorStore, changes: Sequence[RowChange], region_store: RegionStore | None = None) -> Report:
    """Delete rows together with their region data, and change the sources of other rows.

    Args:
        store: collection of the rows.
        changes: at most one change for each row.
        region_store: region data of the collection; None without a re-ranker.

    Returns:
        Counts of deleted, updated and unchanged rows; a row that does not exist, or that has another source than the
        change expects, counts as unchanged.

    Raises:
        StoreError: the store or the region store cannot be used.
    """
    report = Report()
    rows = {row.id: row for row in store.get([change.id for change in changes])}
    valid = [change for change in changes if change.id in rows and change.was in (None, rows[change.id].source)]
    renamed = [at(rows[change.id], change.source) for change in valid if change.source is not None]
    if renamed:
        report.updated = store.update(renamed)
    report.deleted = delete_rows(store, region_store, [rows[c.id] for c in valid if c.source is None])
    report.unchanged = len(changes) - report.deleted - report.updated
    return report


def rows_to_delete(
    store: VectorStore, *, ids: Sequence[str] = (), sources: Sequence[str] = (), filter: Filter | None = None
) -> Iterator[Record]:
    """Yield the existing rows that a deletion selects.

    Args:
        store: collection of the rows.
        ids: select rows with these ids.
        sources: select rows with these sources, which may be relative to the current folder.
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
        given = [name for source in sources for name in (source, Source(source).source)]
        yield from store.iterate({"source": {"$in": list(dict.fromkeys(given))}})
    if filter is not None:
        yield from store.iterate(filter)


@dataclass
class Pruning:
    """Result of :func:`prune`.

    Attributes:
        gone: rows whose photo no longer exists.
        moved: rows whose photo has another source now, and that source.
        undecided: rows that are kept, since it is not certain that their photo no longer exists.
    """

    gone: list[Record] = field(default_factory=list)
    moved: list[tuple[Record, str]] = field(default_factory=list)
    undecided: list[Record] = field(default_factory=list)

    def changes(self) -> list[RowChange]:
        """Return the new sources and the deletions, as :func:`change_rows` takes them."""
        moved = [RowChange(row.id, to, row.source) for row, to in self.moved]
        return moved + [RowChange(row.id, None, row.source) for row in self.gone]


def prune(store: VectorStore, paths: Sequence[str], sources: Iterable[Source], *, ingested: bool = True) -> Pruning:
    """Find the rows whose photo has left a folder or tar file, or has another name there.

    A row belongs to a folder if its source is a path below the folder. It has lost its photo if nothing of that name
    exists any more, or if another row has the same source and its content. The photo is then looked for at the further
    sources of the row and, by its content, among ``sources``.

    Args:
        store: collection of the rows; nothing is written.
        paths: the folders and tar files, as they were given to ``enqueue``.
        sources: all sources in ``paths``.
        ingested: whether ``sources`` have just been ingested, so that a photo that is the source of a row need not be
            read to know its content.

    Raises:
        UsageError: a path is neither a folder nor a tar file, or a part of it cannot be listed.
    """
    for path in paths:
        if not os.path.isdir(path) and not path.lower().endswith(".tar"):
            raise UsageError(f"{printable(path)} is neither a folder nor a .tar file: give --prune one of these")
    roots = tuple(os.path.join(Source(path).source, "") for path in paths)
    unmatched = _listed(paths, sources)
    listed, result = set(unmatched), Pruning()
    lost: list[Record] = []
    claims: dict[str, str] = {}  # the content that the first row claims for each listed source
    disputed: dict[str, set[str]] = {}  # the contents that several rows claim for a source
    for row in store.iterate():
        if row.kind != "image":
            continue
        for place in (row.source, *copies_of(row)):
            if place in listed and (first := claims.setdefault(place, content_of(row))) != content_of(row):
                disputed.setdefault(place, {first}).add(content_of(row))
        if scheme(row.source) is not None:
            continue
        if not is_absolute(row.source):
            if present(row.source) is None:
                result.undecided.append(row)
        elif row.source.startswith(roots):
            if row.source in listed:
                if ingested:
                    unmatched.pop(row.source, None)
                continue
            found = present(row.source)
            if found is None:
                result.undecided.append(row)
            elif not found:
                lost.append(row)
    lost += _without_their_photo(store, disputed)
    if lost:
        _find_again(lost, [source for same in unmatched.values() for source in same], result)
    return result


def _listed(paths: Sequence[str], sources: Iterable[Source]) -> dict[str, list[Source]]:
    """Return the sources by their names; two members of a tar may have one name."""
    roots = {absolute(path) for path in paths}
    listed: dict[str, list[Source]] = {}
    for source in sources:
        if source.problem is not None and source.member is None:
            location = absolute(source.path, source.base)
            if location in roots or (os.path.isdir(location) and not os.path.islink(location)):
                raise UsageError(f"{source.name}: {source.problem}; nothing is pruned, because it cannot be listed")
        listed.setdefault(source.source, []).append(source)
    return listed


def _without_their_photo(store: VectorStore, disputed: Mapping[str, set[str]]) -> list[Record]:
    """Return the rows at sources that hold the content of another row, and not theirs."""
    lost: list[Record] = []
    for sources in batched(disputed, BATCH):
        taken = {source for source in sources if any(holds(source, content) for content in disputed[source])}
        rows = store.iterate({"source": {"$in": sources}})
        lost += [r for r in rows if r.source in taken and r.kind == "image" and holds(r.source, content_of(r)) is False]
    return lost


def _find_again(lost: Iterable[Record], listed: Iterable[Source], result: Pruning) -> None:
    """Sort the rows without a photo at their source into those of the result."""
    new_sources: dict[str, str] = {}  # by content
    for source in listed:
        try:
            new_sources.setdefault(content_id(read(source)), source.source)
        except InputError:
            continue
    for row in lost:
        to = new_sources.get(content_of(row))
        certain = True
        if to is None:
            to, certain = other_source(row)
        if to is not None:
            result.moved.append((row, to))
        elif certain:
            result.gone.append(row)
        else:
            result.undecided.append(row)
