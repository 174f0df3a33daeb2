"""Snapshots: files beside the database that keep the indexes of a collection for all processes.

SQLite stays the truth. A snapshot counts only while the database has its token, which is written in a transaction after
the rows that the snapshot was made of. So every copy of the database that has the token has these rows, and a copy from
before the snapshot has another token or none. A process that finds a snapshot missing, outdated or damaged reads all
rows, and writes the snapshot again.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ldot_milvus.stores.index_spec import AUTO, BUILD, SEARCH, IndexSpec
from ldot_milvus.stores.local.database import Database
from ldot_milvus.stores.local.indexes import RowIndex
from ldot_milvus.stores.local.library import gpus
from ldot_milvus.stores.local.segments import Segments
from ldot_milvus.stores.local.snapshot_file import UNREADABLE, Busy, Header, read, read_header, write
from ldot_milvus.stores.local.transaction import Collection, Transaction

try:
    import fcntl
except ImportError:  # Windows, which does not replace a mapped file either: there each process keeps its own index
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

SUFFIX = ".index"
PATIENCE = 1.0  # seconds to wait for another process's write


@dataclass(frozen=True)
class State:
    """What an index contains: the rows up to ``last_pk``, without those removed up to ``last_tombstone``."""

    last_pk: int
    last_tombstone: int


class Snapshots:
    """The snapshots of one collection for one index setting, one for each kind of rows.

    Args:
        database: the database; the snapshots are files beside it.
        collection: the collection.
        spec: index type and parameters, as set.
    """

    def __init__(self, database: Database, collection: Collection, spec: IndexSpec) -> None:
        self._database = database
        self._collection = collection
        self._spec = spec
        self._refused: set[str] = set()  # tokens

    def open(self, transaction: Transaction, kind: str) -> tuple[Segments, State] | None:
        """Return the index of one kind of rows, mapped, and its state; None if no snapshot counts."""
        header = None if self._spec.needs_gpu else self._header(transaction, kind)
        if header is None or (self._spec.index_type == AUTO and gpus()):
            return None
        path = self._path(kind)
        searching = SEARCH.get(header.index_type, {})
        own = {name: value for name, value in self._spec.params.items() if name in searching}
        spec = IndexSpec(header.index_type, {**header.params, **own})
        try:
            return Segments(path, read(path, spec, mapped=True)), State(header.last_pk, header.last_tombstone)
        except UNREADABLE as error:
            log.warning("%s is damaged (%s): the index is built from the rows again", path, error)
            self._refused.add(header.token)
            return None

    def refuse(self, transaction: Transaction) -> None:
        """Do not open the present snapshots again: they contradict the rows."""
        headers = [self._header(transaction, kind) for kind in ("image", "text")]
        self._refused.update(header.token for header in headers if header is not None)

    def is_newer(self, transaction: Transaction, kind: str, last_pk: int) -> bool:
        """Return whether another process has written a snapshot with rows after ``last_pk``."""
        header = self._header(transaction, kind)
        return header is not None and header.last_pk > last_pk

    def save(self, kind: str, load: Callable[[], RowIndex], state: State) -> None:
        """Write the snapshot of one kind, then its token.

        Args:
            kind: kind of the rows.
            load: returns an index in memory; may raise what this method raises.
            state: its state.

        Raises:
            Busy: another process writes this snapshot.
            OSError: the file cannot be written.
            RuntimeError: FAISS cannot write the file.
            StoreError: the token cannot be written.
        """
        path = self._path(kind)
        temporary = path.with_name(f"{path.name}.tmp")
        with _locked(temporary) as file:
            try:
                index = load()
                needed = 2 * len(index.pks) * (4 * self._collection.dim + 300)
                if shutil.disk_usage(path.parent).free < needed:  # rows need the space more than an index does
                    raise OSError(f"{needed / 1e6:,.0f} MB of disk are not free")
                header = write(file, temporary, index, secrets.token_hex(16), state.last_pk, state.last_tombstone)
                with self._database.writing(patience=PATIENCE) as transaction:
                    if self._collection.id not in transaction.ids() or state.last_pk > transaction.last_pk():
                        raise OSError("the collection was replaced")
                    transaction.set_token(self._collection, path.name, header.token)
                    os.replace(temporary, path)
                    tidy(self._database.path, transaction)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink()
                raise
        log.info("wrote %s: %d rows", path, header.rows)

    def _header(self, transaction: Transaction, kind: str) -> Header | None:
        """Return the header of a snapshot that counts, or None."""
        path = self._path(kind)
        token = transaction.token(path.name)
        if token is None or token in self._refused:
            return None
        try:
            header = read_header(path)
        except UNREADABLE as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("%s is damaged (%s): the index is built from the rows again", path, error)
            self._refused.add(token)
            return None
        return header if (header.token, header.dim) == (token, self._collection.dim) else None

    def _path(self, kind: str) -> Path:
        build = BUILD.get(self._spec.index_type, {})
        given = "".join(f"-{name}{value}" for name, value in sorted(self._spec.params.items()) if name in build)
        name = f"{self._collection.id:016x}-{self._spec.index_type}{given}-{kind}{SUFFIX}"
        return self._database.path.with_name(f"{self._database.path.name}-{name}")


def tidy(database: Path, transaction: Transaction) -> None:
    """Remove the snapshots of collections that the database no longer has.

    Args:
        database: path of the database.
        transaction: a transaction on it.
    """
    prefix, kept = f"{database.name}-", {f"{id:016x}" for id in transaction.ids()}
    with suppress(OSError):
        for path in database.parent.glob(f"{prefix}*{SUFFIX}*"):
            if path.name.removeprefix(prefix).partition("-")[0] not in kept:
                path.unlink()


@contextmanager
def _locked(temporary: Path) -> Iterator[IO[bytes]]:
    """Open a file that one process at a time writes. A file that a killed process left is written again.

    Raises:
        Busy: another process writes it.
    """
    with temporary.open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, however it ends
            except BlockingIOError:
                raise Busy from None
            # Between open and lock, another process may have given the file its final name.
            if not (temporary.exists() and os.path.samestat(os.fstat(file.fileno()), temporary.stat())):
                raise Busy
        yield file
