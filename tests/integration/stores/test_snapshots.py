"""Snapshots of the local store's indexes: who reads what, the same results, and all that makes a snapshot lie."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldot_milvus.stores import Record
from ldot_milvus.stores.base import Array, Filter
from ldot_milvus.stores.index_spec import IndexSpec
from ldot_milvus.stores.local import collection_index, indexes, snapshots
from ldot_milvus.stores.local.segments import Segments
from ldot_milvus.stores.local.store import FaissStore
from ldot_milvus.stores.local.transaction import Transaction

DIM = 16
ROWS = 400
KINDS = ("FLAT", "HNSW", "IVF_FLAT:nlist=8,nprobe=8", "IVF_SQ8:nlist=8,nprobe=8")
QUERIES = np.random.default_rng(1).normal(size=(5, DIM)).astype(np.float32)
Hits = list[list[tuple[str, float]]]


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write snapshots, cells and graphs of few rows."""
    monkeypatch.setattr(collection_index, "SAVED_FROM", 50)
    monkeypatch.setattr(collection_index, "CELL_ROWS", 8)
    monkeypatch.setattr(collection_index, "FEWEST_CELLS", 2)
    monkeypatch.setattr(indexes, "GRAPH_COST", 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the pks whose vectors are read to build or to continue an index."""
    read: list[int] = []
    added = Transaction.added

    def counted(*arguments: Any) -> tuple[list[int], Array]:
        pks, vectors = added(*arguments)
        read.extend(pks)
        return pks, vectors

    monkeypatch.setattr(Transaction, "added", counted)
    return read


def rows(first: int, count: int, seed: int = 0) -> list[Record]:
    random = np.random.default_rng(seed + first)
    return [
        Record(f"r{first + n:05}", random.normal(size=DIM).astype(np.float32), "text" if n % 50 == 49 else "image",
               namespace=f"n{n % 10}", width=n)
        for n in range(count)
    ]  # fmt: skip


def opened(folder: Path, spec: str = "FLAT") -> FaissStore:
    return FaissStore(folder, "photos", IndexSpec.parse(spec))


def answers(store: FaissStore, **arguments: Any) -> Hits:
    found = store.search(QUERIES, 10, **arguments)
    return [[(match.record.id, match.score) for match in one] for one in found]


def assert_same(found: Hits, expected: Hits) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose([score for _, score in one], [score for _, score in other], rtol=1e-5, atol=1e-6)
        # Rows whose scores differ by rounding alone may change places.
        apart = np.diff([score for _, score in other], prepend=np.inf, append=-np.inf) < -1e-4
        assert all(
            found_id == id for n, ((found_id, _), (id, _)) in enumerate(zip(one, other, strict=True))
            if apart[n] and apart[n + 1] and n + 1 < len(other)
        )  # fmt: skip


def without_snapshots(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spec: str = "FLAT", filters: tuple[Filter | None, ...] = (None,)
) -> Hits:
    """Search a copy of the database alone."""
    copy = folder.with_name(f"{folder.name}-alone")
    copy.mkdir()
    for path in folder.glob("store.sqlite*"):
        if ".index" not in path.name:
            shutil.copy(path, copy)
    with monkeypatch.context() as patch, opened(copy, spec) as store:
        patch.setattr(collection_index, "SAVED_FROM", 10**9)
        found = [hits for filter in filters for hits in answers(store, filter=filter)]
    shutil.rmtree(copy)
    return found


def filled(folder: Path, spec: str = "FLAT", count: int = ROWS) -> Path:
    """Make a store and its snapshots; return the one of its images."""
    with opened(folder, spec) as store:
        store.upsert(rows(0, count))
        answers(store)
    return snapshot(folder)


def snapshot(folder: Path) -> Path:
    [path] = folder.glob("store.sqlite-*-image.index")
    return path


@pytest.mark.parametrize("spec", KINDS)
def test_a_new_process_reads_no_row_that_a_snapshot_has(
    spec: str, folder: Path, rows_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(folder, spec)
    expected = without_snapshots(folder, monkeypatch, spec)
    rows_read.clear()
    with opened(folder, spec) as store:
        assert_same(answers(store), expected)
        assert rows_read == []
        assert isinstance(store._index and store._index._indexes["image"], Segments)
        store.upsert(rows(ROWS, 3))
        answers(store)
        assert len(rows_read) == 3
    rows_read.clear()
    with opened(folder, spec) as store:
        assert {hit for hits in answers(store, kind="text") for hit, _ in hits} == {
            f"r{n:05}" for n in range(49, ROWS, 50)
        }
        assert len(rows_read) == 3


@pytest.mark.parametrize("spec", KINDS)
def test_a_snapshot_with_too_few_rows_is_written_again_meanwhile(
    spec: str, folder: Path, rows_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(folder, spec)
    go_on = threading.Event()
    write = snapshots.write

    def wait(*arguments: Any) -> Any:
        assert go_on.wait(60)
        return write(*arguments)

    monkeypatch.setattr(snapshots, "write", wait)
    with opened(folder, spec) as store:
        store.upsert(rows(ROWS, 100))
        store.delete([f"r{n:05}" for n in range(10)])
        answers(store)
        store.upsert(rows(ROWS + 100, 10))  # searches, additions and removals do not wait, and are not lost
        store.delete([f"r{n:05}" for n in range(395, 405)])
        expected = without_snapshots(folder, monkeypatch, spec)
        assert_same(answers(store), expected)
        go_on.set()
    rows_read.clear()
    with opened(folder, spec) as store:
        assert_same(answers(store), expected)
    assert len(rows_read) == 10


@pytest.mark.parametrize("spec", KINDS)
def test_random_changes_give_the_results_of_a_store_without_snapshots(
    spec: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stores on one folder, of which one or the other is opened anew; equal vectors; filters."""
    random = np.random.default_rng(KINDS.index(spec))
    stores = [opened(folder, spec), opened(folder, spec)]
    stores[0].upsert(rows(0, 200))
    next_row, saved = 200, set()
    for _ in range(12):
        store = stores[random.integers(2)]
        alive = [record.id for record in store.iterate()]
        match random.integers(4):
            case 0:
                added = rows(next_row, int(random.integers(1, 60)))
                next_row += len(added)
                twins = store.get(alive[:2], with_embeddings=True)
                store.upsert(added + [Record(f"t{next_row}{n}", twin.embedding) for n, twin in enumerate(twins)])
            case 1:
                store.upsert(rows(int(random.integers(100)), 20, seed=int(random.integers(1, 99))))  # other vectors
            case 2:
                store.delete(random.choice(alive, size=min(len(alive) - 20, 25), replace=False).tolist())
            case _:
                n = random.integers(2)
                stores[n].close()
                stores[n] = opened(folder, spec)
        filters = (None, {"namespace": "n3"}, {"width": {"$lt": 40}})
        expected = without_snapshots(folder, monkeypatch, filters=filters)
        for store in stores:
            assert_same([hits for filter in filters for hits in answers(store, filter=filter)], expected)
        saved.update(path.stat().st_ino for path in folder.glob("*.index"))
    assert saved


def overwritten(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 0x40]))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-500]),
    "cut in the vectors": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "another file": lambda path: path.write_bytes(b"x" * 5000),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "its first byte": lambda path: overwritten(path, 0),
    "a vector": lambda path: overwritten(path, 2000),
    "a pk": lambda path: overwritten(path, ROWS * DIM * 4 + 300),
    "its header": lambda path: overwritten(path, -60),
    "its last byte": lambda path: overwritten(path, -1),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_snapshot_is_written_again(
    damage: Callable[[Path], object], folder: Path, rows_read: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    path = filled(folder)
    with opened(folder) as store:
        expected = answers(store)
    damage(path)
    with opened(folder) as store:
        assert answers(store) == expected
    assert "is damaged" in caplog.text
    rows_read.clear()
    with opened(folder) as store:
        assert answers(store) == expected
    assert rows_read == []


def test_a_lost_snapshot_and_one_of_another_time_or_store_do_not_count(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(folder)
    older = shutil.copy(path, tmp_path / "older")
    other = filled(tmp_path / "other", count=ROWS - 100)
    with opened(folder) as store:
        store.upsert(rows(0, ROWS, seed=5))
        answers(store)
        store.upsert(rows(ROWS, ROWS))
        answers(store)
    for copied in (older, other):
        shutil.copy(copied, path)
        with opened(folder) as store:
            assert_same(answers(store), without_snapshots(folder, monkeypatch))
    path.unlink()
    with opened(folder) as store:
        assert_same(answers(store), without_snapshots(folder, monkeypatch))
    assert path.exists()


def backup(folder: Path, to: Path) -> None:
    to.mkdir()
    with sqlite3.connect(folder / "store.sqlite") as source, sqlite3.connect(to / "store.sqlite") as target:
        source.backup(target)


@pytest.mark.parametrize("before", [True, False], ids=["before any snapshot", "between two snapshots"])
def test_an_older_database_does_not_believe_a_newer_snapshot(
    before: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pks are given again after the restore, to other vectors, as many: numbers of rows alone would not show it."""
    with opened(folder) as store:
        store.upsert(rows(0, 200))
        if not before:
            answers(store)
    backup(folder, tmp_path / "backup")
    with opened(folder) as store:
        store.upsert(rows(200, 200))
        answers(store)
    for path in folder.glob("store.sqlite*"):
        if ".index" not in path.name:
            path.unlink()
    shutil.copy(tmp_path / "backup" / "store.sqlite", folder)
    with opened(folder) as store:
        store.upsert(rows(200, 200, seed=9))
        assert_same(answers(store), without_snapshots(folder, monkeypatch))


def test_a_copied_folder_keeps_its_snapshots(folder: Path, tmp_path: Path, rows_read: list[int]) -> None:
    filled(folder)
    shutil.copytree(folder, tmp_path / "copy")
    rows_read.clear()
    with opened(folder) as store, opened(tmp_path / "copy") as copy:
        assert answers(store) == answers(copy)
    assert rows_read == []


@pytest.mark.parametrize(
    "statements",
    [
        ["UPDATE vectors SET embedding = (SELECT embedding FROM vectors WHERE pk = 3) WHERE pk > 300"],
        ["UPDATE records SET kind = 'text' WHERE pk > 300"],
        ["DROP TRIGGER bury", "DELETE FROM records WHERE pk > 300"],
    ],
    ids=["vectors", "kinds", "rows without tombstones"],
)
def test_what_another_program_changes_is_found(
    statements: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(folder)
    connection = sqlite3.connect(folder / "store.sqlite")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    with opened(folder) as store:
        assert_same(answers(store), without_snapshots(folder, monkeypatch))


def test_without_a_place_for_it_each_process_builds_its_own_index(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(folder)
    expected = without_snapshots(folder, monkeypatch)
    path.unlink()
    path.with_name(f"{path.name}.tmp").mkdir()
    with caplog.at_level(logging.INFO), opened(folder) as store:
        assert answers(store) == answers(store) == expected
    assert caplog.text.count("no snapshot of") == 1
    path.with_name(f"{path.name}.tmp").rmdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with caplog.at_level(logging.INFO), opened(folder) as store:
        assert answers(store) == expected
    assert "of disk are not free" in caplog.text
    assert not list(folder.glob("*image.index*"))


def test_a_replaced_collection_leaves_no_snapshot(folder: Path) -> None:
    old = filled(folder)
    with opened(folder) as store:
        successor = store.successor()
        successor.upsert(rows(0, 100))
        store.replace_by(successor)
        assert not old.exists()
        answers(store)
    assert snapshot(folder) != old


SEARCH = """
import os, signal, sys
import numpy as np
from ldot_milvus.stores.local import collection_index, snapshots, snapshot_file
from ldot_milvus.stores.local.store import FaissStore
from ldot_milvus.stores.index_spec import IndexSpec
collection_index.SAVED_FROM = 50
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
{before}
store = FaissStore(sys.argv[1], "photos", IndexSpec.parse("FLAT"))
store.search(np.ones((1, 16), np.float32), 3)
store.search(np.ones((1, 16), np.float32), 3)
{after}
"""
DEATHS = ("snapshot_file._sums = die", "os.fsync = die", "os.replace = die", "snapshots.tidy = die")


def started(folder: Path, before: str = "", after: str = "") -> subprocess.Popen[str]:
    code = SEARCH.format(before=before, after=after)
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("death", DEATHS)
def test_kill_9_while_a_snapshot_is_written(
    death: str, folder: Path, rows_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder) as store:
        store.upsert(rows(0, ROWS))
    with started(folder, death) as process:
        assert process.wait() == -signal.SIGKILL
    expected = without_snapshots(folder, monkeypatch)
    with opened(folder) as store:
        assert_same(answers(store), expected)
    rows_read.clear()
    with opened(folder) as store:
        assert_same(answers(store), expected)
    assert rows_read == []
    assert not list(folder.glob("*.tmp"))


def test_processes_that_write_a_snapshot_at_once(
    folder: Path, rows_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder) as store:
        store.upsert(rows(0, ROWS))
    processes = [started(folder) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    for process in processes:
        process.communicate()
    with opened(folder) as store:
        assert_same(answers(store), without_snapshots(folder, monkeypatch))
    temporary = snapshot(folder).with_name(f"{snapshot(folder).name}.tmp")
    snapshot(folder).unlink()
    with temporary.open("wb") as other:  # another process is writing
        fcntl.flock(other, fcntl.LOCK_EX)
        with opened(folder) as store:
            expected = answers(store)
            assert not list(folder.glob("*image.index"))
            other.close()
            assert answers(store) == expected
            assert snapshot(folder).exists()


def test_the_vectors_are_no_memory_of_their_own(folder: Path) -> None:
    """What a process holds for itself (Linux's Private_Dirty) does not grow by the vectors."""
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("needs Linux's /proc/self/smaps_rollup")
    path = snapshot_of_large_rows(folder)
    report = "print(open('/proc/self/smaps_rollup').read().split('Private_Dirty:')[1].split()[0])"
    measured = []
    for wide in (False, True):
        if wide:
            path.unlink()  # the process reads the rows, and writes no snapshot
        with started_wide(folder, report, saves=not wide) as process:
            measured.append(1024 * int(process.communicate()[0]))
    assert measured[1] - measured[0] > 0.7 * WIDE * WIDE_ROWS * 4


WIDE, WIDE_ROWS = 512, 4_000


def snapshot_of_large_rows(folder: Path) -> Path:
    random = np.random.default_rng(0)
    with opened(folder) as store:
        vectors = random.normal(size=(WIDE_ROWS, WIDE)).astype(np.float32)
        store.upsert([Record(f"{n}", vector) for n, vector in enumerate(vectors)])
        store.search(vectors[:1], 3)
    return snapshot(folder)


def started_wide(folder: Path, after: str, *, saves: bool) -> subprocess.Popen[str]:
    code = SEARCH.replace("(1, 16)", f"(1, {WIDE})")
    code = code.format(before="" if saves else "collection_index.SAVED_FROM = 10**9", after=after)
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
