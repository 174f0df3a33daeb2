"""Measure loading and searching of whole stores: rows per second, ms per search with and without a filter, recall@10.

    python -m benchmarks.stores --rows 10000 100000 1000000 --dim 768 --out benchmarks/results/stores.json

Measures the local store and the Milvus server of the PyPI package, each in a temporary folder, with the vectors of
``indexes.py``. Recall is relative to the local store's exact index. A server is measured twice: fresh, right after the
last write, and sealed, when its segments are closed and their indexes built and loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.indexes import K, vectors
from ldot_milvus.stores import Record, open_store
from ldot_milvus.stores.milvus.schema import VECTOR
from tests.servers.milvus_server import PackagedServer

BATCH = 2000
FILTER = {"namespace": {"$eq": "tenant-3"}}  # a tenth of the rows
KINDS = {"local": ("FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8"), "server": ("FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8")}
SEALED_WITHIN = 3600  # seconds


def load(store, rows):
    for start in range(0, len(rows), BATCH):
        store.upsert(
            [
                Record(f"{start + n:064d}", row, namespace=f"tenant-{n % 10}", source=f"/photos/{start + n}.jpg")
                for n, row in enumerate(rows[start : start + BATCH])
            ]
        )


def timed_searches(store, queries, filter=None):
    times, results = [], []
    for query in queries:
        started = time.perf_counter()
        [matches] = store.search(query[None], K, filter=filter)
        times.append(time.perf_counter() - started)
        results.append({match.record.id for match in matches})
    assert all(len(ids) == K for ids in results)
    return round(1000 * float(np.median(times)), 2), results


def seal(store):
    """Close the growing segments, wait for their indexes, and load the indexes."""
    name = store.server.call("describe_collection", store.collection)["collection_name"]
    store.server.call("flush", name, timeout=SEALED_WITHIN)
    deadline = time.monotonic() + SEALED_WITHIN
    while True:
        state = store.server.call("describe_index", name, VECTOR)
        if str(state["state"]) == "Finished" and not int(state.get("pending_index_rows") or 0):
            break
        assert time.monotonic() < deadline, state
        time.sleep(1)
    store.server.call("release_collection", name)
    store.server.call("load_collection", name, timeout=SEALED_WITHIN)


def measure(name, address, kind, rows, queries, best):
    """Return the ids found by the exact index, and one result for the local store or two for a server."""
    with open_store(address, f"rows_{len(rows)}_{kind}", kind) as store:
        store.bind("benchmark", rows.shape[1])
        started = time.perf_counter()
        load(store, rows)
        loaded = time.perf_counter()
        results = []
        for state in ("built",) if name == "local" else ("fresh", "sealed"):
            if state == "sealed":
                seal(store)
            store.search(queries[:1], K)  # the first search indexes the written rows, or waits until they are visible
            ready = time.perf_counter()
            assert store.count() == len(rows)
            search_ms, ids = timed_searches(store, queries)
            filtered_ms, _ = timed_searches(store, queries, FILTER)
            best = best or ids
            results.append({
                "store": name, "index": kind, "state": state, "rows": len(rows), "dim": rows.shape[1],
                "loaded_rows_a_second": round(len(rows) / (loaded - started)),
                "ready_after_s": round(ready - loaded, 2), "search_ms": search_ms, "filtered_search_ms": filtered_ms,
                "recall_at_10": round(float(np.mean([len(a & b) / K for a, b in zip(ids, best, strict=True)])), 4),
            })  # fmt: skip
        if name == "server":  # frees its memory before the next collection is loaded
            physical = store.server.call("describe_collection", store.collection)["collection_name"]
            store.server.call("drop_alias", store.collection)
            store.server.call("drop_collection", physical)
    return best, results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--stores", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--kinds", nargs="+", help="index types, the same for every store")
    parser.add_argument("--out", type=Path, help="also write the results as JSON to this file")
    options = parser.parse_args()
    results = []
    print("store   index     state        rows   rows/s  ready s       ms filtered  recall")
    for count in options.rows:
        rows, queries = vectors(count, options.dim, options.queries, spread=2.0)
        best = None
        for name in options.stores:
            with tempfile.TemporaryDirectory(prefix="ldot-bench-", ignore_cleanup_errors=True) as folder:
                server = PackagedServer(Path(folder)) if name == "server" else None
                address = f"faiss:{folder}" if server is None else server.start()
                try:
                    for kind in options.kinds or KINDS[name]:
                        best, measured = measure(name, address, kind, rows, queries, best)
                        results += measured
                        for result in measured:
                            *cells, recall = list(result.values())[5:]
                            print(f"{name:<8}{kind:<10}{result['state']:<8}{count:>9}"
                                  + "".join(f"{cell:>9}" for cell in cells) + f"{recall:>8}", flush=True)  # fmt: skip
                finally:
                    if server is not None:
                        server.stop()
        if options.out:
            options.out.write_text(json.dumps({"cores": os.cpu_count(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
