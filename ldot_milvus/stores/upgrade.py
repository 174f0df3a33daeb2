"""Upgrade of a collection to the current schema, in place.

Version 2 gives rows outside the namespace "default" an id of their own. Version 1 identified them by their content
alone, so that two tenants with the same photo shared one row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ldot_milvus.batches import batched
from ldot_milvus.errors import StoreError
from ldot_milvus.stores import validation
from ldot_milvus.stores.base import SCHEMA_VERSION, VERSION, Filter, Record, VectorStore
from ldot_milvus.stores.identity import CONTENT_ID, DEFAULT_NAMESPACE, is_content_id, row_id
from ldot_milvus.stores.regions import RegionStore

log = logging.getLogger(__name__)

BATCH = 200

_OTHERS: Filter = {"namespace": {"$ne": DEFAULT_NAMESPACE}}


@dataclass
class Upgrade:
    """Counts of an upgrade.

    Attributes:
        rows: rows in the collection.
        changed: rows that got another id in this call.
    """

    rows: int
    changed: int = 0


def outdated(store: VectorStore) -> str | None:
    """Return a message if the collection has an earlier schema version, else None."""
    version = store.schema_version
    if version is None or version >= SCHEMA_VERSION:
        return None
    return (
        f"collection {store.collection!r} of {store.address} has schema version {version}, and this ldot-milvus writes "
        f"version {SCHEMA_VERSION}: upgrade it with ldot migrate {store.address} --collection {store.collection}"
    )


def require_current(store: VectorStore) -> None:
    """Refuse to write into a collection of an earlier version.

    A collection whose rows are all in the namespace "default" is the same in both versions, and is marked as current.

    Raises:
        StoreError: the collection must be upgraded first. A worker waits, and goes on after the upgrade.
    """
    message = outdated(store)
    if message is None:
        return
    if store.count(_OTHERS):
        raise StoreError(message)
    store.set_properties({VERSION: str(SCHEMA_VERSION)})


def upgrade(
    store: VectorStore, regions: Sequence[RegionStore] = (), *, progress: Callable[[int], object] = lambda rows: None
) -> Upgrade:
    """Upgrade a collection to the current schema, in place.

    Region data and the row under the new id are written before the row under the old id is deleted, and the version is
    set at the end. After an interruption, the collection has its earlier version, can be searched, and is not written
    to; another call completes the upgrade.

    Args:
        store: the collection.
        regions: the region data of the collection, one store for each re-ranker.
        progress: called with the number of rows of each batch.

    Raises:
        CollectionNotFound: the collection does not exist.
        StoreError: a store cannot be used, or another program writes to the collection.
    """
    validation.existing_dim(store)
    done = Upgrade(store.count())
    for batch in batched(_shared(store), BATCH):
        new_ids = {row.id: row_id(row.namespace, row.id) for row in batch}
        for kept in regions:
            kept.put({new_ids[id]: arrays for id, arrays in kept.get(list(new_ids)).items()})
        store.upsert([
            replace(row, id=new_ids[row.id], metadata={**row.metadata, CONTENT_ID: row.id}) for row in batch
        ])  # fmt: skip
        store.delete(list(new_ids))
        for kept in regions:
            kept.delete(list(new_ids))
        done.changed += len(batch)
        progress(len(batch))
    if next(_shared(store), None) is not None:
        raise StoreError(
            f"another program has written rows of version 1 to collection {store.collection!r} of {store.address}: "
            "stop it and run the upgrade again"
        )
    store.set_properties({VERSION: str(SCHEMA_VERSION)})
    return done


def _shared(store: VectorStore) -> Iterator[Record]:
    """Yield the rows of other namespaces whose id is their content; rows with an id of the caller's keep it."""
    for row in store.iterate(_OTHERS, batch_size=BATCH, with_embeddings=True):
        if CONTENT_ID not in row.metadata and is_content_id(row.id):
            yield row
