"""Measure the index types of the local store on synthetic vectors: build time, search time, recall@10 and memory.

    python benchmarks/indexes.py --rows 10000 100000 --dim 768 --out benchmarks/results/indexes.json

The vectors are distributed like those of a dual encoder: clusters of uneven size, most of the variance in few
directions, different norms, and queries (texts) offset from the rows (photos). GPU types run if FAISS has a GPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from pathlib import Path

import faiss
import numpy as np

from ldot_milvus.stores.index_spec import IndexSpec
from ldot_milvus.stores.local import collection_index, indexes

KINDS = ("FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8", "GPU_BRUTE_FORCE", "GPU_IVF_FLAT")
CHUNK = 8192  # rows, as the store reads them
K = 10


def vectors(count, dim, queries, spread, seed=0):
    """Draw rows, whose norms differ by at most the factor ``spread``, and queries; float32 (count or queries, dim)."""
    random = np.random.default_rng(seed)
    scales = (1 + np.arange(dim)) ** -0.5  # a few hundred directions have most of the variance, as in real embeddings
    clusters = max(count // 100, 10)
    centres = random.normal(size=(clusters, dim)) * scales
    sizes = 1 / (1 + np.arange(clusters)) ** 0.5

    def draw(n, noise):
        drawn = np.empty((n, dim), np.float32)
        for start in range(0, n, 20_000):  # drawing all rows at once takes several times their memory
            block = drawn[start : start + 20_000]
            of = random.choice(clusters, size=len(block), p=sizes / sizes.sum())
            block[:] = centres[of] + noise * random.standard_normal(block.shape, np.float32) * scales
            block /= np.linalg.norm(block, axis=1, keepdims=True)
        return drawn

    rows = draw(count, 1.5)
    rows *= (spread ** random.beta(2, 2, size=(count, 1))).astype(np.float32)
    offset = random.normal(size=dim) * scales
    query_vectors = draw(queries, 2.0) + offset / np.linalg.norm(offset)
    return rows, query_vectors.astype(np.float32)


def size_of(index):
    """Return the serialised size of the index in bytes, without keeping the bytes."""
    written = 0

    def count(block):
        nonlocal written
        written += len(block)
        return len(block)

    faiss.write_index(index, faiss.PyCallbackIOWriter(count, 1 << 20))
    return written


def measure(text, rows, queries, best):
    spec = collection_index.plan(IndexSpec.parse(text), len(rows), rows.shape[1])
    pks = np.arange(len(rows))
    started = time.perf_counter()
    cells = int(spec.params.get("nlist", 0))
    sample = np.random.default_rng(0).permutation(len(rows))[: cells * collection_index.CELL_ROWS]
    part = indexes.build(spec, rows.shape[1], rows[np.sort(sample)] if cells else None)
    for start in range(0, len(rows), CHUNK):
        part.add_with_ids(rows[start : start + CHUNK], pks[start : start + CHUNK])
    seconds = time.perf_counter() - started
    times, results = [], []
    for query in queries:
        started = time.perf_counter()
        [hits] = part.search(query[None], K, None, lambda pks: rows[np.array(pks, np.int64)])
        times.append(time.perf_counter() - started)
        results.append({pk for _, pk in sorted(hits, reverse=True)[:K]})
    return {
        "index": text,
        "built": str(spec),
        "rows": len(rows),
        "dim": rows.shape[1],
        "build_seconds": round(seconds, 2),
        "search_ms": round(1000 * float(np.median(times)), 3),
        "recall_at_10": round(float(np.mean([len(a & set(b)) / K for a, b in zip(results, best, strict=True)])), 4),
        "bytes": size_of(part.index),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--spread", type=float, default=2.0, help="longest norm divided by shortest")
    parser.add_argument(
        "--kinds", nargs="+", default=KINDS, help="index types in the form of LDOT_INDEX, such as HNSW:M=16,ef=64"
    )
    parser.add_argument("--out", type=Path, help="also write the results as JSON to this file")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # the table shows which index types are not available
    results = []
    print(f"{'index':<44}{'rows':>9}{'build s':>9}{'ms':>9}{'recall':>8}{'MB':>8}")
    for count in options.rows:
        rows, queries = vectors(count, options.dim, options.queries, options.spread)
        exact = faiss.IndexFlatIP(options.dim)
        exact.add(rows)
        best = exact.search(queries, K)[1].tolist()
        del exact
        for text in options.kinds:
            spec = IndexSpec.parse(text)
            if spec.needs_gpu and collection_index.available(spec) != spec:
                print(f"{text:<44}{count:>9}  not available in this FAISS")
                continue
            result = measure(text, rows, queries, best)
            results.append(result)
            print(
                f"{result['built']:<44}{count:>9}{result['build_seconds']:>9}{result['search_ms']:>9}"
                f"{result['recall_at_10']:>8}{result['bytes'] / 1e6:>8.1f}",
                flush=True,
            )
    if options.out:
        machine = {"faiss": faiss.__version__, "threads": faiss.omp_get_max_threads(), "cores": os.cpu_count()}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(
            json.dumps({"machine": machine, "spread": options.spread, "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
