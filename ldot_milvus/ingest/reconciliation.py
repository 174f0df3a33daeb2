"""Rows that agree with the files: where a row's photo is now, and which rows have lost theirs.

A row has one source, and its metadata lists further sources with the same content (``content_copies``). A row is
deleted only if its content is at none of them. ``docs/ingestion.md`` contains the table of cases.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ldot_milvus.batches import batched
from ldot_milvus.errors import printable
from ldot_milvus.sources.base import scheme
from ldot_milvus.sources.reading import holds, present
from ldot_milvus.stores import Record, VectorStore
from ldot_milvus.stores.regions import RegionStore

log = logging.getLogger(__name__)

CONTENT_ID = "content_id"
"""Metadata field with the SHA-256 of the content in hex, for rows whose id the caller chose."""

COPIES = "content_copies"
"""Metadata field with further sources of the same content, for rows that have some."""

MAX_COPIES = 8
"""Further sources that a row lists. If there are more, the row is never deleted for its sources."""

BATCH = 64
"""Rows or sources in one request to a store."""


@dataclass(frozen=True)
class Place:
    """The sources at which a run has read the content of a row.

    Attributes:
        sources: values of the field ``source``, in the order of reading.
        size: size of the content in bytes.
        new: whether the run has written the row with a new vector.
    """

    sources: Sequence[str]
    size: int
    new: bool


@dataclass
class Reconciled:
    """Outcome of :func:`reconcile`.

    Attributes:
        moved: ids of rows with another source than before.
        missing: ids without a row, since another run deleted it.
        replaced: the deleted rows, whose source now holds another photo.
        stale: number of rows that were kept although their source seems to hold another photo.
    """

    moved: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    replaced: list[Record] = field(default_factory=list)
    stale: int = 0


def content_of(row: Record) -> str:
    """Return the SHA-256 of the content of a row, in hex."""
    return str(row.metadata.get(CONTENT_ID, row.id))


def copies_of(row: Record) -> list[str]:
    """Return the further sources that the row lists."""
    copies = row.metadata.get(COPIES)
    return [copy for copy in copies if isinstance(copy, str)] if isinstance(copies, list) else []


def at(row: Record, source: str, copies: Iterable[str] | None = None) -> Record:
    """Return the row with another source.

    Args:
        row: the row.
        source: its new source.
        copies: its further sources; None keeps those that it has.
    """
    others = [copy for copy in dict.fromkeys(copies_of(row) if copies is None else copies) if copy != source]
    if len(others) > MAX_COPIES:
        others = [copy for copy in others if present(copy) != []][:MAX_COPIES]
    metadata = {name: value for name, value in row.metadata.items() if name != COPIES}
    return replace(row, source=source, metadata={**metadata, COPIES: others} if others else metadata)


def rewritten(row: Record, stored: Record) -> Record:
    """Return a row that will replace the stored one of the same content, with the sources of both."""
    return at(row, row.source, [*([stored.source] if is_absolute(stored.source) else []), *copies_of(stored)])


def is_absolute(source: str) -> bool:
    """Whether a row's source is an absolute path or an address; earlier versions stored relative paths too."""
    return scheme(source) is not None or os.path.isabs(source)


def other_source(row: Record, more: Sequence[str] = ()) -> tuple[str | None, bool]:
    """Look for the content of a row that is no longer at its source.

    Args:
        row: the row.
        more: sources to look at, besides those that the row lists.

    Returns:
        A further source that holds the content, None without one; and, without one, whether it is certain that the
        content is at none of the row's sources.
    """
    copies = copies_of(row)
    certain = len(copies) < MAX_COPIES
    for copy in [*copies, *more]:
        held = holds(copy, content_of(row))
        if held:
            return copy, True
        certain = certain and (held is False or copy in more)
    return None, certain


