"""The cache of pictures keeps what was used last within its limits, and never fails."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from ldot_milvus.serve.disk_cache import DiskCache


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("max_bytes", "max_files"), [(1000, 100), (10**6, 10)])
def test_both_limits_hold_and_the_last_stay(tmp_path: Path, max_bytes: int, max_files: int) -> None:
    cache = DiskCache(tmp_path / "cache", max_bytes=max_bytes, max_files=max_files)
    for number in range(50):
        cache.put(key(number), b"x" * 100)
        assert cache.get(key(0)) is not None  # is used all the time
        kept = files(cache.folder)
        assert len(kept) <= max_files
        assert sum(path.stat().st_size for path in kept) <= max_bytes
    assert cache.get(key(49)) == b"x" * 100
    assert cache.get(key(1)) is None


def test_files_outlive_the_process_and_count_towards_the_limits(tmp_path: Path) -> None:
    first = DiskCache(tmp_path / "cache")
    for number in range(20):
        first.put(key(number), b"x" * 100)
        os.utime(first._path(key(number)), (number, number))
    second = DiskCache(tmp_path / "cache", max_files=10)
    assert second.get(key(19)) == b"x" * 100
    assert second.get(key(0)) is None
    assert len(files(second.folder)) <= 10


def test_a_file_that_another_process_removed_is_a_miss(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache")
    cache.put(key(1), b"x")
    cache._path(key(1)).unlink()
    assert cache.get(key(1)) is None
    cache.put(key(1), b"y")
    assert cache.get(key(1)) == b"y"


def test_a_folder_that_cannot_be_made_is_replaced_by_a_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "cache")
    cache.put(key(1), b"x")
    assert cache.get(key(1)) == b"x"
    folder = cache.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    del cache
    assert not folder.exists()


def test_a_disk_that_fails_later_is_a_miss(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache")
    cache.folder.rmdir()
    cache.folder.write_text("no folder")
    cache.put(key(1), b"x")
    assert cache.get(key(1)) is None
