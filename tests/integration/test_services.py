"""The services of ``examples/``, started as their texts say, under concurrent queries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.sources import expand
from ldot_milvus.stores import open_store
from tests.conftest import PHOTOS
from tests.service_process import TEXTS, Answers, Service, idle_heartbeat

pytest.importorskip("fastapi", reason="FastAPI is not installed: pip install 'ldot-milvus[dev]'")

pytestmark = pytest.mark.servers

STANDSTILL = 0.5
"""Seconds for which an event loop may stand still while other tests use the cores; a search that ran in it would take
longer for all queries together. ``benchmarks/services.py`` measures the standstill on a quiet machine."""

QUERY = "/search?text={}&k=3&rerank=20"


@dataclass(frozen=True)
class Filled:
    """A collection of the sample photos.

    Attributes:
        env: settings of the services.
        expected: sources of the best photos for each text of the load.
    """

    env: dict[str, str]
    expected: dict[str, list[str]]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, mini) -> Filled:
    from ldot_milvus import Retriever

    folder = tmp_path_factory.mktemp("services")
    address = f"faiss:{folder}"
    with open_store(address) as store:
        Ingestor(store, "ldot-mini", device="cpu").ingest(list(expand([str(PHOTOS / "00000022*.jpg"), *best()])))
        retriever = Retriever(mini, store)
        expected = {text: [hit.source for hit in retriever.search(text, k=3, rerank=20)] for text in TEXTS}
    env = {"LDOT_STORE": address, "LDOT_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    return Filled(env, expected)


def best() -> list[str]:
    return [str(PHOTOS / f"{name}.jpg") for name in ("000000568290", "000000214753", "000000349860", "000000229997")]


@pytest.fixture
def standstills(tmp_path: Path) -> Path:
    folder = tmp_path / "standstills"
    folder.mkdir()
    return folder


def fastapi_service(folder: Path, filled: Filled, standstills: Path, workers: int) -> Service:
    command = ["uvicorn", "--port", "{port}", "--workers", str(workers), "tests.standstill:app"]
    return Service(folder, command, {**filled.env, "LDOT_TEST_STANDSTILL": str(standstills)})


def django_service(folder: Path, filled: Filled, workers: int, **env: str) -> Service:
    command = ["gunicorn", "--preload", "--workers", str(workers), "--threads", "4", "--bind", "127.0.0.1:{port}",
               "django_view:application"]  # fmt: skip
    return Service(folder, command, {**filled.env, **env})


def check(answers: Answers, queries: int, filled: Filled) -> None:
    assert answers.outcomes == {"200": queries}
    for text, bodies in answers.bodies.items():
        (body,) = bodies  # every worker gives the same answer
        assert [hit["source"] for hit in json.loads(body)] == filled.expected[text]


def longest(standstills: Path) -> float:
    """The longest standstill of the event loops that got a query."""
    return max(float(file.read_text().split()[0]) for file in standstills.iterdir())


def test_fastapi_with_two_workers(tmp_path: Path, filled: Filled, standstills: Path) -> None:
    with fastapi_service(tmp_path, filled, standstills, 2) as service:
        service.wait_for("Application startup complete", 2)
        with idle_heartbeat(tmp_path / "idle"):
            check(service.load(QUERY, 40), 40, filled)
        assert longest(standstills) < STANDSTILL + longest(tmp_path / "idle")
        assert service.load("/search?text={}&k=0", 1).outcomes == {"422": 1}
        assert service.load("/search?text=++", 1).outcomes == {"400": 1}


def test_django_with_two_preloaded_workers(tmp_path: Path, filled: Filled) -> None:
    """The model was loaded before the fork: with more than one OpenMP thread, a worker would hang."""
    with django_service(tmp_path, filled, 2, OMP_NUM_THREADS="2") as service:
        service.wait_for("Booting worker", 2)
        check(service.load(QUERY, 40), 40, filled)
        assert service.load("/search?text={}&k=x", 1).outcomes == {"400": 1}
        assert service.load("/search?text=", 1).outcomes == {"400": 1}
    assert "WORKER TIMEOUT" not in service.log.read_text()


@pytest.mark.slow
def test_fastapi_with_four_workers_and_200_queries(tmp_path: Path, filled: Filled, standstills: Path) -> None:
    with fastapi_service(tmp_path, filled, standstills, 4) as service:
        service.wait_for("Application startup complete", 4, 300)
        with idle_heartbeat(tmp_path / "idle"):
            check(service.load(QUERY, 200), 200, filled)
        assert longest(standstills) < STANDSTILL + longest(tmp_path / "idle")


@pytest.mark.slow
def test_django_with_four_preloaded_workers_and_200_queries(tmp_path: Path, filled: Filled) -> None:
    with django_service(tmp_path, filled, 4) as service:
        service.wait_for("Booting worker", 4, 300)
        check(service.load(QUERY, 200), 200, filled)
