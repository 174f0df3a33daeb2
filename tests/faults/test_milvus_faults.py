"""A Milvus server that is killed, unreachable, silent, protected, without a GPU, or has foreign collections."""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldot_milvus.errors import ModelMismatch, StoreError, UsageError
from ldot_milvus.stores import Record, open_store
from ldot_milvus.stores.index_spec import IndexSpec
from ldot_milvus.stores.milvus.messages import REQUEST_BYTES
from ldot_milvus.stores.milvus.probing import settle_index
from ldot_milvus.stores.milvus.store import MilvusStore
from tests.milvus_server import drop_all
from tests.servers.milvus_server import PackagedServer

pytestmark = [pytest.mark.xdist_group("milvus"), pytest.mark.servers]

DIM = 8


def rows(first: int, count: int) -> list[Record]:
    rng = np.random.default_rng(first)
    return [Record(f"{first + n:06d}", rng.normal(size=DIM).astype(np.float32)) for n in range(count)]


@pytest.fixture
def store(milvus_url: str) -> Iterator[MilvusStore]:
    opened = MilvusStore(milvus_url, f"f{secrets.token_hex(6)}")
    yield opened
    drop_all(opened)


# ---- a server that is killed


@pytest.mark.slow  # the same by one store alone; the ingestion below is in make test
def test_killed_in_the_middle_of_writing_and_started_again(tmp_path: Path) -> None:
    """Batches are sent while the server is killed and restarted: afterwards each row exists exactly once."""
    server = PackagedServer(tmp_path)
    try:
        address = server.start()
        store = MilvusStore(address, "photos", timeout=120)
        store.bind("model-a", DIM)
        batches = [rows(first, 20) for first in range(0, 800, 20)]
        killed = threading.Event()

        def kill_and_restart() -> None:
            time.sleep(1.0)
            server.kill()
            killed.set()
            time.sleep(1.0)
            server.start()

        thread = threading.Thread(target=kill_and_restart)
        thread.start()
        for batch in batches:
            while True:
                try:
                    store.upsert(batch)
                    break
                except StoreError:  # as a worker does, which tries the chunk again
                    time.sleep(0.5)
            time.sleep(0.05)
        thread.join()
        assert killed.is_set()
        assert store.count() == 800
        found = [row.id for row in store.iterate()]
        assert found == [f"{n:06d}" for n in range(800)]
        store.close()
    finally:
        server.stop()


