"""Throughput and latency of ``ldot serve``: 32 clients at once, and one, in one run with texts that are all distinct.

    OMP_NUM_THREADS=1 python -m benchmarks.serve --out benchmarks/results/serve.json

It ingests examples/photos, starts the service, and asks it over keep-alive connections from this process, on the same
cores. Each search re-ranks 20 hits, as by default. The rounds alternate, so that other load of the machine meets both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples" / "photos"
FORMS = ("{}", "a photo of {}", "there is {}", "we see {}", "look, {}", "picture: {}", "{} today", "{} again")
CLIENTS = 32
HEAD = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"


def texts() -> Iterator[str]:
    lines = [json.loads(line) for line in (PHOTOS / "photos.jsonl").read_text().splitlines()]
    captions = [caption.rstrip(".") for line in lines for caption in line["captions"]]
    for form in FORMS:
        yield from dict.fromkeys(form.format(caption) for caption in captions)


async def client(port: int, queries: Iterator[str], count: list[int], latencies: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while count[0] > 0:
        count[0] -= 1
        body = json.dumps({"text": next(queries)}).encode()
        started = time.perf_counter()
        writer.write(HEAD.format(len(body)).encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        latencies.append(time.perf_counter() - started)
    writer.close()


async def load(port: int, clients: int, requests: int, queries: Iterator[str]) -> tuple[float, list[float]]:
    count, latencies = [requests], []
    started = time.perf_counter()
    await asyncio.gather(*(client(port, queries, count, latencies) for _ in range(clients)))
    return time.perf_counter() - started, latencies


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waits(pid: int) -> float:
    """Seconds for which threads were ready to run and had no core, because of the clients or of other programs."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[1]) for thread in threads) / 1e9


def summary(seconds: float, latencies: list[float], cpu: float, waited: float) -> dict[str, float]:
    ordered = sorted(1000 * one for one in latencies)
    return {
        "requests": len(ordered),
        "per_second": round(len(ordered) / seconds, 1),
        "p50_ms": round(ordered[len(ordered) // 2], 1),
        "p99_ms": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 1),
        "server_cpu_ms_per_request": round(1000 * cpu / len(ordered), 2),
        "share_of_time_waiting_for_a_core": round(waited / seconds, 2),
    }


def measure(port: int, pid: int, rounds: int) -> dict[str, object]:
    queries = texts()
    asyncio.run(load(port, 4, 60, queries))  # warm
    totals: dict[int, list[object]] = {1: [0.0, [], 0.0, 0.0], CLIENTS: [0.0, [], 0.0, 0.0]}
    for _ in range(rounds):
        for clients, requests in ((1, 60), (CLIENTS, 320)):
            before, waited = cpu_seconds(pid), waits(pid)
            seconds, latencies = asyncio.run(load(port, clients, requests, queries))
            total = totals[clients]
            total[0] += seconds
            total[1] += latencies
            total[2] += cpu_seconds(pid) - before
            total[3] += waits(pid) - waited
    one, many = summary(*totals[1]), summary(*totals[CLIENTS])
    return {
        "one_client": one,
        f"{CLIENTS}_clients": many,
        "throughput_ratio": round(many["per_second"] / one["per_second"], 2),
        "p99_over_p50": round(many["p99_ms"] / many["p50_ms"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    programs = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "LDOT_STORE": f"faiss:{folder}/store", "PYTHONPATH": str(ROOT)}
        ingest = [programs / "celery", "-A", "workers", "enqueue", PHOTOS, "--metadata", PHOTOS / "photos.jsonl"]
        subprocess.run(ingest, env=env, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        with open(f"{folder}/log", "w+") as log:
            server = subprocess.Popen(
                [programs / "ldot", "serve", "--port", "0"], env=env, stdout=log, stderr=log, cwd=folder
            )
            try:
                port = ready(Path(log.name))
                result = measure(port, server.pid, arguments.rounds)
            finally:
                server.terminate()
                server.wait(30)
    result = {
        "measured": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "load_average": round(os.getloadavg()[0], 1),
        **result,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


def ready(log: Path) -> int:
    """Wait until texts and photos are answered, and return the port."""
    deadline = time.monotonic() + 300
    while "searches by a photo" not in (lines := log.read_text()):
        if time.monotonic() > deadline:
            raise SystemExit(lines)
        time.sleep(0.1)
    return int(re.search(r"serving http://[^:]+:(\d+)", lines)[1])


if __name__ == "__main__":
    main()
