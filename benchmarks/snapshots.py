"""Compare two versions of the local store: first answer of a new process, searches with and without a filter, memory.

    git worktree add /tmp/before v0.1.0
    python -m benchmarks.snapshots --old /tmp/before --rows 1000000 --out benchmarks/results/snapshots.json

Each version has its own copy of the same store. New processes of the two versions take turns, so that a busy machine
slows both. The first process of the new version writes the snapshot; it is measured apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.indexes import vectors
from benchmarks.report import report
from benchmarks.stores import BATCH, load
from ldot_milvus.stores import open_store

ROOT = Path(__file__).parents[1]
CHILD = """
import time
started = time.perf_counter()
import json, sys
import numpy as np
from ldot_milvus.stores.index_spec import IndexSpec
from ldot_milvus.stores.local.store import FaissStore
folder, kind, queries = sys.argv[1], sys.argv[2], np.load(sys.argv[3])
store = FaissStore(folder, "rows", IndexSpec.parse(kind))
store.search(queries[:1], 10)
first = time.perf_counter() - started
def timed(*searches):  # in turns
    times = []
    for query in queries:
        for search in searches:
            begun = time.perf_counter()
            search(query[None])
            times.append(time.perf_counter() - begun)
    return (1000 * np.median(np.reshape(times, (-1, len(searches))), axis=0)).tolist()
store.search(queries[:1], 10)
part = store._index._indexes["image"]
bare = getattr(part, "_base", part).index
memory = dict(line.split()[:2] for line in open("/proc/self/smaps_rollup") if ":" in line.split()[0])
bare_ms, search_ms, filtered_ms = timed(
    lambda query: bare.search(query, 11), lambda query: store.search(query, 10),
    lambda query: store.search(query, 10, filter={"namespace": {"$eq": "tenant-3"}}),
)
print(json.dumps({
    "first_answer_s": first, "own_memory_mb": int(memory["Private_Dirty:"]) / 1024,
    "bare_ms": bare_ms, "search_ms": search_ms, "filtered_ms": filtered_ms,
    "found": [[match.record.id for match in store.search(query[None], 10)[0]] for query in queries],
}))
"""


def run(tree: Path, folder: Path, kind: str, queries: Path) -> dict:
    """Measure one new process of one version."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, "-c", CHILD, str(folder), kind, str(queries)], env=environment,
                          cwd=tree, stdout=subprocess.PIPE, text=True, check=True)  # fmt: skip
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="a working tree of the version to compare with")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--index", default="FLAT")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the results as JSON to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ldot-bench-") as name:
        folder = Path(name)
        rows, queries = vectors(options.rows, options.dim, options.queries, spread=2.0)
        np.save(folder / "queries.npy", queries)
        with open_store(f"faiss:{folder / 'old'}", "rows", options.index) as store:
            load(store, rows)
        del rows
        shutil.copytree(folder / "old", folder / "new")
        begun = time.perf_counter()
        writing = run(ROOT, folder / "new", options.index, folder / "queries.npy")
        print(f"first process: {writing['first_answer_s']:.1f} s, of {time.perf_counter() - begun:.1f} s", flush=True)
        measured: dict[str, list[dict]] = {"old": [], "new": []}
        for _ in range(options.pairs):
            for version, tree in (("old", options.old), ("new", ROOT)):
                measured[version].append(run(tree, folder / version, options.index, folder / "queries.npy"))
                print(version, {k: round(v, 1) for k, v in measured[version][-1].items() if k != "found"}, flush=True)
        size = {path.name: path.stat().st_size for path in (folder / "new").iterdir()}
    same = all(one["found"] == measured["old"][0]["found"] for runs in measured.values() for one in runs)
    medians = {
        version: {key: round(float(np.median([one[key] for one in runs])), 2) for key in runs[0] if key != "found"}
        for version, runs in measured.items()
    }
    result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}", "threads": os.environ.get("OMP_NUM_THREADS"),
        "index": options.index, "rows": options.rows, "dim": options.dim, "pairs": options.pairs,
        "loaded_in_batches_of": BATCH, "same_results": same,
        "process_that_writes_s": round(writing["first_answer_s"], 2),
        "snapshot_bytes": sum(bytes for name, bytes in size.items() if name.endswith(".index")), **medians,
        "new_to_old": {key: round(medians["new"][key] / medians["old"][key], 3) for key in medians["new"]},
        "search_to_bare": round(medians["new"]["search_ms"] / medians["new"]["bare_ms"], 3),
    }  # fmt: skip
    report(result, options.out)


if __name__ == "__main__":
    main()
