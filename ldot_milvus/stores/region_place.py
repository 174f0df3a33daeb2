"""The place of a collection's region data, on which all processes agree.

Beside a local store that place is known. Any other place, such as that of a server's collection, is recorded in a
property of the collection by the first ingestion, and marked with a file. A process that does not find this file has
another folder of the same name, or an empty mount point.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Protocol

from ldot_milvus.errors import RegionStoreNotFound
from ldot_milvus.settings import Settings
from ldot_milvus.stores.base import VectorStore
from ldot_milvus.stores.regions import RegionStore, absolute_region_address
from ldot_milvus.stores.registry import parse_address

RECORD = "region_store"
"""Name of the property with the place of the region data of a collection."""

SAMPLE = 100
"""Rows whose region data is looked for at a place that the collection does not record."""


class Keeper(Protocol):
    """A re-ranker or its files."""

    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def former_fingerprints(self) -> Sequence[str]: ...  # noqa: D102


@dataclass(frozen=True)
class RegionRecord:
    """A recorded place.

    Attributes:
        address: absolute address, on the machine that recorded it.
        id: id of the mark at the place (:meth:`RegionStore.mark`).
    """

    address: str
    id: str

    @classmethod
    def of(cls, store: VectorStore) -> RegionRecord | None:
        """Return the record of a collection; None if it has none or does not exist."""
        text = store.properties.get(RECORD)
        if text is None:
            return None
        values = json.loads(text)
        return cls(values["address"], values["id"])

    def write(self, store: VectorStore) -> None:
        """Record the place in an existing collection."""
        store.set_properties({RECORD: json.dumps(asdict(self))})


class RegionPlace:
    """The place of the region data of a collection.

    It is the given address, else the recorded one, else the default of the store. Creating an instance reads nothing;
    paths are made absolute then.

    Args:
        store: the collection, which may not exist yet.
        address: a folder or any fsspec address; None takes the setting ``LDOT_REGION_STORE`` if there is one.

    Attributes:
        given: absolute form of the given address; None without one.

    Raises:
        UsageError: the address of ``store`` has no registered form.
    """

    def __init__(self, store: VectorStore, address: str | None = None) -> None:
        parsed = parse_address(store.address)
        given = Settings().region_store if address is None else address
        self.given = None if given is None else absolute_region_address(given)
        self._default = absolute_region_address(parsed.region_store)
        self._own = self._default if parsed.journal is not None else None  # a folder that moves with the store
        self._store = store
        self._settled: str | None = None

    @property
    def settled(self) -> bool:
        """Whether :meth:`find` has found a place that no other process changes."""
        return self._settled is not None

    def find(self, *, to_write: bool = False) -> str:
        """Return the absolute address.

        Args:
            to_write: refuse a default at which the region data of existing rows is missing.

        Raises:
            RegionStoreNotFound: the collection records another place, or its region data is somewhere else.
            StoreError: a store cannot be used.
        """
        if self._settled is None:
            address, record = self._look(to_write)
            if record is None and address != self._own:
                return address  # another process may record a place later
            self._settled = address
        return self._settled

    def claim(self) -> str:
        """Return the address to write to, and record it if the collection has no record.

        Raises:
            CollectionNotFound: the collection does not exist.
            RegionStoreNotFound, StoreError: see :meth:`find`.
        """
        address = self.find(to_write=True)
        if self._settled is None:
            record = RegionRecord(address, secrets.token_hex(8))
            # Marked first, so that a recorded place always has its mark.
            RegionStore(address, "").mark(record.id, f"{self._store.collection} in {self._store.address}")
            record.write(self._store)
            # Another process may record its place at the same moment. The last one counts: the next call looks again.
            address, _ = self._look()
        return address

    def open(self, kept_by: Keeper, *, to_write: bool = False) -> RegionStore:
        """Open the region store of a re-ranker at the address that :meth:`find` returns."""
        return region_store_at(self.find(to_write=to_write), kept_by)

    def _look(self, to_write: bool = False) -> tuple[str, RegionRecord | None]:
        record = RegionRecord.of(self._store)
        address = self.given or (record.address if record else self._default)
        if record is not None:
            self._check_mark(address, record)
        elif to_write and self.given is None and self._own is None:
            self._check_rows(address)
        return address, record

    def _check_mark(self, address: str, record: RegionRecord) -> None:
        if RegionStore(address, "").marked(record.id):
            return
        found = "this machine does not have it there" if address == record.address else f"{address} is another place"
        raise RegionStoreNotFound(
            f"collection {self._store.collection!r} in {self._store.address} has its region data in {record.address}, "
            f"and {found}: set LDOT_REGION_STORE to the address at which this machine reaches it"
        )

    def _check_rows(self, address: str) -> None:
        """Check that the default has region data of rows that an earlier version wrote, by whatever re-ranker."""
        ids = [row.id for row in islice(self._store.iterate({"kind": "image"}, batch_size=SAMPLE), SAMPLE)]
        if not ids or any(RegionStore(address, name).has(ids) for name in RegionStore(address, "").fingerprints()):
            return
        raise RegionStoreNotFound(
            f"collection {self._store.collection!r} in {self._store.address} has photos, but {address} has no region "
            "data of them: set LDOT_REGION_STORE to the place of their region data (before: ./ldot-data/regions of the "
            f"folder in which they were ingested), or to {address} to compute it again"
        )


def region_store_at(address: str, kept_by: Keeper) -> RegionStore:
    """Return the region store of a re-ranker at an address; nothing is read yet."""
    # A function, because hashing the weights for the former fingerprints takes time.
    former = lambda: kept_by.former_fingerprints  # noqa: E731
    return RegionStore(address, kept_by.fingerprint, former, dtype=Settings().region_dtype)


def open_region_store(store: VectorStore, kept_by: Keeper, address: str | None = None) -> RegionStore:
    """Open the region store of a collection and a re-ranker.

    Args:
        store: the collection, which may not exist yet.
        kept_by: the re-ranker, or its files.
        address: a folder or any fsspec address; None takes the setting ``LDOT_REGION_STORE``, else the place that the
            collection records, else the default of the store (:mod:`~ldot_milvus.stores.registry`).

    Raises:
        RegionStoreNotFound: the collection records another place.
        StoreError: a store cannot be used.
    """
    return RegionPlace(store, address).open(kept_by)


def keep_record(store: VectorStore, successor: VectorStore) -> None:
    """Record the place of a collection in its successor, unless that has recorded one of its own or does not exist."""
    record = RegionRecord.of(store)
    if record is not None and successor.dim is not None and RegionRecord.of(successor) is None:
        record.write(successor)
