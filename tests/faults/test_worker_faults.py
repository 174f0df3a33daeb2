"""Workers that die, hang or lose their broker, journal or store. Random kills are in test_kills.py."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ldot_milvus import open_store
from ldot_milvus.errors import StoreError
from ldot_milvus.ingest.chunks import Chunk
from ldot_milvus.ingest.journal import open_journal
from ldot_milvus.ingest.target import Target
from ldot_milvus.ingest.tasks import INGEST
from ldot_milvus.settings import Settings
from ldot_milvus.sources import Source
from ldot_milvus.workers.application import make_app
from ldot_milvus.workers.broker import has_worker, queue_depths
from ldot_milvus.workers.sending import send_all
from tests.brokers import RABBITMQ, RabbitServer, RedisServer
from tests.conftest import Run, make_photo
from tests.faulty import POISON
from tests.worker_process import CELERY, Worker

pytestmark = [pytest.mark.servers]

Folder = Callable[[int], Path]
PREFORK = ("--pool", "prefork", "--concurrency", "1")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def env(broker: RedisServer, tmp_path: Path, tiny_model: str) -> dict[str, str]:
    import redis

    redis.Redis.from_url(broker.url).flushall()
    (tmp_path / "marks").mkdir()
    return {
        "LDOT_BROKER": broker.url, "LDOT_MODEL": tiny_model, "LDOT_DEVICE": "cpu",
        "LDOT_STORE": f"faiss:{tmp_path / 'store'}", "LDOT_TEST_MARKS": str(tmp_path / "marks"),
        "LDOT_TEST_FAULTS": "quick_model",
    }  # fmt: skip


@pytest.fixture
def workers(tmp_path: Path, env: dict[str, str]) -> Iterator[Callable[..., Worker]]:
    """Start workers with faults, and stop them after the test."""
    started: list[Worker] = []

    def start(*faults: str, pool: tuple[str, ...] = PREFORK, **more: str) -> Worker:
        named = {"LDOT_TEST_FAULTS": ",".join(["quick_model", *faults])}
        started.append(Worker(tmp_path, {**env, **named, **more}, *pool, app="tests.faulty"))
        return started[-1]

    yield start
    for worker in started:
        worker.stop()


def enqueue(run: Run, env: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return run("celery", "-A", "workers", "enqueue", "photos", *options, env=env)


def sources(tmp_path: Path) -> list[str]:
    with open_store(f"faiss:{tmp_path / 'store'}", "images") as store:
        return sorted(Path(row.source).name for row in store.iterate())


def names(count: int) -> list[str]:
    return [f"{n:04}.jpg" for n in range(count)]


def poison(folder: Path) -> Path:
    place = folder / "poison.jpg"
    place.write_bytes(make_photo(999) + POISON)
    return place


@pytest.mark.parametrize("fault", ["die_before_writing", "die_before_acknowledging"])
def test_killed_between_reading_and_acknowledging(
    run: Run, env: dict[str, str], workers: Callable[..., Worker], photo_folder: Folder, tmp_path: Path, fault: str
) -> None:
    """The photos are read but not written; written but not recorded; recorded but not acknowledged."""
    photo_folder(10)
    workers(fault)
    done = enqueue(run, env, "--chunk-size", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sources(tmp_path) == names(10)
    marks = {path.name for path in (tmp_path / "marks").iterdir()}
    assert marks == {fault} | ({"die_after_ending"} if fault == "die_before_acknowledging" else set())


@pytest.mark.slow
def test_a_poison_chunk_is_split_until_the_bad_photo_is_found(
    run: Run, env: dict[str, str], workers: Callable[..., Worker], photo_folder: Folder, tmp_path: Path
) -> None:
    """A photo that always kills its worker is reported as a failure, and the others are stored."""
    poison(photo_folder(30))
    worker = workers("die_of_poison")
    done = enqueue(run, env, "--chunk-size", "64")
    assert done.returncode == 1
    assert "30 added, 0 updated, 0 unchanged, 1 failed" in done.stdout
    assert "poison.jpg: its worker died 3 times while working on it" in done.stderr
    assert sources(tmp_path) == names(30)
    assert (
        worker.log.read_text().count("exited with 'signal 9 (SIGKILL)'") == 5
    )  # whole, an eighth, and three times alone
    # Without the cause, the photo is stored.
    worker.stop()
    workers()
    again = run("celery", "-A", "workers", "failures", "--retry", env=env)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1 added" in again.stdout
    assert "No failures" in run("celery", "-A", "workers", "failures", env=env).stdout


def test_a_photo_that_hangs_is_cut_off(
    run: Run, env: dict[str, str], workers: Callable[..., Worker], photo_folder: Folder, tmp_path: Path
) -> None:
    """The time limits are below the visibility time-out, so the broker never delivers a chunk in progress."""
    folder = photo_folder(0)
    (folder / "0000.jpg").write_bytes(make_photo(0))
    poison(folder)
    workers("hang_at_poison", LDOT_VISIBILITY_TIMEOUT="2")
    done = enqueue(run, env)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 added, 0 updated, 0 unchanged, 1 failed" in done.stdout
    assert "poison.jpg: it took longer than 1.6 s" in done.stderr
    assert sources(tmp_path) == names(1)


def test_an_error_that_nobody_expected_harms_no_other_photo(
    run: Run, env: dict[str, str], workers: Callable[..., Worker], photo_folder: Folder, tmp_path: Path
) -> None:
    poison(photo_folder(10))
    workers("stumble_over_poison", pool=("--pool", "threads", "--concurrency", "2"))
    done = enqueue(run, env)
    assert done.returncode == 1
    assert "poison.jpg: unexpected error ZeroDivisionError: nobody expected this" in done.stderr
    assert sources(tmp_path) == names(10)


def test_a_store_that_is_away_is_waited_for(
    run: Run, env: dict[str, str], workers: Callable[..., Worker], photo_folder: Folder, tmp_path: Path
) -> None:
    photo_folder(6)
    away = tmp_path / "marks" / "away"
    away.touch()
    worker = workers("store_away", pool=("--pool", "solo"), LDOT_VISIBILITY_TIMEOUT="8")
    sent = enqueue(run, env, "--no-wait")
    id = sent.stdout.split("progress ")[1].strip()
    log = worker.wait_for("reject requeue=True")  # returned to the broker after several attempts
    assert "waiting: the store does not answer" in log
    progress = run("celery", "-A", "workers", "progress", id, env=env)
    assert "waiting: the store does not answer" in progress.stdout
    assert "0 of 6" in progress.stdout
    away.unlink()
    wait_until_complete(tmp_path, id)
    assert sources(tmp_path) == names(6)
    assert open_journal(str(tmp_path / "store" / "ingestion.sqlite")).failures() == []


def wait_until_complete(tmp_path: Path, id: str, seconds: float = 60) -> None:
    journal = open_journal(str(tmp_path / "store" / "ingestion.sqlite"))
    deadline = time.monotonic() + seconds
    while not (progress := journal.progress(id)) or not progress.complete:
        assert time.monotonic() < deadline, progress
        time.sleep(0.1)


def test_a_broker_that_is_restarted_during_a_run(
    run: Run, env: dict[str, str], workers: Callable[..., Worker], photo_folder: Folder, tmp_path: Path,
) -> None:  # fmt: skip
    """Killed -9 and started again, with the queue on its disk; ``enqueue --wait`` goes on too."""
    photo_folder(60)
    server = RedisServer(tmp_path / "own")
    own = {**env, "LDOT_BROKER": server.url, "LDOT_VISIBILITY_TIMEOUT": "5"}
    try:
        server.start()
        workers("decode_slowly", LDOT_BROKER=server.url, LDOT_VISIBILITY_TIMEOUT="5")
        command = [CELERY, "-A", "workers", "enqueue", "photos", "--chunk-size", "4"]
        ingestion = subprocess.Popen(
            command, env={**os.environ, **own}, cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        journal = open_journal(str(tmp_path / "store" / "ingestion.sqlite"))
        deadline = time.monotonic() + 60
        while not journal.totals().get("chunks", 0) >= 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.kill()
        time.sleep(1)
        server.start()
        printed, _ = ingestion.communicate(timeout=120)
        assert ingestion.returncode == 0, printed
        assert sources(tmp_path) == names(60)
    finally:
        server.stop()


def test_a_journal_that_is_restarted_during_a_run(
    run: Run, env: dict[str, str], workers: Callable[..., Worker], photo_folder: Folder, tmp_path: Path
) -> None:
    """Celery's result backend is not used; what it was for is in the journal, here a Redis of its own."""
    photo_folder(40)
    server = RedisServer(tmp_path / "own")
    own = {"LDOT_RESULT_BACKEND": server.url}
    try:
        server.start()
        workers("decode_slowly", **own)
        command = [CELERY, "-A", "workers", "enqueue", "photos", "--chunk-size", "4"]
        ingestion = subprocess.Popen(
            command, env={**os.environ, **env, **own}, cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        journal = open_journal(server.url)
        deadline = time.monotonic() + 60
        while not journal.totals().get("chunks", 0) >= 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.kill()
        time.sleep(2)
        server.start()
        printed, _ = ingestion.communicate(timeout=120)
        assert ingestion.returncode == 0, printed
        # A chunk whose end could not be recorded is processed again, and its photos are unchanged.
        counted = re.search(r"(\d+) added, 0 updated, (\d+) unchanged, 0 failed", printed)
        assert counted is not None, printed
        assert sum(map(int, counted.groups())) == 40
        assert sources(tmp_path) == names(40)
    finally:
        server.stop()


def test_a_broker_that_forgot_its_queue_is_sent_the_chunks_again(
    run: Run, env: dict[str, str], broker: RedisServer, workers: Callable[..., Worker], photo_folder: Folder,
    tmp_path: Path,
) -> None:  # fmt: skip
    """As a Redis without persistence does at a restart."""
    import redis

    photo_folder(6)
    command = [CELERY, "-A", "workers", "enqueue", "photos", "--chunk-size", "2"]
    own = {**os.environ, **env, "LDOT_VISIBILITY_TIMEOUT": "2"}
    ingestion = subprocess.Popen(
        command, env=own, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert ingestion.stdout is not None
    assert "Enqueued" in ingestion.stdout.readline()
    redis.Redis.from_url(broker.url).flushall()
    workers()
    printed, _ = ingestion.communicate(timeout=90)
    assert ingestion.returncode == 0, printed
    assert "Sending again 3 chunks that the broker no longer has" in printed
    assert sources(tmp_path) == names(6)


def test_a_journal_that_forgot_the_run_is_told(
    env: dict[str, str], broker: RedisServer, photo_folder: Folder, tmp_path: Path
) -> None:
    import redis

    photo_folder(2)
    own = {**os.environ, **env, "LDOT_RESULT_BACKEND": broker.url}
    ingestion = subprocess.Popen(
        [CELERY, "-A", "workers", "enqueue", "photos"], env=own, cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert ingestion.stdout is not None
    assert "Enqueued" in ingestion.stdout.readline()
    redis.Redis.from_url(broker.url).flushall()
    printed, _ = ingestion.communicate(timeout=60)
    assert ingestion.returncode == 2
    assert "has lost this run" in printed
    assert "Traceback" not in printed


def test_a_worker_that_is_told_to_stop_finishes_its_chunk(
    run: Run, env: dict[str, str], workers: Callable[..., Worker], photo_folder: Folder, tmp_path: Path
) -> None:
    photo_folder(40)
    worker = workers("decode_in_a_second", pool=("--pool", "solo"))  # a chunk takes longer than the signal
    enqueue(run, env, "--no-wait", "--chunk-size", "20")
    worker.wait_for("received")
    time.sleep(0.1)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(30) == 0
    assert len(sources(tmp_path)) == 20
    assert worker.log.read_text().count("received") == 1
    next_one = workers()
    next_one.wait_for("chunk 1 of run")
    assert len(sources(tmp_path)) == 40


@pytest.mark.slow  # it waits: ten seconds for the chunk, then for the pool
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_worker_that_is_told_to_stop_at_once_returns_its_chunk(
    run: Run, env: dict[str, str], workers: Callable[..., Worker], photo_folder: Folder, tmp_path: Path, pool: str
) -> None:
    """SIGQUIT: the chunk is in the queue again, without waiting for the visibility time-out of ten minutes."""
    photo_folder(6)
    worker = workers("crawl", pool=("--pool", pool, "--concurrency", "1"))
    enqueue(run, env, "--no-wait")
    worker.wait_for("received")
    time.sleep(0.5)
    worker.process.send_signal(signal.SIGQUIT)
    worker.process.wait(60)
    workers()
    deadline = time.monotonic() + 30
    while len(sources(tmp_path)) < 6:
        assert time.monotonic() < deadline, worker.log.read_text()
        time.sleep(0.1)


def test_a_chunk_for_another_store_is_refused(
    run: Run, env: dict[str, str], broker: RedisServer, workers: Callable[..., Worker], photo_folder: Folder,
    tmp_path: Path,
) -> None:  # fmt: skip
    """It is not ingested into the worker's store instead, and waits in the failures until a worker takes it."""
    photo_folder(3)
    other = f"faiss:{tmp_path / 'other'}"
    env["LDOT_RESULT_BACKEND"] = broker.url
    worker = workers(pool=("--pool", "solo"), LDOT_STORE=other)
    refused = enqueue(run, env, "--chunk-size", "2")
    assert refused.returncode == 1, refused.stderr
    assert "0 added, 0 updated, 0 unchanged, 3 failed" in refused.stdout
    assert f"0000.jpg: refused by the worker on {os.uname().nodename}: the chunk is for the store" in refused.stderr
    assert f"the worker's LDOT_STORE is {other}" in refused.stderr
    assert "Traceback" not in worker.log.read_text()
    assert not list(tmp_path.glob("*/vectors*"))
    for store in (env["LDOT_STORE"], other):
        with open_store(store, "images") as opened:
            assert opened.count() == 0
    worker.stop()
    workers(pool=("--pool", "solo"), LDOT_STORE=other, LDOT_STORE_ALIAS=env["LDOT_STORE"])
    again = run("celery", "-A", "workers", "failures", "--retry", env=env)
    assert again.returncode == 0, again.stderr
    with open_store(other, "images") as opened:
        assert opened.count() == 3
    assert sources(tmp_path) == []


@pytest.mark.slow
def test_no_worker_listens_to_the_queue_of_this_deployment(
    env: dict[str, str], workers: Callable[..., Worker], photo_folder: Folder, tmp_path: Path
) -> None:
    """The worker of another deployment on the same broker takes no chunk; one line says so, and the wait goes on."""
    photo_folder(2)
    other = workers(pool=("--pool", "solo"))
    other.wait_for("ready")
    ingestion = subprocess.Popen(
        [CELERY, "-A", "workers", "enqueue", "photos"], env={**os.environ, **env, "LDOT_QUEUE": "photos"},
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert ingestion.stdout is not None
    assert "Enqueued" in ingestion.stdout.readline()
    told = ingestion.stdout.readline()
    assert re.match(r"Waiting: no worker listens to queue photos \(none seen for 1\d s\): start one with", told)
    assert "received" not in other.log.read_text()
    workers(pool=("--pool", "solo"), LDOT_QUEUE="photos")
    printed, _ = ingestion.communicate(timeout=60)
    assert ingestion.returncode == 0, printed
    assert "no worker" not in printed
    assert sources(tmp_path) == names(2)


def chunks(count: int) -> list[Chunk]:
    target = Target("faiss:/s", "images", "ldot-mini")
    return [Chunk("run", str(number), INGEST, target, [Source("a.jpg")]) for number in range(count)]


@pytest.mark.slow
def test_a_redis_that_hangs_or_is_full_is_told_within_seconds(tmp_path: Path) -> None:
    import redis

    server = RedisServer(tmp_path / "own")
    app = make_app(Settings(broker=server.url))
    try:
        server.start()
        send_all(app, chunks(2))
        redis.Redis.from_url(server.url).config_set("maxmemory", "1")
        with pytest.raises(StoreError, match=r"maxmemory.*; 0 of 2 chunks were sent"):
            send_all(app, chunks(2))
        redis.Redis.from_url(server.url).config_set("maxmemory", "0")
        server.signal(signal.SIGSTOP)
        for ask in (lambda: send_all(app, chunks(2)), lambda: queue_depths(app), lambda: has_worker(app, "ldot")):
            started = time.monotonic()
            with pytest.raises(StoreError, match="Timeout reading"):
                ask()
            assert time.monotonic() - started < 20
        server.signal(signal.SIGCONT)
        assert not has_worker(app, "ldot")
        assert queue_depths(app)["ldot"] >= 2
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.xdist_group("rabbitmq")
def test_a_chunk_that_rabbitmq_does_not_confirm_is_not_sent(
    run: Run, env: dict[str, str], photo_folder: Folder, tmp_path: Path
) -> None:
    """Under a memory or disk alarm RabbitMQ stops reading from publishers, and what it has not read may be lost."""
    if not RABBITMQ.exists():
        pytest.skip("RabbitMQ is not installed: apt-get install rabbitmq-server (tests/install-servers.sh)")
    photo_folder(2)
    server = RabbitServer(tmp_path / "rabbit")
    app = make_app(Settings(broker=server.url))
    try:
        server.start()
        own = {**env, "LDOT_BROKER": server.url}
        assert enqueue(run, own, "--no-wait", "--chunk-size", "1").returncode == 0
        assert queue_depths(app) == {"ldot": 2, "ldot.changes": 0}
        assert not has_worker(app, "ldot")
        server.control("set_vm_memory_high_watermark", "absolute", "1MB")
        while "memory" not in server.control("eval", "rabbit_alarm:get_alarms()."):
            time.sleep(0.2)
        started = time.monotonic()
        told = enqueue(run, own, "--no-wait")
        assert time.monotonic() - started < 30
        assert told.returncode == 2
        assert "Enqueued" not in told.stdout
        assert re.fullmatch(r"Error: the broker did not confirm a chunk .* repeat the command.*\n", told.stderr)
        server.control("set_vm_memory_high_watermark", "0.8")
        send_all(app, chunks(1))
        assert queue_depths(app)["ldot"] >= 3
    finally:
        server.stop()


@pytest.mark.slow  # it waits for the worker's time limit
def test_a_worker_outlives_a_redis_that_hangs(
    run: Run, env: dict[str, str], workers: Callable[..., Worker], photo_folder: Folder, tmp_path: Path
) -> None:
    photo_folder(4)
    server = RedisServer(tmp_path / "own")
    own = {"LDOT_BROKER": server.url}
    try:
        server.start()
        worker = workers(pool=("--pool", "solo"), **own)
        worker.wait_for("ready")
        server.signal(signal.SIGSTOP)
        time.sleep(25)  # longer than its time limits
        server.signal(signal.SIGCONT)
        done = enqueue(run, {**env, **own})
        assert done.returncode == 0, done.stderr
        assert sources(tmp_path) == names(4)
    finally:
        server.stop()


def test_the_settings_that_keep_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Late acknowledgement, one chunk at a time, and limits in the right order: each was a loop or a loss somewhere."""
    conf = make_app(Settings(broker="redis://h/0", visibility_timeout=300)).conf
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert not conf.task_acks_on_failure_or_timeout
    assert conf.worker_prefetch_multiplier == 1
    assert conf.broker_transport_options["visibility_timeout"] == 300
    assert conf.task_soft_time_limit < conf.task_time_limit < 300
    assert (conf.task_serializer, conf.accept_content) == ("json", ["json"])
