"""Measure the services of ``examples/`` with four workers under 200 concurrent queries: python -m benchmarks.services

Each query has a connection of its own, and the load generator runs on the same machine. ``standstill`` is the longest
time in seconds for which the event loop of each worker did not run; ``own`` is the same without the time in which the
machine had no core for its thread; ``machine`` is that of a process that does nothing else. ``without_search`` is the
FastAPI service whose queries are answered without a search: what the framework and the connections alone need.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import median

from ldot_milvus.forks import cores
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.sources import expand
from ldot_milvus.stores import open_store
from tests.service_process import ROOT, Service, idle_heartbeat

WORKERS, QUERIES, ROUNDS = 4, 200, 3
UVICORN = ["uvicorn", "--port", "{port}", "--workers", f"{WORKERS}", "tests.standstill:app"]
GUNICORN = ["gunicorn", "--preload", "--workers", f"{WORKERS}", "--threads", "4", "--bind", "127.0.0.1:{port}",
            "django_view:application"]  # fmt: skip
SERVICES = {
    "fastapi": (UVICORN, "Application startup complete", {}),
    "without_search": (UVICORN, "Application startup complete", {"LDOT_TEST_NO_SEARCH": "1"}),
    "django": (GUNICORN, "Booting worker", {}),
}


def main() -> None:
    report: dict[str, object] = {"cores": cores(), "workers": WORKERS, "queries": QUERIES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        address = f"faiss:{folder / 'store'}"
        with open_store(address) as store:
            Ingestor(store).ingest(list(expand([str(ROOT / "examples" / "photos")])))
        for service, (command, ready, env) in SERVICES.items():
            report[service] = measure(folder / service, {"LDOT_STORE": address, **env}, command, ready)
    print(json.dumps(report))


def measure(folder: Path, env: dict[str, str], command: list[str], ready: str) -> dict[str, object]:
    (beats := folder / "beats").mkdir(parents=True)
    machine = folder / "machine"
    env = {**env, "OMP_NUM_THREADS": "1", "LDOT_TEST_STANDSTILL": str(beats)}
    with Service(folder, command, env) as started:
        started.wait_for(ready, WORKERS, 300)
        with idle_heartbeat(machine):
            rounds = [started.load("/search?text={}", QUERIES) for _ in range(ROUNDS)]
    latencies = sorted(latency for answers in rounds for latency in answers.latencies)
    result: dict[str, object] = {
        "outcomes": {code: sum(answers.outcomes.get(code, 0) for answers in rounds) for code in rounds[0].outcomes},
        "queries_per_second": round(QUERIES / median(answers.seconds for answers in rounds), 1),
        "latency_median": round(median(latencies), 2),
        "latency_longest": round(latencies[-1], 2),
    }
    for place, names in ((beats, ("standstill", "own")), (machine, ("machine",))):
        columns = [[float(value) for value in file.read_text().split()] for file in place.iterdir()]
        for column, of in enumerate(names):
            if columns:
                result[of] = [values[column] for values in columns]
    return result


if __name__ == "__main__":
    main()
