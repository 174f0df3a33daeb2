"""Ingestion through a real Redis, a real RabbitMQ and a real worker process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from ldot_milvus import open_store
from ldot_milvus.errors import StoreError
from ldot_milvus.settings import Settings
from ldot_milvus.stores import Record
from ldot_milvus.workers.application import make_app
from ldot_milvus.workers.broker import check_broker, has_worker
from tests.conftest import Run
from tests.worker_process import Worker

pytestmark = pytest.mark.servers

Folder = Callable[[int], Path]


@pytest.fixture
def env(redis_url: str, tiny_model: str) -> dict[str, str]:
    return {"LDOT_BROKER": redis_url, "LDOT_MODEL": tiny_model, "LDOT_DEVICE": "cpu"}


@pytest.fixture
def worker(env: dict[str, str], tmp_path: Path) -> Iterator[Worker]:
    started = Worker(tmp_path, env, "--pool", "prefork", "--concurrency", "1")
    yield started
    started.stop()


def rows(folder: Path) -> dict[str, Record]:
    with open_store(f"faiss:{folder}", "images") as store:
        return {row.id: row for row in store.iterate(with_embeddings=True)}


@pytest.mark.slow
def test_the_same_ids_and_vectors_as_inline_all_made_after_the_fork(
    run: Run, env: dict[str, str], worker: Worker, photo_folder: Folder, tmp_path: Path
) -> None:
    """CUDA and gRPC do not survive a fork: the parent of a pool has not even loaded torch, its child has."""
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

    (child,) = worker.children()
    parent_maps, child_maps = (Path(f"/proc/{pid}/maps").read_text() for pid in (worker.process.pid, child))
    assert "libtorch" in child_maps
    for library in ("libtorch", "faiss", "grpc"):
        assert library not in parent_maps

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


@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.xdist_group("rabbitmq"))])
def test_not_waiting_and_waiting(
    run: Run, request: pytest.FixtureRequest, tiny_model: str, photo_folder: Folder, tmp_path: Path, broker: str
) -> None:
    """With either broker and a stub model: sent without waiting, then sent and waited for."""
    photo_folder(5)
    env = {"LDOT_BROKER": request.getfixturevalue(f"{broker}_url"), "LDOT_MODEL": tiny_model}
    sent = run("celery", "-A", "workers", "enqueue", "photos", "--no-wait", env=env)
    assert sent.returncode == 0, sent.stderr
    assert "added" not in sent.stdout
    assert "celery -A workers progress" in sent.stdout
    worker = Worker(tmp_path, {**env, "LDOT_TEST_FAULTS": "quick_model"}, "--pool", "solo", app="tests.faulty")
    try:
        deadline = time.monotonic() + 120
        while len(rows(tmp_path / "ldot-data")) < 5:
            assert time.monotonic() < deadline, worker.log.read_text()
            time.sleep(0.3)
        app = make_app(Settings(broker=env["LDOT_BROKER"]))
        assert has_worker(app, "ldot")
        assert has_worker(app, "ldot.changes")
        again = run("celery", "-A", "workers", "enqueue", "photos", "--chunk-size", "2", env=env)
        assert "Enqueued 5 photos in 3 chunks" in again.stdout
        assert "0 added, 0 updated, 5 unchanged, 0 failed" in again.stdout
    finally:
        worker.stop()


@pytest.mark.parametrize("address", ["redis://127.0.0.1:1/0", "amqp://guest:guest@127.0.0.1:1//"])
def test_a_broker_that_is_not_there_is_one_clear_line(
    run: Run, tiny_model: str, photo_folder: Folder, address: str
) -> None:
    photo_folder(1)
    done = run("celery", "-A", "workers", "enqueue", "photos", env={"LDOT_BROKER": address, "LDOT_MODEL": tiny_model})
    assert done.returncode == 2
    assert "broker" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.xdist_group("rabbitmq")
def test_a_broker_that_refuses_the_connection_is_one_clear_line(rabbitmq_url: str) -> None:
    """No such user or virtual host; the password is not printed."""
    place = urlsplit(rabbitmq_url)
    server = f"{place.hostname}:{place.port}"
    for url in (f"amqp://nobody:secret99@{server}//", f"amqp://{place.username}:{place.password}@{server}/none"):
        with pytest.raises(StoreError, match=r"refuses the connection .*check the user") as error:
            check_broker(url)
        assert "secret99" not in str(error.value)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.slow
def test_a_pool_whose_parent_has_used_the_model(
    run: Run, env: dict[str, str], photo_folder: Folder, tmp_path: Path
) -> None:
    photo_folder(12)
    more = {**env, "OMP_NUM_THREADS": "2", "LDOT_QUEUE": "preloaded"}
    worker = Worker(tmp_path, more, "--pool", "prefork", "--concurrency", "2", app="tests.preloaded")
    try:
        worker.wait_for("ready")
        queued = run("celery", "-A", "workers", "enqueue", "photos", "--chunk-size", "3", env=more)
    finally:
        worker.stop()
    assert "12 added, 0 updated, 0 unchanged, 0 failed" in queued.stdout, queued.stdout + queued.stderr
