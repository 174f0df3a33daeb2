"""Journal in a SQLite file, for the workers of one machine.

The file is not in WAL mode: SQLite cannot open a WAL file while the disk is full, not even for reading.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import override

from ldot_milvus.errors import StoreError
from ldot_milvus.ingest.journal.base import DAYS_KEPT, FailedItem, Journal, Progress, Run, Sums, folded
from ldot_milvus.ingest.target import Target
from ldot_milvus.stores.writing import check_folder

_APPLICATION_ID = 0x4C444F4A  # "LDOJ"
_VERSION = 1
_BUSY_SECONDS = 60.0
_DONE, _SPLIT = 1, 2
_ALL = ""  # the run whose sums are those of all runs

_SCHEMA = f"""
CREATE TABLE runs (id TEXT PRIMARY KEY, task TEXT NOT NULL, target TEXT NOT NULL, items INTEGER NOT NULL,
                   started REAL NOT NULL, trouble TEXT NOT NULL DEFAULT '');
CREATE TABLE chunks (run TEXT NOT NULL, chunk TEXT NOT NULL, begun INTEGER NOT NULL DEFAULT 0,
                     ended INTEGER NOT NULL DEFAULT 0, changed REAL NOT NULL, PRIMARY KEY (run, chunk)) WITHOUT ROWID;
