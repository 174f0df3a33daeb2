"""Copying of a collection with its region data from one store to another; an interrupted copy can be resumed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ldot_milvus.batches import batched
from ldot_milvus.errors import StoreError
from ldot_milvus.stores import Record, VectorStore, validation
from ldot_milvus.stores.base import MODEL_SOURCE, SCHEMA_VERSION, VERSION
from ldot_milvus.stores.regions import RegionStore
from ldot_milvus.stores.upgrade import outdated

log = logging.getLogger(__name__)

BATCH = 500
SAMPLE = 1000
"""Number of rows, about, whose checksums are compared after copying."""


@dataclass
class Migration:
    """Counts of a migration.

    Attributes:
        rows: rows in the source.
        copied: rows that were missing or different in the target.
        regions: photos whose region data was copied, summed over the re-rankers.
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
    """Copy every row of ``source`` and its region data into ``target``.

    Rows that the target already has are not sent again, so an interrupted migration can be resumed by another call.
    Other rows of the target are not changed. A new target gets the schema version of the source.

    Args:
        source: collection to read.
        target: collection to write; it is created for the source's model if it does not exist.
        regions: pairs of source and target of the region data, one for each re-ranker.
        progress: called with the number of rows of each copied batch.

    Returns:
        Counts of rows and region data.

    Raises:
        CollectionNotFound: the source collection does not exist.
        ModelMismatch: the target contains vectors of another model.
        StoreError: the target has rows of another schema version; or, after copying, a row is missing or different.
    """
    done = Migration()
    for batch in batched(_rows(source, target), BATCH):
        ids = [row.id for row in batch]
        existing = {row.id: checksum(row) for row in target.get(ids, with_embeddings=True)}
        changed = [row for row in batch if existing.get(row.id) != checksum(row)]
        for kept_from, kept_to in regions:
            # Region data before rows, as in ingestion: every row a search returns can be re-ranked.
            done.regions += _copy_regions(kept_from, kept_to, ids)
        target.upsert(changed)
        done.rows += len(batch)
        done.copied += len(changed)
        progress(len(batch))
    done.checked = verify(source, target, done.rows)
    return done


def verify(source: VectorStore, target: VectorStore, rows: int) -> int:
    """Compare the counts, and the checksums of about ``SAMPLE`` rows spread evenly over the collection.

    Args:
        source: collection that was copied.
        target: the copy.
        rows: number of rows that were copied.

    Returns:
        Number of rows compared.

    Raises:
        StoreError: the target has fewer rows, or a row differs.
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
                f"{len(wrong)} rows differ in {target.address} (first: {wrong[0]}): another program writes to one of "
                "the stores; stop it and run the migration again"
            )
    return len(sample)


def checksum(row: Record) -> str:
    """Return the SHA-256 in hex of all fields of a row, including the bytes of its vector."""
    fields = (row.id, row.kind, row.namespace, row.source, row.caption, row.width, row.height)
    text = json.dumps([*fields, row.metadata], sort_keys=True, ensure_ascii=False)
    vector = b"" if row.embedding is None else np.ascontiguousarray(row.embedding, "<f4").tobytes()
    return hashlib.sha256(text.encode() + vector).hexdigest()


def _rows(source: VectorStore, target: VectorStore) -> Iterator[Record]:
    """Create the target collection if needed, and iterate over the source's rows with their vectors."""
    dim = validation.existing_dim(source)
    version = source.schema_version
    if source.model is not None:
        target.bind(source.model, dim)
        if (filled_with := source.properties.get(MODEL_SOURCE)) and MODEL_SOURCE not in target.properties:
            target.set_properties({MODEL_SOURCE: filled_with})
    if target.schema_version not in (None, version):
        if target.count():
            older = source if target.schema_version == SCHEMA_VERSION else target
            raise StoreError(f"the collections have different schema versions: {outdated(older)}")
        target.set_properties({VERSION: str(version)})
    return source.iterate(with_embeddings=True)


def _copy_regions(source: RegionStore, target: RegionStore, ids: Sequence[str]) -> int:
    existing = target.has(ids)
    missing = source.get([id for id in ids if id not in existing])
    if missing:
        target.put(missing)
    return len(missing)
