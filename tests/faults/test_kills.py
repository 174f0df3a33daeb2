"""Workers killed at random moments: afterwards each photo exists exactly once, as after an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ldot_milvus import open_store
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.ingest.journal import open_journal
from ldot_milvus.sources import expand
from ldot_milvus.stores import Record
from tests.faulty import QuickModel
from tests.varied import varied_photos
from tests.worker_process import CELERY, Worker

pytestmark = [pytest.mark.servers]


RABBIT = pytest.param("rabbitmq", marks=[pytest.mark.xdist_group("rabbitmq"), pytest.mark.slow])


@pytest.fixture(params=["redis", RABBIT])
def broker(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    if request.param == "redis":
        import redis

        redis.Redis.from_url(url).flushdb()
    return url


def rows(store: Path) -> dict[str, Record]:
    with open_store(f"faiss:{store}", "images") as opened:
        found = list(opened.iterate(with_embeddings=True))
    assert len({row.id for row in found}) == len(found)
    return {row.id: row for row in found}


def undisturbed(photos: Path, store: Path, model: str, quick: bool) -> dict[str, Record]:
    with open_store(f"faiss:{store}", "images") as opened:
        ingestor = Ingestor(opened, model, device="cpu")
        if quick:
            ingestor._embedder = QuickModel()  # type: ignore[assignment]
        assert not ingestor.ingest(list(expand([str(photos)]))).failed
    return rows(store)


def assert_the_same(found: dict[str, Record], expected: dict[str, Record]) -> None:
    assert found.keys() == expected.keys()
    for id, row in expected.items():
        np.testing.assert_allclose(found[id].embedding, row.embedding, atol=1e-4)
        assert (found[id].source, found[id].width, found[id].height) == (row.source, row.width, row.height)


class Ingestion:
    """``enqueue`` of a folder in the background, and how far it is."""

    def __init__(self, tmp_path: Path, photos: Path, env: dict[str, str], *options: str) -> None:
        self._journal = open_journal(str(tmp_path / "store" / "ingestion.sqlite"))
        self.process = subprocess.Popen(
            [CELERY, "-A", "workers", "enqueue", str(photos), *options], env={**os.environ, **env}, cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def done(self) -> int:
        runs = self._journal.runs()
        progress = self._journal.progress(runs[0].id) if runs else None
        return 0 if progress is None else progress.done

    def wait_for(self, done: int, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while self.done() < done:
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, f"{self.done()} of {done}"
            time.sleep(0.02)

    def finish(self, seconds: float = 280) -> str:
        printed, _ = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, printed
        return printed


def killed_run(
    tmp_path: Path,
    broker_url: str,
    model: str,
    count: int,
    kills: list[Callable[[Worker], bool]],
    seed: int,
    *,
    quick: bool,
) -> None:
    """Ingest ``count`` photos; at random moments call one of ``kills``, which says whether a new worker is needed."""
    photos = varied_photos(tmp_path / "photos", count, seed)
    expected = undisturbed(photos, tmp_path / "expected", model, quick)
    assert len(expected) == count
    # Long enough for a chunk, the loading of the model included, on a busy machine: what Redis hands out again earlier
    # counts as one more death of a worker.
    env = {"LDOT_BROKER": broker_url, "LDOT_MODEL": model, "LDOT_DEVICE": "cpu",
           "LDOT_VISIBILITY_TIMEOUT": "5" if quick else "60",
           "LDOT_STORE": f"faiss:{tmp_path / 'store'}", "LDOT_TEST_FAULTS": "no_time_limits" + ",quick_model" * quick,
           "OMP_NUM_THREADS": "1"}  # fmt: skip
    rng = random.Random(seed)
    moments = sorted(rng.randrange(int(0.95 * count)) for _ in kills)
    rng.shuffle(kills)
    arguments = ("--pool", "prefork", "--concurrency", "2")
    worker = Worker(tmp_path, env, *arguments, app="tests.faulty")
    try:
        ingestion = Ingestion(tmp_path, photos, env, "--chunk-size", "8")
        for moment, kill in zip(moments, kills, strict=True):
            ingestion.wait_for(moment)
            time.sleep(rng.random() * 0.1)
            if kill(worker):
                worker = Worker(tmp_path, env, *arguments, app="tests.faulty")
        printed = ingestion.finish()
    finally:
        worker.stop()
        ingestion.process.kill()
    assert "0 failed" in printed, printed
    assert_the_same(rows(tmp_path / "store"), expected)


def kill_child(worker: Worker) -> bool:
    children = worker.children()
    with suppress(ProcessLookupError, IndexError):
        os.kill(random.choice(children), signal.SIGKILL)
    return False


def kill_worker(worker: Worker) -> bool:
    worker.kill()
    return True


def kill_group(worker: Worker) -> bool:
    worker.kill_group()
    return True


def test_killed_a_few_times(tmp_path: Path, broker: str, tiny_model: str) -> None:
    """With a model that answers at once."""
    kills = [kill_child] * 2 + [kill_worker, kill_group]
    killed_run(tmp_path, broker, tiny_model, 300, kills, seed=1, quick=True)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_25_random_moments(tmp_path: Path, broker: str, tiny_model: str) -> None:
    kills = [kill_child] * 10 + [kill_worker] * 10 + [kill_group] * 5
    killed_run(tmp_path, broker, tiny_model, 2000, kills, seed=2, quick=False)