CREATE TABLE sums (run TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (run, name)) WITHOUT ROWID;
CREATE TABLE failures (key TEXT PRIMARY KEY, run TEXT NOT NULL, time REAL NOT NULL, item TEXT NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
"""


class SqliteJournal(Journal):
    """Opens the file for each call, so that no connection survives a fork; a chunk needs two calls.

    Args:
        path: path of the file; the file and its folder are created at the first write.
    """

    def __init__(self, path: str) -> None:
        self.address = path
        self._path = Path(path)

    @override
    def start(self, run: Run) -> None:
        with self._writing() as sql:
            old = "(SELECT id FROM runs WHERE started < ?)"
            before = time.time() - DAYS_KEPT * 86_400
            for table, column in (("chunks", "run"), ("sums", "run"), ("runs", "id")):
                sql.execute(f"DELETE FROM {table} WHERE {column} IN {old}", (before,))
            sql.execute(
                "INSERT INTO runs (id, task, target, items, started) VALUES (?, ?, ?, ?, ?)",
                (run.id, run.task, json.dumps(run.target.to_dict()), run.items, run.started),
            )

    @override
    def begin(self, run_id: str, chunk_id: str) -> int:
        with self._writing() as sql:
            sql.execute(
                "INSERT INTO chunks (run, chunk, begun, changed) VALUES (?, ?, 1, ?) "
                "ON CONFLICT (run, chunk) DO UPDATE SET begun = begun + 1, changed = excluded.changed",
                (run_id, chunk_id, time.time()),
            )
            begun, ended = sql.execute(
                "SELECT begun, ended FROM chunks WHERE run = ? AND chunk = ?", (run_id, chunk_id)
            ).fetchone()
        return 0 if ended else int(begun)

    @override
    def give_back(self, run_id: str, chunk_id: str) -> None:
        with self._writing() as sql:
            sql.execute("UPDATE chunks SET begun = max(begun - 1, 0) WHERE run = ? AND chunk = ?", (run_id, chunk_id))

    @override
    def end(
        self, run_id: str, chunk_id: str, sums: Sums, failed: Sequence[FailedItem] = (), succeeded: Sequence[str] = ()
    ) -> bool:
        with self._writing() as sql:
            first = sql.execute(
                "INSERT INTO chunks (run, chunk, ended, changed) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (run, chunk) DO UPDATE SET ended = excluded.ended, changed = excluded.changed "
                "WHERE ended = 0",
                (run_id, chunk_id, _DONE if sums else _SPLIT, time.time()),
            ).rowcount
            sql.execute("UPDATE runs SET trouble = '' WHERE id = ? AND trouble != ''", (run_id,))
            if not first:
                return False
            known = [name for (name,) in sql.execute("SELECT name FROM sums WHERE run = ?", (_ALL,))]
            counted = folded(sums, known)
            sql.executemany(
                "INSERT INTO sums (run, name, value) VALUES (?, ?, ?) "
                "ON CONFLICT (run, name) DO UPDATE SET value = value + excluded.value",
                [(of, name, value) for of in (run_id, _ALL) for name, value in counted.items()],
            )
            for item in failed:
                old = sql.execute("SELECT item FROM failures WHERE key = ?", (item.key,)).fetchone()
                item = item.after(None if old is None else FailedItem.from_json(old[0]))
                sql.execute(
                    "INSERT OR REPLACE INTO failures (key, run, time, item) VALUES (?, ?, ?, ?)",
                    (item.key, item.run_id, item.time, item.to_json()),
                )
            _delete(sql, succeeded)
            return True

    @override
    def ended(self, run_id: str) -> dict[str, bool]:
        with self._reading() as sql:
            if sql is None:
                return {}
            records = sql.execute("SELECT chunk, ended FROM chunks WHERE run = ? AND ended > 0", (run_id,))
            return {chunk: state == _SPLIT for chunk, state in records}

    @override
    def note_trouble(self, run_id: str, trouble: str) -> None:
        with self._writing() as sql:
            sql.execute("UPDATE runs SET trouble = ? WHERE id = ?", (trouble, run_id))

    @override
    def progress(self, run_id: str) -> Progress | None:
        with self._reading() as sql:
            record = (
                None
                if sql is None
                else sql.execute(f"SELECT {_RUN}, trouble FROM runs WHERE id = ?", (run_id,)).fetchone()
            )
            if sql is None or record is None:
                return None
            working, changed = sql.execute(
                "SELECT coalesce(sum(begun > 0 AND NOT ended), 0), max(changed) FROM chunks WHERE run = ?", (run_id,)
            ).fetchone()
            return Progress(_run(record), _sums(sql, run_id), working, changed or record[4], record[5])

    @override
    def runs(self) -> list[Run]:
        with self._reading() as sql:
            records = [] if sql is None else sql.execute(f"SELECT {_RUN} FROM runs ORDER BY started DESC").fetchall()
        return [_run(record) for record in records]

    @override
    def failures(self, run_id: str | None = None) -> list[FailedItem]:
        with self._reading() as sql:
            if sql is None:
                return []
            records = sql.execute(
                "SELECT item FROM failures WHERE ? IS NULL OR run = ? ORDER BY time, rowid", (run_id, run_id)
            )
            return [FailedItem.from_json(text) for (text,) in records]

    @override
    def clear(self, keys: Sequence[str]) -> int:
        with self._writing() as sql:
            return _delete(sql, keys)

    @override
    def totals(self) -> Sums:
        with self._reading() as sql:
            return {} if sql is None else _sums(sql, _ALL)

    @override
    def check_writable(self) -> None:
        remedy = "check its owner, or set LDOT_RESULT_BACKEND to another file or to a Redis server"
        check_folder(os.path.dirname(self.address), f"the journal {self.address}", remedy)
        with self._reading() as sql:
            if sql is not None:
                sql.execute("BEGIN IMMEDIATE")
                try:
                    sql.execute("CREATE TABLE written_by_ldot_doctor (a)")
                finally:
                    sql.execute("ROLLBACK")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._explained():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect("rwc")) as sql:
                _check(sql, self._path, create=True)
                sql.execute("BEGIN IMMEDIATE")
                try:
                    yield sql
                    sql.execute("COMMIT")
                except BaseException:
                    if sql.in_transaction:
                        sql.execute("ROLLBACK")
                    raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """Yield a connection, or None if the journal does not exist; nothing is created."""
        with self._explained():
            if not os.path.exists(self._path):
                yield None
                return
            with closing(self._connect("rw")) as sql:
                yield sql if _check(sql, self._path, create=False) else None

    def _connect(self, mode: str) -> sqlite3.Connection:
        uri = f"{self._path.absolute().as_uri()}?mode={mode}"
        return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"the journal {self.address} cannot be used ({error}): check its disk and permissions, or set "
                "LDOT_RESULT_BACKEND to another file or to a Redis server"
            ) from error


_RUN = "id, task, target, items, started"


def _run(record: Sequence[Any]) -> Run:
    id, task, target, items, started = record[:5]
    return Run(id, task, Target.from_dict(json.loads(target)), items, started)


def _sums(sql: sqlite3.Connection, run_id: str) -> Sums:
    return dict(sql.execute("SELECT name, value FROM sums WHERE run = ?", (run_id,)))


def _delete(sql: sqlite3.Connection, keys: Sequence[str]) -> int:
    if not keys:
        return 0
    return sql.execute(
        "DELETE FROM failures WHERE key IN (SELECT value FROM json_each(?))", (json.dumps(list(keys)),)
    ).rowcount


def _check(sql: sqlite3.Connection, path: Path, *, create: bool) -> bool:
    """Return whether the tables exist; create them if asked to.

    Raises:
        StoreError: the file belongs to another program or version.
    """
    identity = _identity(sql)
    if identity == (0, 0):
        if not create:
            return False
        sql.execute("BEGIN IMMEDIATE")
        if _identity(sql) == (0, 0):  # no other process has created them since
            for statement in _SCHEMA.split(";\n"):
                sql.execute(statement)
        sql.execute("COMMIT")
        identity = _identity(sql)
    if identity != (_APPLICATION_ID, _VERSION):
        raise StoreError(
            f"{path} is not a journal of this version of ldot-milvus: choose another file with LDOT_RESULT_BACKEND"
        )
    return True


def _identity(sql: sqlite3.Connection) -> tuple[int, int]:
    application, version = sql.execute(
        "SELECT application_id, user_version FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    return application, version
