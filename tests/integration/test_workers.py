"""Ingestion through a real Redis and a real worker process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ldot_milvus import open_store
from ldot_milvus.stores import Record
from tests.conftest import Run

pytestmark = pytest.mark.servers

Folder = Callable[[int], Path]


@pytest.fixture
def env(redis_url: str, tiny_model: str) -> dict[str, str]:
    return {"LDOT_BROKER": redis_url, "LDOT_MODEL": tiny_model, "LDOT_DEVICE": "cpu"}


@pytest.fixture
def worker(env: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a folder of its own: what it is told must not hang on where it stands."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    log = (tmp_path / "worker.log").open("wb")
    celery = str(Path(sys.executable).parent / "celery")
    process = subprocess.Popen(
        [celery, "-A", "workers", "worker", "--pool", "solo", "--loglevel", "INFO"],
        cwd=place, env={**os.environ, **env}, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    yield process
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    log.close()


def rows(folder: Path) -> dict[str, Record]:
    with open_store(f"faiss:{folder}", "images") as store:
        return {row.id: row for row in store.iterate(with_embeddings=True)}


def test_the_same_ids_and_vectors_as_inline(
    run: Run, env: dict[str, str], worker: subprocess.Popen[bytes], photo_folder: Folder, tmp_path: Path
) -> None:
    folder = photo_folder(20)
    (folder / "bad.jpg").write_bytes(b"")
    command = ["celery", "-A", "workers", "enqueue", "photos", "--chunk-size", "6"]
    queued = run(*command, env=env)
    assert queued.returncode == 1, queued.stderr
    assert "Enqueued 21 photos in 4 chunks" in queued.stdout
    assert "20 added, 0 updated, 0 unchanged, 1 failed" in queued.stdout
    assert "bad.jpg: the file is empty" in queued.stderr
    again = run(*command, env=env)
    assert "0 added, 0 updated, 20 unchanged, 1 failed" in again.stdout

    inline_env = {**env, "LDOT_BROKER": "", "LDOT_STORE": f"faiss:{tmp_path / 'inline'}"}
    del inline_env["LDOT_BROKER"]
    inline = run(*command, env=inline_env)
    assert "in this process" in inline.stdout
    by_worker, by_hand = rows(tmp_path / "ldot-data"), rows(tmp_path / "inline")
    assert by_worker.keys() == by_hand.keys()
    assert len(by_hand) == 20
    for id, row in by_hand.items():
        np.testing.assert_allclose(by_worker[id].embedding, row.embedding, atol=1e-4)
        assert (by_worker[id].source, by_worker[id].width) == (row.source, row.width)


def test_not_waiting_returns_at_once(
    run: Run, env: dict[str, str], worker: subprocess.Popen[bytes], photo_folder: Folder, tmp_path: Path
) -> None:
    photo_folder(3)
    done = run("celery", "-A", "workers", "enqueue", "photos", "--no-wait", env=env)
    assert done.returncode == 0
    assert "added" not in done.stdout
    deadline = time.monotonic() + 120
    while len(rows(tmp_path / "ldot-data")) < 3:
        assert time.monotonic() < deadline, (tmp_path / "worker.log").read_text()
        time.sleep(0.3)


def test_a_broker_that_is_not_there_is_one_clear_line(run: Run, env: dict[str, str], photo_folder: Folder) -> None:
    photo_folder(1)
    done = run("celery", "-A", "workers", "enqueue", "photos", env={**env, "LDOT_BROKER": "redis://127.0.0.1:1/0"})
    assert done.returncode == 2
    assert "broker" in done.stderr
    assert "Traceback" not in done.stderr
