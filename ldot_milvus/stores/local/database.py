"""One SQLite file (WAL), the local store's truth, that several processes and threads read and write."""

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
from ldot_milvus.stores.local.transaction import APPLICATION_ID, SCHEMA, Transaction, damaged

BUSY_SECONDS = 60.0


class Database:
    """One SQLite file, opened at first use; one connection a process, used by one thread at a time.

    Attributes:
        lock: held by every transaction; what is kept in step with the file is changed under it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None  # device and inode, to notice a file that was replaced
        _databases.add(self)

    @contextmanager
    def reading(self) -> Iterator[Transaction | None]:
        """One consistent state of the file, or None where it does not exist yet; nothing is created."""
        with self.lock, _translated(self.path):
            connection = self._connect(create=False)
            if connection is None:
                yield None
                return
            with _transaction(connection, "BEGIN"):
                yield Transaction(connection, self.path)

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """A transaction that is kept as a whole or not at all; makes the folder and the file where they are missing."""
        with self.lock, _translated(self.path):
            connection = self._connect(create=True)
            assert connection is not None
            with _transaction(connection, "BEGIN IMMEDIATE"):
                yield Transaction(connection, self.path)

    def close(self) -> None:
        """Close the connection; the next use opens another."""
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
        self.close()  # the file was deleted or replaced: writing on would write into nothing
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
            # A commit that was acknowledged survives a power cut.
            connection.execute("PRAGMA synchronous = FULL")
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
        """True for a store that can be used, False for an empty file.

        Raises:
            StoreError: a newer version's store, or a database of something else.
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
                f"{self.path} was made by a newer ldot-milvus (store version {version}, this one reads up to "
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
                # SQLite does not wait by itself here when two processes switch a new file at once.
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
        # SQLite has rolled back by itself after some errors (a full disk).
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into a StoreError with the remedy."""
    try:
        yield
    except sqlite3.Error as error:
        message = str(error)
        if "not a database" in message or "malformed" in message or "decode to UTF-8" in message:
            raise damaged(path, message) from error
        if "locked" in message or "busy" in message:
            raise StoreError(
                f"{path} was locked by another process for more than {BUSY_SECONDS:g} s: try again when its write has "
                "ended"
            ) from error
        if "readonly" in message or "unable to open" in message:
            raise _not_writable(path, message) from error
        if "full" in message:
            raise StoreError(f"no space left for {path}: free some and try again; nothing was written") from error
        raise StoreError(f"cannot use {path}: {message}") from error
    except OSError as error:
        raise _not_writable(path, error.strerror or str(error)) from error


def _not_writable(path: Path, detail: str) -> StoreError:
    return StoreError(
        f"cannot open {path} ({detail}): the folder and its files have to be writable, for reading too, because SQLite "
        "keeps its log beside the file; change the permissions or choose another folder"
    )


# A connection must not cross a fork: SQLite would lose its file locks, and the child's exit could undo the parent's
# writes. Every connection is closed just before, while its lock is held, and opened again at its next use.
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
    _forking.clear()  # before the locks go: another thread may be waiting for them to fork too
    for database in held:
        database.lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
