"""Tables of the local store, and the operations on them inside one transaction.

Change sequence: ``records.pk`` only grows, and a pk never changes its vector: a changed vector deletes the row and
inserts another. A trigger records each deleted row as a tombstone in the same transaction. Writers run one at a time,
so a reader that remembers the last pk and the last tombstone it has seen can catch up without reading the other rows.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldot_milvus.errors import StoreError
from ldot_milvus.stores.base import SCHEMA_VERSION, VERSION, Array, Record
from ldot_milvus.stores.validation import metadata_json

APPLICATION_ID = 0x4C444F54  # "LDOT": distinguishes our files from other databases

# Vectors have their own table, so that filters read small rows only. The id of a collection is random, so that an index
# of a store that was deleted and created again is recognised as outdated.
UPGRADE = (
    "CREATE INDEX IF NOT EXISTS records_by_source ON records (collection, source)",  # ingestion looks rows up by source
    "CREATE TABLE IF NOT EXISTS properties (collection INTEGER NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, "
    "PRIMARY KEY (collection, name)) WITHOUT ROWID",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
"""What version 2 adds to a file of version 1."""

SCHEMA = (
    "CREATE TABLE collections (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, dim INTEGER NOT NULL, model TEXT)",
    "CREATE TABLE records (pk INTEGER PRIMARY KEY AUTOINCREMENT, collection INTEGER NOT NULL, id TEXT NOT NULL, "
    "kind TEXT NOT NULL, namespace TEXT NOT NULL, source TEXT NOT NULL, caption TEXT NOT NULL, "
    "width INTEGER NOT NULL, height INTEGER NOT NULL, metadata TEXT NOT NULL, UNIQUE (collection, id))",
    "CREATE INDEX records_by_collection ON records (collection)",
    "CREATE TABLE vectors (pk INTEGER PRIMARY KEY, embedding BLOB NOT NULL)",
    "CREATE TABLE tombstones (seq INTEGER PRIMARY KEY AUTOINCREMENT, collection INTEGER NOT NULL, pk INTEGER NOT NULL)",
    "CREATE INDEX tombstones_by_collection ON tombstones (collection)",
    "CREATE TRIGGER bury AFTER DELETE ON records BEGIN "
    "INSERT INTO tombstones (collection, pk) VALUES (old.collection, old.pk); "
    "DELETE FROM vectors WHERE pk = old.pk; END",
    f"PRAGMA application_id = {APPLICATION_ID}",
    *UPGRADE,
)
SEARCHED = (
    # A filter by namespace reads this index alone, not the rows.
    "CREATE INDEX IF NOT EXISTS records_by_namespace ON records (collection, namespace, kind)",
    "CREATE TABLE IF NOT EXISTS snapshots (name TEXT PRIMARY KEY, collection INTEGER NOT NULL, token TEXT NOT NULL) "
    "WITHOUT ROWID",
    # No version of ldot-milvus makes such changes. Where someone does, no snapshot counts any more.
    "CREATE TRIGGER IF NOT EXISTS vectors_changed AFTER UPDATE ON vectors BEGIN DELETE FROM snapshots; END",
    "CREATE TRIGGER IF NOT EXISTS rows_changed AFTER UPDATE OF pk, collection, kind ON records BEGIN "
    "DELETE FROM snapshots; END",
)
"""What the first snapshot adds to a file. Versions of ldot-milvus without snapshots ignore it."""

_FIELDS = "id, kind, namespace, source, caption, width, height, metadata"

Where = tuple[str, list[Any]]
"""An SQL expression over the columns of ``records``, and its parameters."""


@dataclass(frozen=True)
class Collection:
    """A row of the table of collections.

    Attributes:
        id: random id.
        dim: dimension of the vectors.
        model: fingerprint of the model; None until a model is bound.
    """

    id: int
    dim: int
    model: str | None


class Transaction:
    """Operations inside one transaction of :class:`~ldot_milvus.stores.local.database.Database`.

    Args:
        connection: connection with an open transaction.
        path: path of the file, for messages.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._sql = connection
        self._path = path

    def names(self) -> list[str]:
        """Return the names of all collections, sorted."""
        return [name for (name,) in self._sql.execute("SELECT name FROM collections ORDER BY name")]

    def collection(self, name: str) -> Collection | None:
        """Return the collection of a name, or None."""
        row = self._sql.execute("SELECT id, dim, model FROM collections WHERE name = ?", (name,)).fetchone()
        return None if row is None else Collection(*row)

    def create(self, name: str, dim: int, model: str | None) -> Collection:
        """Create a collection with a name that is not in use."""
        collection = Collection(secrets.randbits(62), dim, model)
        self._sql.execute("INSERT INTO collections (id, name, dim, model) VALUES (?, ?, ?, ?)",
                          (collection.id, name, dim, model))  # fmt: skip
        self.set_properties(collection, {VERSION: str(SCHEMA_VERSION)})
        return collection

    def properties(self, collection: Collection) -> dict[str, str]:
        """Return the properties of a collection."""
        if version_of(self._sql) < 2:
            return {VERSION: "1"}
        selected = self._sql.execute("SELECT name, value FROM properties WHERE collection = ?", (collection.id,))
        return {VERSION: "1", **dict(selected)}

    def set_properties(self, collection: Collection, properties: Mapping[str, str]) -> None:
        """Set properties of a collection."""
        self._sql.executemany(
            "INSERT OR REPLACE INTO properties (collection, name, value) VALUES (?, ?, ?)",
            [(collection.id, name, value) for name, value in properties.items()],
        )

    def token(self, name: str) -> str | None:
        """Return the token of a snapshot, or None."""
        if not self._has_snapshots():
            return None
        row = self._sql.execute("SELECT token FROM snapshots WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_token(self, collection: Collection, name: str, token: str) -> None:
        """Set the token of a snapshot."""
        for statement in SEARCHED:
            self._sql.execute(statement)
        self._sql.execute("INSERT OR REPLACE INTO snapshots (name, collection, token) VALUES (?, ?, ?)",
                          (name, collection.id, token))  # fmt: skip

    def ids(self) -> set[int]:
        """Return the ids of all collections."""
        return {id for (id,) in self._sql.execute("SELECT id FROM collections")}

    def adopt(self, collection: Collection, model: str) -> None:
        """Set the model of a collection without one."""
        self._sql.execute("UPDATE collections SET model = ? WHERE id = ?", (model, collection.id))

    def drop(self, collection: Collection) -> None:
        """Delete a collection with all its rows."""
        self.delete(collection, ("1", []))
        self._sql.execute("DELETE FROM tombstones WHERE collection = ?", (collection.id,))
        self._sql.execute("DELETE FROM properties WHERE collection = ?", (collection.id,))
        if self._has_snapshots():
            self._sql.execute("DELETE FROM snapshots WHERE collection = ?", (collection.id,))
        self._sql.execute("DELETE FROM collections WHERE id = ?", (collection.id,))

    def rename(self, collection: Collection, name: str) -> None:
        """Rename a collection to a name that is not in use."""
        self._sql.execute("UPDATE collections SET name = ? WHERE id = ?", (name, collection.id))

    def upsert(self, collection: Collection, records: Sequence[Record], vectors: Array) -> None:
        """Write checked records; a row with the same vector and kind keeps its pk, so no index changes.

        Args:
            collection: the collection.
            records: records with different ids.
            vectors: their vectors, float32 (n, dim).
        """
        ids = _json([record.id for record in records])
        old = {
            id: (pk, kind, blob)
            for pk, id, kind, blob in self._sql.execute(
                "SELECT pk, id, kind, embedding FROM records JOIN vectors USING (pk) "
                "WHERE collection = ? AND id IN (SELECT value FROM json_each(?))",
                (collection.id, ids),
            )
        }
        blobs = [vector.tobytes() for vector in vectors.astype("<f4", copy=False)]
        changed = []
        for record, blob in zip(records, blobs, strict=True):
            pk, kind, old_blob = old.get(record.id, (None, None, None))
            if pk is not None and kind == record.kind and old_blob == blob:
                self._sql.execute(
                    "UPDATE records SET namespace = ?, source = ?, caption = ?, width = ?, height = ?, metadata = ? "
                    "WHERE pk = ?",
                    (record.namespace, record.source, record.caption, record.width, record.height,
                     metadata_json(record), pk),
                )  # fmt: skip
            else:
                changed.append((record, blob))
        replaced = _json([old[record.id][0] for record, _ in changed if record.id in old])
        self._sql.execute("DELETE FROM records WHERE pk IN (SELECT value FROM json_each(?))", (replaced,))
        for record, blob in changed:
            pk = self._sql.execute(
                f"INSERT INTO records (collection, {_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (collection.id, record.id, record.kind, record.namespace, record.source, record.caption,
                 record.width, record.height, metadata_json(record)),
            ).lastrowid  # fmt: skip
            self._sql.execute("INSERT INTO vectors (pk, embedding) VALUES (?, ?)", (pk, blob))

    def update(self, collection: Collection, records: Iterable[Record]) -> int:
        """Replace namespace, source, caption and metadata in place; return how many of the ids exist."""
        return self._sql.executemany(
            "UPDATE records SET namespace = ?, source = ?, caption = ?, metadata = ? WHERE collection = ? AND id = ?",
            [(r.namespace, r.source, r.caption, metadata_json(r), collection.id, r.id) for r in records],
        ).rowcount

    def delete(self, collection: Collection, where: Where) -> int:
        """Delete the rows that match, which leaves tombstones; return how many."""
        clause, params = where
        return self._sql.execute(
            f"DELETE FROM records WHERE collection = ? AND {clause}", [collection.id, *params]
        ).rowcount

    def count(self, collection: Collection, where: Where) -> int:
        """Return the number of rows that match."""
        clause, params = where
        row = self._sql.execute(
            f"SELECT count(*) FROM records WHERE collection = ? AND {clause}", [collection.id, *params]
        ).fetchone()
        return int(row[0])

    def select(
        self, collection: Collection, where: Where, *, with_embeddings: bool = False, tail: str = ""
    ) -> list[tuple[int, Record]]:
        """Return the (pk, record) pairs that match; ``tail`` is SQL that may order and limit them."""
        clause, params = where
        embedding, join = ("embedding", "JOIN vectors USING (pk)") if with_embeddings else ("NULL", "")
        selected = self._sql.execute(
            f"SELECT pk, {embedding}, {_FIELDS} FROM records {join} WHERE collection = ? AND {clause} {tail}",
            [collection.id, *params],
        )
        return [(row[0], self._record(row, collection.dim)) for row in selected]

    def pks(self, collection: Collection, kind: str, where: Where) -> list[int]:
        """Return the pks of the rows of one kind that match."""
        clause, params = where
        selected = self._sql.execute(
            f"SELECT pk FROM records WHERE collection = ? AND kind = ? AND {clause}", [collection.id, kind, *params]
        )
        return [pk for (pk,) in selected]

    def ids_of(self, pks: Iterable[int]) -> dict[int, str]:
        """Return the ids of rows by pk; rows that do not exist are left out."""
        selected = self._sql.execute("SELECT pk, id FROM records WHERE pk IN (SELECT value FROM json_each(?))",
                                 (_json(list(pks)),))  # fmt: skip
        return dict(selected)

    def by_pk(self, collection: Collection, pks: Iterable[int]) -> dict[int, Record]:
        """Return records without embeddings by pk; rows that do not exist are left out."""
        # Not by select(): with the collection in the condition, SQLite scans the whole collection.
        selected = self._sql.execute(
            f"SELECT pk, NULL, {_FIELDS} FROM records WHERE pk IN (SELECT value FROM json_each(?))", (_json(list(pks)),)
        )
        return {row[0]: self._record(row, collection.dim) for row in selected}

    def added(self, collection: Collection, kind: str, after: int, limit: int) -> tuple[list[int], Array]:
        """Return the pks and vectors, float32 (n, dim), of up to ``limit`` rows of a kind with a pk above ``after``."""
        selected = self._sql.execute(
            "SELECT pk, embedding FROM records LEFT JOIN vectors USING (pk) "
            "WHERE collection = ? AND kind = ? AND pk > ? ORDER BY pk LIMIT ?",
            (collection.id, kind, after, limit),
        ).fetchall()
        return [pk for pk, _ in selected], self._matrix(collection, [blob for _, blob in selected])

    def newest_pk(self, collection: Collection) -> int:
        """Return the highest pk of the rows of a collection; 0 without rows."""
        row = self._sql.execute("SELECT max(pk) FROM records WHERE collection = ?", (collection.id,)).fetchone()
        return int(row[0] or 0)

    def fingerprint(self, collection: Collection) -> tuple[int, int]:
        """Return the number of rows and the sum of their pks."""
        selected = self._sql.execute("SELECT count(*), sum(pk) FROM records WHERE collection = ?", (collection.id,))
        count, total = selected.fetchone()
        return int(count), int(total or 0)

    def last_pk(self) -> int:
        """Return the highest pk ever used in any collection."""
        row = self._sql.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
        return int(row[0]) if row else 0

    def vectors(self, collection: Collection, pks: Sequence[int]) -> Array:
        """Return vectors, float32 (n, dim), in ascending order of pk; rows that do not exist are left out."""
        selected = self._sql.execute(
            "SELECT embedding FROM vectors WHERE pk IN (SELECT value FROM json_each(?)) ORDER BY pk",
            (_json(list(pks)),),
        )
        return self._matrix(collection, [blob for (blob,) in selected])

    def removed(self, collection: Collection, after: int) -> list[int]:
        """Return the pks of the tombstones with a sequence number above ``after``."""
        selected = self._sql.execute(
            "SELECT pk FROM tombstones WHERE collection = ? AND seq > ?", (collection.id, after)
        )
        return [pk for (pk,) in selected]

    def last_tombstone(self, collection: Collection) -> int:
        """Return the highest sequence number of the collection's tombstones; 0 without tombstones."""
        row = self._sql.execute("SELECT max(seq) FROM tombstones WHERE collection = ?", (collection.id,)).fetchone()
        return int(row[0] or 0)

    def _record(self, row: Sequence[Any], dim: int) -> Record:
        _, blob, id, kind, namespace, source, caption, width, height, text = row
        try:
            metadata = json.loads(text)
        except ValueError as error:
            raise damaged(self._path, f"metadata of {id!r}") from error
        embedding = None if blob is None else self._vector(blob, dim)
        return Record(id, embedding, kind, namespace, source, caption, width, height, metadata)

    def _matrix(self, collection: Collection, blobs: list[bytes | None]) -> Array:
        checked = [self._checked(blob, collection.dim) for blob in blobs]
        return np.frombuffer(b"".join(checked), "<f4").astype(np.float32).reshape(-1, collection.dim)

    def _vector(self, blob: bytes | None, dim: int) -> Array:
        return np.frombuffer(self._checked(blob, dim), "<f4").astype(np.float32)

    def _has_snapshots(self) -> bool:
        tables = self._sql.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'snapshots'")
        return tables.fetchone() is not None

    def _checked(self, blob: bytes | None, dim: int) -> bytes:
        if blob is None:
            raise damaged(self._path, "a row without its vector")
        if len(blob) != 4 * dim:
            raise damaged(self._path, "a vector of the wrong length")
        return blob


def version_of(connection: sqlite3.Connection) -> int:
    """Return the version of the file's tables."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def damaged(path: Path, detail: str) -> StoreError:
    """Return the error for a file with damaged contents.

    Args:
        path: path of the file.
        detail: what is damaged.
    """
    return StoreError(
        f"{path} is damaged or not a SQLite file ({detail}): move it and its -wal file away and ingest again, "
        f"or recover its rows with: sqlite3 {path} .recover"
    )


def _json(value: list[Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
