"""The SQLite file (in WAL mode) of a local store, which several processes and threads read and write."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldot_milvus.errors import StoreError
from ldot_milvus.stores.base import SCHEMA_VERSION
from ldot_milvus.stores.local.conditions import add_functions
from ldot_milvus.stores.local.transaction import APPLICATION_ID, SCHEMA, UPGRADE, Transaction, damaged, version_of

BUSY_SECONDS = 60.0


class Database:
    """One SQLite file, opened on first use, with one connection for each process, used by one thread at a time.

    Args:
        path: path of the file.

    Attributes:
        path: path of the file.
        lock: held by every transaction; it also protects data derived from the file, such as indexes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None  # device and inode, to notice that the file was replaced
        _databases.add(self)

    @contextmanager
    def reading(self) -> Iterator[Transaction | None]:
        """Start a read transaction, which sees one state of the file; None if the file does not exist.

        Raises:
            StoreError: the file cannot be read, or is not a store of this version.
        """
        with self.lock, _translated(self.path):
            connection = self._connect(create=False)
            if connection is None:
                yield None
                return
            with _transaction(connection, "BEGIN"):
                yield Transaction(connection, self.path)

    @contextmanager
    def writing(self, patience: float = BUSY_SECONDS) -> Iterator[Transaction]:
        """Start a write transaction, which is atomic; missing folders and files are created.

        Args:
            patience: seconds to wait for another process's write.

        Raises:
            StoreError: the file cannot be written, or is not a store of this version.
        """
        with self.lock, _translated(self.path):
            connection = self._connect(create=True)
            assert connection is not None
            connection.execute(f"PRAGMA busy_timeout = {round(1000 * patience)}")
            with _transaction(connection, "BEGIN IMMEDIATE"):
                if version_of(connection) < SCHEMA_VERSION:  # with the first write; its collections keep their version
                    for statement in UPGRADE:
                        connection.execute(statement)
                yield Transaction(connection, self.path)

    def check_writable(self) -> None:
        """Write to the file in a transaction that is not committed; a file that does not exist is not created.

        Raises:
            StoreError: the file cannot be written.
        """
        with self.lock, _translated(self.path):
            connection = self._connect(create=False)
            if connection is None:
                return
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.execute("CREATE TABLE written_by_ldot_doctor (a)")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connection; the next transaction opens another."""
        with self.lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _connect(self, create: bool) -> sqlite3.Connection | None:
        try:
            stat = os.stat(self.path)
            on_disk = (stat.st_dev, stat.st_ino)
        except (FileNotFoundError, NotADirectoryError):
            on_disk = None
        if self._connection is not None and on_disk == self._opened:
            return self._connection
        self.close()  # the file was deleted or replaced: writes to the old one would be lost
        if on_disk is None and not create:
            return None
        if create:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # A finished commit survives a power cut.
            connection.execute("PRAGMA synchronous = FULL")
            add_functions(connection)
            if not self._is_ours(connection):
                if not create:
                    connection.close()
                    return None
                self._initialise(connection)
            stat = os.stat(self.path)
        except BaseException:
            connection.close()
            raise
        self._connection, self._opened = connection, (stat.st_dev, stat.st_ino)
        return connection

    def _is_ours(self, connection: sqlite3.Connection) -> bool:
        """Return True for a store, False for an empty file.

        Raises:
            StoreError: the store is of a newer version, or the database belongs to another program.
        """
        application, version, tables = connection.execute(
            "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master) "
            "FROM pragma_application_id, pragma_user_version"
        ).fetchone()
        if application == 0 and version == 0 and tables == 0:
            return False
        if application != APPLICATION_ID:
            raise StoreError(f"{self.path} is not a store of ldot-milvus but another program's database: "
                             "choose another folder")  # fmt: skip
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} was made by a newer ldot-milvus (store version {version}; this one reads up to "
                f"{SCHEMA_VERSION}): upgrade ldot-milvus, or choose another folder"
            )
        return True

    def _initialise(self, connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                # SQLite itself does not wait when two processes switch a new file to WAL at once.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        with _transaction(connection, "BEGIN IMMEDIATE"):
            if not self._is_ours(connection):
                for statement in SCHEMA:
                    connection.execute(statement)


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors, such as a full disk, SQLite has already rolled back.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn exceptions of SQLite and the file system into a StoreError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        message = str(error)
        if "not a database" in message or "malformed" in message or "decode to UTF-8" in message:
            raise damaged(path, message) from error
        if "locked" in message or "busy" in message:
            raise StoreError(
                f"{path} was locked by another process for more than {BUSY_SECONDS:g} s: try again when its write has "
                "finished"
            ) from error
        if "readonly" in message or "unable to open" in message:
            raise _not_writable(path, message) from error
        if "full" in message:
            raise StoreError(f"no space left for {path}: free some space and try again; nothing was written") from error
        raise StoreError(f"cannot use {path} ({message}): check its disk and permissions") from error
    except OSError as error:
        raise _not_writable(path, error.strerror or str(error)) from error


def _not_writable(path: Path, detail: str) -> StoreError:
    return StoreError(
        f"cannot open {path} ({detail}): the folder and its files must be writable, even for reading, because SQLite "
        "keeps its log beside the file; change the permissions or choose another folder"
    )


# A connection must not survive a fork: SQLite would lose its file locks, and the child's exit could undo the parent's
# writes. Every connection is closed before the fork, while its lock is held, and opened again on next use.
_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_forking: list[Database] = []


def _before_fork() -> None:
    held = sorted(_databases, key=id)
    for database in held:
        database.lock.acquire()
        database.close()
    _forking.extend(held)


def _after_fork() -> None:
    held = _forking[:]
    _forking.clear()  # before the locks are released: another thread may wait for them to fork too
    for database in held:
        database.lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