@pytest.mark.slow
def test_killed_in_the_middle_of_an_ingestion(
    tmp_path: Path, tiny_model: str, photo_folder: Callable[[int], Path]
) -> None:
    """``enqueue`` of 80 photos survives a restart of the server, or is run again: each photo exists exactly once."""
    folder = photo_folder(80)
    server = PackagedServer(tmp_path / "server")
    try:
        address = server.start()
        settings = {"LDOT_STORE": address, "LDOT_MODEL": tiny_model, "LDOT_REGION_STORE": str(tmp_path / "regions")}
        command = [str(Path(sys.executable).parent / "celery"), "-A", "workers", "enqueue", str(folder),
                   "--chunk-size", "4"]  # fmt: skip
        options: dict[str, Any] = {"env": {**os.environ, **settings}, "cwd": tmp_path, "text": True}
        ingestion = subprocess.Popen(command, **options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        with MilvusStore(address, "images", timeout=60) as store:
            while store.count() < 8 and ingestion.poll() is None:
                time.sleep(0.1)
            assert ingestion.poll() is None, ingestion.communicate()[0]
            server.kill()
            time.sleep(1.0)
            server.start()
            printed, _ = ingestion.communicate(timeout=240)
            if ingestion.returncode:  # the server was unreachable for longer than the time-out
                assert "Traceback" not in printed
                subprocess.run(command, **options, check=True, timeout=240)
            assert store.count() == 80
            assert len({row.id for row in store.iterate()}) == 80
    finally:
        server.stop()


# ---- a server that does not answer as expected


def test_nobody_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(StoreError, match=f"127.0.0.1:{port} does not answer within 2 s.*LDOT_STORE"):
        MilvusStore(f"http://127.0.0.1:{port}", "photos", timeout=2).count()
    assert time.monotonic() - started < 10


def test_a_server_that_accepts_and_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        with pytest.raises(StoreError, match="does not answer within 2 s"):
            MilvusStore(f"http://127.0.0.1:{mute.getsockname()[1]}", "photos", timeout=2).count()
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_a_wrong_token(tmp_path: Path) -> None:
    server = PackagedServer(tmp_path, authorization=True)
    try:
        address = server.start()
        with MilvusStore(address, "photos", token="root:Milvus", timeout=60) as allowed:
            allowed.bind("model-a", DIM)
            allowed.check_writable()
            assert allowed.server.call("list_collections") == ["photos__1"]
            with MilvusStore(address, "others", token="root:Milvus", timeout=60) as none_yet:
                none_yet.check_writable()
                assert none_yet.server.call("list_collections") == ["photos__1"]
            allowed.server.call("create_user", "reader", "S3cretPw")
            allowed.server.call("create_role", "reader")
            for kind, right in (("Global", "DescribeCollection"), ("Collection", "IndexDetail"), ("Collection", "Load"),
                                ("Collection", "GetLoadState"), ("Collection", "Query")):  # fmt: skip
                allowed.server.call("grant_privilege", "reader", kind, right, "*")
            allowed.server.call("grant_role", "reader", "reader")
        with open_store(address.replace("//", "//reader:S3cretPw@"), "photos") as reading:
            assert reading.count() == 0
            assert "S3cretPw" not in reading.address
            with pytest.raises(StoreError, match=r"the user of LDOT_STORE_TOKEN has no right .*delete") as caught:
                reading.check_writable()
            assert "S3cretPw" not in str(caught.value)
        for token in (None, "root:wrong", "nobody:Milvus"):
            with pytest.raises(StoreError, match="refuses the token: set LDOT_STORE_TOKEN"):
                MilvusStore(address, "photos", token=token, timeout=5).count()
    finally:
        server.stop()


# ---- a collection that is not ours


def foreign(store: MilvusStore, metric: str, *, whole: bool) -> None:
    from pymilvus import DataType, MilvusClient

    from ldot_milvus.stores.milvus.schema import schema

    if whole:
        made = schema(DIM, "model-a")
    else:
        made = MilvusClient.create_schema()
        made.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
        made.add_field("embedding", DataType.FLOAT_VECTOR, dim=DIM)
    params = MilvusClient.prepare_index_params()
    params.add_index("embedding", index_type="FLAT", metric_type=metric)
    store.server.call("create_collection", store.collection, schema=made, index_params=params)


def test_a_collection_with_other_fields(store: MilvusStore) -> None:
    foreign(store, "IP", whole=False)
    with pytest.raises(StoreError, match=r"not one of ldot-milvus: it has no field kind, namespace"):
        store.bind("model-a", DIM)


def test_a_collection_of_another_metric(store: MilvusStore) -> None:
    foreign(store, "L2", whole=True)
    with pytest.raises(StoreError, match="compares by L2: LightningDOT needs the inner product"):
        store.search(np.ones((1, DIM), np.float32), 1)


def test_a_collection_of_another_model_or_width(store: MilvusStore) -> None:
    store.bind("model-a", DIM)
    for model, dim in (("model-b", DIM), ("model-a", DIM + 1)):
        with pytest.raises(ModelMismatch, match="choose another collection name"):
            store.bind(model, dim)
    with pytest.raises(ModelMismatch):
        store.upsert([Record("a", np.ones(DIM + 1, np.float32))])
    with pytest.raises(ModelMismatch):
        store.search(np.ones((1, DIM + 1), np.float32), 1)


# ---- indexes that need a GPU


@pytest.mark.parametrize("kind", ["GPU_CAGRA", "GPU_BRUTE_FORCE", "GPU_IVF_FLAT", "GPU_IVF_PQ"])
def test_a_gpu_index_on_a_server_without_one(
    store: MilvusStore, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kind that it refuses, and one that it accepts and never builds: a warning, the nearest kind, no hang."""
    monkeypatch.setattr("ldot_milvus.stores.milvus.probing.PROBE_SECONDS", 3.0)
    spec = IndexSpec(kind)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert settle_index(store.server, spec) == spec.on_cpu()
    assert f"cannot build the index {kind}" in caplog.text
    assert f"{spec.on_cpu()} is used instead" in caplog.text
    assert time.monotonic() - started < 60
    with pytest.raises(StoreError, match=f"cannot build the index {kind}.*LDOT_INDEX_FALLBACK"):
        settle_index(store.server, spec, fallback=False)
    while [name for name in store.server.call("list_collections") if name.startswith("ldot_probe")]:
        assert time.monotonic() - started < 60  # a server lists what is being dropped for a while
        time.sleep(0.2)


@pytest.mark.parametrize("seconds", [0.3, 0.0], ids=["in time", "out of time before the index is asked for"])
@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"state": "Finished", "indexed_rows": 0}, "did not finish"),
        ({"state": "Failed", "index_state_fail_reason": "CUDA out of memory"}, "CUDA out of memory"),
    ],
    ids=["an index of no vectors", "out of memory"],
)
def test_a_gpu_that_builds_nothing(
    state: dict[str, Any],
    words: str,
    seconds: float,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Recorded answers of servers with a GPU, since this machine has none. A slow machine hears them too."""

    class Playing:
        address, lite = "http://played:19530", False

        def call(self, name: str, *_: Any, **__: Any) -> Any:
            return state if name == "describe_index" else None

    monkeypatch.setattr("ldot_milvus.stores.milvus.probing.PROBE_SECONDS", seconds)
    with caplog.at_level(logging.WARNING):
        assert settle_index(Playing(), IndexSpec("GPU_CAGRA")) == IndexSpec("HNSW")  # type: ignore[arg-type]
    assert words in caplog.text
    assert "is used instead" in caplog.text


def test_auto_takes_what_the_server_has(store: MilvusStore) -> None:
    assert settle_index(store.server, IndexSpec()) == IndexSpec("FLAT")
    assert settle_index(store.server, IndexSpec(), rows=1_000_000) == IndexSpec("HNSW")


def test_metrics_other_than_the_inner_product_are_refused() -> None:
    with pytest.raises(UsageError, match="metric COSINE is refused"):
        IndexSpec.parse("HNSW:metric_type=COSINE")


# ---- several at once


def _bind(address: str, collection: str, start: Any, results: Any) -> None:
    start.wait()
    try:
        with MilvusStore(address, collection) as store:
            store.bind("model-a", DIM)
            store.upsert(rows(os.getpid() % 1000 * 100, 5))
            results.put("ok")
    except Exception as error:
        results.put(repr(error))


def test_two_workers_create_the_collection_at_once(milvus_url: str, store: MilvusStore) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    workers = [context.Process(target=_bind, args=(milvus_url, store.collection, start, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    time.sleep(1)
    start.set()
    assert [results.get(timeout=120) for _ in workers] == ["ok"] * 3
    for worker in workers:
        worker.join()
    assert store.count() == 15


def test_concurrent_upserts_of_one_key_leave_one_row(milvus_url: str, store: MilvusStore) -> None:
    """Milvus' primary key is not unique by itself, and upserts of one key at one time have left two rows."""
    store.bind("model-a", DIM)
    batches = [
        [replace(row, caption=f"{writer} {turn}") for row in rows(0, 20)] for writer in range(3) for turn in range(4)
    ]

    def write(batch: list[Record]) -> None:
        with MilvusStore(milvus_url, store.collection) as own:
            own.upsert(batch)

    with ThreadPoolExecutor(3) as writers:
        list(writers.map(write, batches))
    assert store.count() == 20
    assert [row.id for row in store.iterate()] == [row.id for row in rows(0, 20)]
    matches = store.search(rows(0, 1)[0].embedding[None], 100)[0]
    assert sorted(match.record.id for match in matches) == [row.id for row in rows(0, 20)]


def test_a_store_that_was_used_before_a_fork_works_in_the_child(store: MilvusStore) -> None:
    """Celery's prefork pool: gRPC does not survive a fork, and a child that used its parent's channel would hang."""
    store.bind("model-a", DIM)
    store.upsert(rows(0, 3))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=lambda: results.put(store.count()))
    child.start()
    assert results.get(timeout=60) == 3
    child.join()
    assert store.count() == 3


def test_one_file_of_milvus_lite_serves_one_process(tmp_path: Path) -> None:
    address = str(tmp_path / "x.db")
    with MilvusStore(address, "photos") as store:
        store.bind("model-a", DIM)
        context = multiprocessing.get_context("spawn")
        start, results = context.Event(), context.Queue()
        start.set()
        other = context.Process(target=_bind, args=(address, "photos", start, results))
        other.start()
        message = results.get(timeout=60)
        other.join()
    assert "open in another process" in message


# ---- large ones


@pytest.mark.slow  # it waits until pymilvus has looked after its connection three times
def test_an_idle_connection_to_milvus_lite_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Milvus Lite hangs up on a client that pings it every 10 seconds, and gRPC complains on the terminal."""
    store = MilvusStore(str(tmp_path / "x.db"), "photos")
    store.bind("model-a", DIM)
    time.sleep(45)
    store.upsert(rows(0, 3))
    assert store.count() == 3
    store.close()
    assert "GOAWAY" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_batch_larger_than_a_message(store: MilvusStore) -> None:
    """Rows of 5 times the size of a request, each with 60 KB of metadata."""
    count = 5 * REQUEST_BYTES // 60_000
    big = [Record(f"{n:05d}", np.full(DIM, n, np.float32), metadata={"text": "x" * 60_000}) for n in range(count)]
    assert store.upsert(big) == count
    assert store.count() == count
    assert sum(1 for _ in store.iterate(batch_size=200)) == count
