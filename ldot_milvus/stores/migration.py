"""A collection from one store to another: local to server and back, with what re-ranking needs; can be resumed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ldot_milvus.batches import batched
from ldot_milvus.errors import CollectionNotFound, StoreError
from ldot_milvus.stores import Record, VectorStore
from ldot_milvus.stores.regions import RegionStore

log = logging.getLogger(__name__)

BATCH = 500
SAMPLE = 1000
"""Rows whose checksums are compared at the end."""


@dataclass
class Migration:
    """What a migration did.

    Attributes:
        rows: of the source.
        copied: rows that the target did not have yet, or had otherwise.
        regions: photos whose region data was copied.
        checked: rows whose checksums were compared.
    """

    rows: int = 0
    copied: int = 0
    regions: int = 0
    checked: int = 0


def migrate(
    source: VectorStore,
    target: VectorStore,
    regions: Sequence[tuple[RegionStore, RegionStore]] = (),
    *,
    progress: Callable[[int], object] = lambda rows: None,
) -> Migration:
    """Copy every row of ``source`` into ``target``, and its region data; what is there already is not sent again.

    Run it again after an interruption: it goes on. Rows that only the target has are left alone.

    Args:
        source: read only.
        target: its collection is made for the source's model where it does not exist.
        regions: from where to where the region data goes, a pair for each re-ranker that has kept some.
        progress: called with the number of rows of each batch that is done.

    Raises:
        CollectionNotFound: the source has no such collection.
        ModelMismatch: the target's collection holds vectors of another model.
        StoreError: afterwards a row is missing in the target, or is another one there.
    """
    done = Migration()
    for batch in batched(_rows(source, target), BATCH):
        ids = [row.id for row in batch]
        there = {row.id: checksum(row) for row in target.get(ids, with_embeddings=True)}
        fresh = [row for row in batch if there.get(row.id) != checksum(row)]
        for kept_from, kept_to in regions:
            # Region data first, as in ingestion: whatever a search finds can be re-ranked.
            done.regions += _copy_regions(kept_from, kept_to, ids)
        target.upsert(fresh)
        done.rows += len(batch)
        done.copied += len(fresh)
        progress(len(batch))
    done.checked = verify(source, target, done.rows)
    return done


def verify(source: VectorStore, target: VectorStore, rows: int) -> int:
    """Compare the counts, and the checksums of up to ``SAMPLE`` rows spread evenly over the collection.

    Returns:
        How many rows were compared.

    Raises:
        StoreError: they differ.
    """
    count = target.count()
    if count < rows:
        raise StoreError(f"{target.address} has {count} rows after {rows} were copied: run the migration again")
    every = max(1, rows // SAMPLE)
    sample = [row.id for n, row in enumerate(source.iterate()) if n % every == 0]
    for ids in batched(sample, BATCH):
        theirs = {row.id: checksum(row) for row in target.get(ids, with_embeddings=True)}
        wrong = [row.id for row in source.get(ids, with_embeddings=True) if theirs.get(row.id) != checksum(row)]
        if wrong:
            raise StoreError(
                f"{len(wrong)} rows differ in {target.address} (first: {wrong[0]}): something else writes to one of "
                "the stores; stop it and run the migration again"
            )
    return len(sample)


def checksum(row: Record) -> str:
    """SHA-256 in hex over all fields of a row, its vector's bytes included."""
    fields = (row.id, row.kind, row.namespace, row.source, row.caption, row.width, row.height)
    text = json.dumps([*fields, row.metadata], sort_keys=True, ensure_ascii=False)
    vector = b"" if row.embedding is None else np.ascontiguousarray(row.embedding, "<f4").tobytes()
    return hashlib.sha256(text.encode() + vector).hexdigest()


def _rows(source: VectorStore, target: VectorStore) -> Iterator[Record]:
    """All rows with their vectors, after the target was made ready for them."""
    if source.dim is None:
        raise CollectionNotFound(f"{source.address} has no collection {source.collection!r}: name it with --collection")
    if source.model is not None:
        target.bind(source.model, source.dim)
    return source.iterate(with_embeddings=True)


def _copy_regions(source: RegionStore, target: RegionStore, ids: Sequence[str]) -> int:
    there = target.has(ids)
    missing = source.get([id for id in ids if id not in there])
    if missing:
        target.put(missing)
    return len(missing)
