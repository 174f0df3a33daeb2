"""Rows that agree with the files: where a row's photo is now, and which rows have lost theirs.

A row is deleted only if its content is at none of its sources. ``docs/ingestion.md`` contains the table of cases.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldot_milvus.batches import batched
from ldot_milvus.errors import UsageError, printable
from ldot_milvus.ingest.row_sources import MAX_COPIES, at, copies_of, described, fields_of, is_absolute
from ldot_milvus.sources.base import scheme
from ldot_milvus.sources.reading import holds, present
from ldot_milvus.stores import Record, VectorStore, validation
from ldot_milvus.stores.identity import content_of
from ldot_milvus.stores.regions import RegionStore

log = logging.getLogger(__name__)

BATCH = 64
"""Rows or sources in one request to a store."""


@dataclass(frozen=True)
class Place:
    """The sources at which a run has read the content of a row.

    Attributes:
        sources: values of the field ``source``, in the order of reading, with the caption and the fields that each of
            them gives.
        size: size of the content in bytes.
        new: whether the run has written the row with a new vector.
    """

    sources: Mapping[str, tuple[str, Mapping[str, Any]]]
    size: int
    new: bool


@dataclass
class Reconciled:
    """Outcome of :func:`reconcile`.

    Attributes:
        updated: ids of rows with another source, caption or field than before.
        refused: the reason by the id of a row that cannot be described as its sources say.
        missing: ids without a row, since another run deleted it.
        replaced: the deleted rows, whose source now holds another photo.
        stale: number of rows that were kept although their source seems to hold another photo.
    """

    updated: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    replaced: list[Record] = field(default_factory=list)
    stale: int = 0


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
    It gets the captions and fields that its sources give.
    Other rows with that place as their source have lost their photo: they get one of their further sources, or are
    deleted. The rows of ``places`` are written before, so that a crash leaves a row too many and never one too few.

    Args:
        store: collection of the rows.
        region_store: region data of the collection; None without a re-ranker.
        places: where the content of each row was read, by id.
    """
    outcome = Reconciled()
    rows = {row.id: row for ids in batched(places, BATCH) for row in store.get(ids)}
    changed: dict[str, Record] = {}
    for id, row in rows.items():
        new = _located(row, places[id])
        try:
            for source, said in places[id].sources.items():
                new = described(new, source, *said)
            new = validation.fields(new)
        except UsageError as error:
            outcome.refused[id] = str(error)
            continue
        if new != row:
            changed[id] = new
    if changed and store.update(list(changed.values())) < len(changed):
        still = {row.id for row in store.get(list(changed))}
        rows = {id: row for id, row in rows.items() if id in still or id not in changed}
    outcome.updated = {id for id, row in rows.items() if id in changed and _visible(row) != _visible(changed[id])}
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
    copies, first = copies_of(row), next(iter(place.sources))
    if row.source in place.sources:
        source = row.source
    elif not is_absolute(row.source):
        source = first
    else:
        noted = set(place.sources) <= set(copies)  # a photo with copies is not read twice in every run
        lost = not _may_hold(row.source, place.size) if noted else holds(row.source, content_of(row)) is False
        source = first if lost else row.source
    return at(row, source, [*copies, *place.sources])


def _visible(row: Record) -> tuple[str, str, Mapping[str, Any]]:
    """What people see of a row; the list of its copies is not an update."""
    return row.source, row.caption, fields_of(row)


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
            log.warning("row %s is kept, although %s now holds another photo", printable(row.id), printable(row.source))
        else:
            lost.append(row)
    if moved:
        store.update(moved)
    delete_rows(store, region_store, lost)
    outcome.replaced += lost
