"""The local store on a full disk, and with inconsistent tables or copies of its file.

Damage, crashes, other writers and other models are in ``tests/integration/stores/test_local_store.py``;
docs/faults.md has the whole list.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ldot_milvus.errors import StoreError
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.sources import expand
from ldot_milvus.stores import Record
from ldot_milvus.stores.local.store import FaissStore
from tests.conftest import make_photo
from tests.small_disk import mounted

DIM = 8


def rows(first: int, count: int) -> list[Record]:
    rng = np.random.default_rng(first)
    return [Record(f"{first + n:05}", rng.normal(size=DIM).astype(np.float32)) for n in range(count)]


def found(store: FaissStore) -> set[str]:
    return {match.record.id for match in store.search(np.ones((1, DIM), np.float32), 1000)[0]}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MiB."""
    with mounted(tmp_path / "disk", "1500k") as folder:
        yield folder


def test_disk_full(small_disk: Path, tmp_path: Path, tiny_model: str) -> None:
    """``enqueue`` onto a small disk: one clear line; afterwards the store opens with all that was acknowledged.

    Region data, rows and the journal of the run share the disk, so that whichever is written last hits the limit.
    """
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(500):
        (photos / f"{n:04}.jpg").write_bytes(make_photo(n))
    address = f"faiss:{small_disk / 'store'}"
    settings = {"LDOT_STORE": address, "LDOT_COLLECTION": "photos", "LDOT_MODEL": tiny_model}
    done = subprocess.run(
        [str(Path(sys.executable).parent / "celery"), "-A", "workers", "enqueue", str(photos), "--chunk-size", "32"],
        env={**os.environ, **settings}, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode in (1, 2)
    assert "Traceback" not in output
    assert "full" in output or "no space left" in output
    with FaissStore(small_disk / "store", "photos") as store:
        kept = store.count()
        assert 0 < kept < 500
        ids = {row.id for row in store.iterate()}
        assert len(ids) == kept
        dim = store.dim
        assert dim is not None
        hits = store.search(np.ones((1, dim), np.float32), 2000)[0]
        assert {match.record.id for match in hits} == ids
    with sqlite3.connect(small_disk / "store" / "store.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    # With free space, the run is started again, and existing photos are not encoded again.
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    with FaissStore(small_disk / "store", "photos") as store:
        report = Ingestor(store, tiny_model).ingest(list(expand([str(photos)])))
        assert (report.unchanged, report.added, store.count()) == (kept, 500 - kept, 500)


def test_index_and_table_that_disagree_an_older_copy_of_the_file_is_put_back(tmp_path: Path) -> None:
    """The index in memory has rows that the file no longer has: the index is rebuilt."""
    folder = tmp_path / "store"
    with FaissStore(folder, "photos") as store:
        store.upsert(rows(0, 20))
        store.close()
        shutil.copytree(folder, tmp_path / "backup")
        store.upsert(rows(20, 20))
        assert len(found(store)) == 40
        for file in folder.iterdir():
            file.unlink()
        for file in (tmp_path / "backup").iterdir():
            shutil.copy(file, folder)
        assert found(store) == {record.id for record in rows(0, 20)}
        store.upsert(rows(50, 5))
        assert found(store) == {record.id for record in rows(0, 20) + rows(50, 5)}


def test_index_and_table_that_disagree_a_row_has_lost_its_vector(tmp_path: Path) -> None:
    """A row that no search could find is reported as damage."""
    folder = tmp_path / "store"
    with FaissStore(folder, "photos") as store:
        store.upsert(rows(0, 20))
    with sqlite3.connect(folder / "store.sqlite") as connection:
        connection.execute("DELETE FROM vectors WHERE pk = 7")
    with FaissStore(folder, "photos") as store:
        with pytest.raises(StoreError, match=r"damaged.*a row without its vector.*ingest again"):
            found(store)
        assert store.count() == 20  # what needs no vectors still works


def test_index_and_table_that_disagree_a_vector_has_lost_its_row(tmp_path: Path) -> None:
    """A vector without a row is never found, and no search fails."""
    folder = tmp_path / "store"
    with FaissStore(folder, "photos") as store:
        store.upsert(rows(0, 20))
    with sqlite3.connect(folder / "store.sqlite") as connection:
        connection.execute("INSERT INTO vectors SELECT 1000, embedding FROM vectors WHERE pk = 7")
    with FaissStore(folder, "photos") as store:
        assert len(found(store)) == store.count() == 20