def reconcile(store: VectorStore, region_store: RegionStore | None, places: Mapping[str, Place]) -> Reconciled:
    """Bring the rows of photos up to date that are new, or were read elsewhere than at the row's source.

    A row gets the place as its source if its content is no longer at the old one; else the place is listed in the row.
    Other rows with that place as their source have lost their photo: they get one of their further sources, or are
    deleted. The rows of ``places`` are written before, so that a crash leaves a row too many and never one too few.

    Args:
        store: collection of the rows.
        region_store: region data of the collection; None without a re-ranker.
        places: where the content of each row was read, by id.
    """
    outcome = Reconciled()
    rows = {row.id: row for ids in batched(places, BATCH) for row in store.get(ids)}
    changed = {id: new for id, row in rows.items() if (new := _located(row, places[id])) != row}
    if changed and store.update(list(changed.values())) < len(changed):
        still = {row.id for row in store.get(list(changed))}
        rows = {id: row for id, row in rows.items() if id in still or id not in changed}
    outcome.moved = {id for id, row in rows.items() if id in changed and row.source != changed[id].source}
    outcome.missing = places.keys() - rows.keys()
    taken: dict[str, list[Record]] = {}  # rows by the sources at which they are new
    for id, row in rows.items():
        known = () if places[id].new else (row.source,)
        for source in places[id].sources:
            if source not in known:
                taken.setdefault(source, []).append(row)
    for sources in batched(taken, BATCH):
        _replace(store, region_store, list(store.iterate({"source": {"$in": sources}})), taken, outcome)
    return outcome


def delete_rows(store: VectorStore, region_store: RegionStore | None, rows: Sequence[Record]) -> int:
    """Delete rows that still have the sources given here, with their region data; return how many there were.

    Another run may have given a row its new source in the meantime: such a row stays.
    """
    deleted = 0
    for batch in batched(rows, BATCH):
        ids = [row.id for row in batch]
        # Rows are deleted before their region data, so that every row a search returns has region data.
        deleted += store.delete(filter={"id": {"$in": ids}, "source": {"$in": sorted({row.source for row in batch})}})
        if region_store is not None:
            kept = {row.id for row in store.get(ids)}
            region_store.delete([id for id in ids if id not in kept])
    return deleted


def _located(row: Record, place: Place) -> Record:
    copies = copies_of(row)
    if row.source in place.sources:
        source = row.source
    elif not is_absolute(row.source):
        source = place.sources[0]
    else:
        noted = set(place.sources) <= set(copies)  # a photo with copies is not read twice in every run
        lost = not _may_hold(row.source, place.size) if noted else holds(row.source, content_of(row)) is False
        source = place.sources[0] if lost else row.source
    return at(row, source, [*copies, *place.sources])


def _may_hold(stored: str, size: int) -> bool:
    """Whether a source exists and has the size of the content, or this is not known."""
    found = present(stored)
    if found is None:
        return True
    sizes = [source.size for source in found]
    if sizes == [None] and scheme(stored) is None:
        try:
            sizes = [os.stat(found[0].path).st_size]
        except OSError:
            return True
    return None in sizes or size in sizes


def _replace(
    store: VectorStore,
    region_store: RegionStore | None,
    candidates: Sequence[Record],
    taken: Mapping[str, Sequence[Record]],
    outcome: Reconciled,
) -> None:
    lost: list[Record] = []
    moved: list[Record] = []
    for row in candidates:
        owners = taken[row.source]
        if row.kind != "image" or content_of(row) in map(content_of, owners):
            continue
        held = holds(row.source, content_of(row))
        if held:
            continue  # a tar with two members of one name
        copy, certain = other_source(row, [owner.source for owner in owners])  # their former sources: a swap
        if copy is not None:
            moved.append(at(row, copy))
        elif held is None or not certain or row.namespace not in {owner.namespace for owner in owners}:
            outcome.stale += 1
            log.warning("row %s is kept, although %s now holds another photo", row.id, printable(row.source))
        else:
            lost.append(row)
    if moved:
        store.update(moved)
    delete_rows(store, region_store, lost)
    outcome.replaced += lost
