"""Enqueue and prune a folder that has not changed, with this checkout and with an earlier one, alternately; print JSON.

``python benchmarks/reconcile.py EARLIER [PHOTOS]``: EARLIER is a folder with a checkout of the earlier version, such as
``git worktree add ../earlier b54e68f``. No photo is encoded: the collections are filled with random vectors. The same
environment runs both, so both must work with its packages.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROUNDS = 3

FILL = """
import hashlib, os, sys
import numpy as np
from ldot_milvus import open_store
from ldot_milvus.stores import Record
try:
    from ldot_milvus.ingest.ingestor import Ingestor
    kept = {"x": np.zeros(1, np.float16)}
except ImportError:  # 0.1.0
    from ldot_milvus.ingestion import Ingestor
    from ldot_milvus.regions import Regions
    kept = Regions(np.zeros((1, 1), np.float32), np.zeros((1, 7), np.float32), np.zeros(1, np.float32))
folder, address = sys.argv[1:]
store = open_store(address, "images")
ingestor = Ingestor(store)
rng = np.random.default_rng(0)
names = sorted(os.listdir(folder))
for start in range(0, len(names), 5000):
    rows = []
    for name in names[start : start + 5000]:
        path = os.path.join(folder, name)
        id = hashlib.sha256(open(path, "rb").read()).hexdigest()
        rows.append(Record(id, rng.standard_normal(store.dim).astype(np.float32), source=path, width=1, height=1))
    store.upsert(rows)
    ingestor.region_store.put({row.id: kept for row in rows})
"""

ENQUEUE = """
import resource, sys, time
from ldot_milvus import open_store
from ldot_milvus.batches import batched
try:
    from ldot_milvus.ingest.changes import prune
    from ldot_milvus.ingest.ingestor import Ingestor
    from ldot_milvus.sources import expand, join_descriptions
except ImportError:  # 0.1.0
    from ldot_milvus.changes import prune
    from ldot_milvus.ingestion import Ingestor
    from ldot_milvus.sources import expand
    join_descriptions = list
folder, address = sys.argv[1:]
started = time.perf_counter()
store = open_store(address, "images")
ingestor = Ingestor(store)
sources = join_descriptions(expand([folder]))
unchanged = 0
for chunk in batched(sources, 64):
    report = ingestor.ingest(chunk)
    unchanged += report.unchanged
assert unchanged == len(sources), unchanged
enqueued = time.perf_counter()
pruned = prune(store, [folder], sources)
assert not (pruned.gone or pruned.moved)
print(enqueued - started, time.perf_counter() - enqueued, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def run(checkout: Path, script: str, *arguments: str, **env: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LDOT_")}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=checkout, check=False,
        env={**clean, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def main(earlier: Path, count: int) -> None:
    checkouts = {"earlier": earlier.absolute(), "now": ROOT}
    photo = next((ROOT / "examples" / "photos").glob("*.jpg")).read_bytes()[:2000]  # hashed, not decoded
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "photos")
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:07}.jpg").write_bytes(photo + number.to_bytes(4, "big"))
        for name, checkout in checkouts.items():
            run(checkout, FILL, str(folder), f"faiss:{place}/{name}")
        for _ in range(ROUNDS):
            for name, checkout in checkouts.items():
                enqueue, prune, mebibytes = map(
                    float, run(checkout, ENQUEUE, str(folder), f"faiss:{place}/{name}").split()
                )
                measured[name].append((enqueue, prune, mebibytes))
    columns = {name: list(zip(*runs, strict=True)) for name, runs in measured.items()}
    result: dict[str, object] = {"photos": count, "cores": os.cpu_count()}
    for column, unit in enumerate(("enqueue s", "prune s", "peak MiB")):
        values = {name: [round(value, 1) for value in found[column]] for name, found in columns.items()}
        medians = {name: statistics.median(found[column]) for name, found in columns.items()}
        result[unit] = values
        result[f"{unit}, now to earlier"] = round(medians["now"] / medians["earlier"], 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100_000)
