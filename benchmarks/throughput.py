"""Compare the throughput of ``enqueue`` through a broker with that of the bare model pipeline, on the same photos.

::

    python benchmarks/throughput.py [--photos 512] [--repeats 3] [--broker redis://...]

The bare pipeline decodes, extracts regions and encodes in this process, with as many threads as the worker has, and
neither hashes, looks up nor writes anything. The workers' time is measured from the call of ``enqueue`` to the end of
the last chunk in the journal. It excludes starting the processes and loading the model, as does that of the pipeline.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.brokers import RedisServer  # noqa: E402
from tests.varied import varied_photos  # noqa: E402
from tests.worker_process import CELERY, Worker  # noqa: E402


def bare(photos: list[Path], threads: int) -> float:
    """Return photos per second of decode + regions + encode."""
    import torch

    from ldot_milvus import LightningDOTEmbedder
    from ldot_milvus.images import decode
    from ldot_milvus.models.lightningdot.embedder import IMAGE_BATCH

    torch.set_num_threads(threads)
    embedder = LightningDOTEmbedder("ldot-mini", device="cpu")

    def run(paths: list[Path]) -> None:
        for start in range(0, len(paths), IMAGE_BATCH):
            datas = [path.read_bytes() for path in paths[start : start + IMAGE_BATCH]]
            images = [decode(data, draft_to=embedder.least_side).image for data in datas]
            features = embedder.image_features(images)
            embedder.encode_features(features)
            embedder.reranker.keep(features)

    run(photos[:IMAGE_BATCH])
    started = time.perf_counter()
    run(photos)
    return len(photos) / (time.perf_counter() - started)


def by_workers(photos: Path, warm_up: Path, count: int, processes: int, threads: int, broker: str) -> float:
    """Return photos per second of ``enqueue`` with a worker of ``processes`` processes."""
    from ldot_milvus.ingest.journal import open_journal

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        env = {"LDOT_BROKER": broker, "LDOT_STORE": f"faiss:{place}/store", "LDOT_DEVICE": "cpu",
               "OMP_NUM_THREADS": str(threads)}  # fmt: skip
        pool = ("--pool", "solo") if processes == 1 else ("--pool", "prefork", "--concurrency", str(processes))
        worker = Worker(folder, env, *pool)
        try:
            # Small chunks first, so that every process loads its model.
            enqueue(warm_up, env, folder, "--chunk-size", "8")
            enqueue(photos, env, folder)
            journal = open_journal(f"{place}/store/ingestion.sqlite")
            progress = journal.progress(journal.runs()[0].id)
            assert progress is not None
            assert progress.sums["added"] == count, progress
            return count / (progress.changed - progress.run.started)
        finally:
            worker.stop()


def enqueue(photos: Path, env: dict[str, str], folder: Path, *options: str) -> None:
    command = [CELERY, "-A", "workers", "enqueue", str(photos), *options]
    subprocess.run(command, env={**os.environ, **env}, cwd=folder, check=True, capture_output=True)


@contextmanager
def running_broker(url: str | None) -> Iterator[str]:
    """Yield ``url``, or the address of a temporary Redis server without one."""
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory() as place:
        server = RedisServer(Path(place))
        server.start()
        try:
            yield server.url
        finally:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--broker", help="URL of the broker (default: a temporary Redis server)")
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    rates: dict[str, list[float]] = {"bare": [], "one worker": [], "one process a core": []}
    with running_broker(options.broker) as broker, tempfile.TemporaryDirectory() as place:
        photos = varied_photos(Path(place) / "photos", options.photos, seed=5, side=500)
        warm_up = varied_photos(Path(place) / "warm-up", 16 * cores, seed=6, side=500)
        for _ in range(options.repeats):  # alternating, so that other load on the machine affects all three alike
            rates["bare"].append(bare(sorted(photos.iterdir()), cores))
            rates["one worker"].append(by_workers(photos, warm_up, options.photos, 1, cores, broker))
            rates["one process a core"].append(by_workers(photos, warm_up, options.photos, cores, 1, broker))
    best = {name: max(values) for name, values in rates.items()}
    print(json.dumps({
        "machine": f"{platform.machine()}, {cores} cores", "photos": options.photos, "repeats": options.repeats,
        "photos_a_second": {name: [round(value, 2) for value in values] for name, values in rates.items()},
        "one_worker_to_bare": round(best["one worker"] / best["bare"], 3),
        "processes_to_one_worker": round(best["one process a core"] / best["one worker"], 3),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
