"""A query against the sum of its bare parts, alone and at once, quiet and beside a busy process.

    OMP_NUM_THREADS=1 python -m benchmarks.query --out benchmarks/results/query.json

The bare parts of a search for a text, with 20 re-ranked photos, are: tokenize, the text graph in ONNX Runtime, FAISS's
search, reading 20 files of region data, and the score graph. They are called by hand on inputs that are ready, in turns
with :meth:`Retriever.search`. Then 1, 8 and 32 threads search at once, first on a quiet machine, then beside a process
that computes without end. Latencies in milliseconds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from benchmarks.families import ROOT, processor
from benchmarks.headline import TEXTS
from benchmarks.report import report
from benchmarks.timing import seconds
from ldot_milvus import Retriever, load_embedder, open_store
from ldot_milvus.forks import cores
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.models.lightningdot.files import SCORE_GRAPH, TEXT_GRAPH, LightningDOTFiles
from ldot_milvus.models.lightningdot.inputs import pad_regions
from ldot_milvus.models.lightningdot.region_data import regions_of
from ldot_milvus.models.onnx_graph import Graph, load_graph
from ldot_milvus.models.registry import find_model
from ldot_milvus.models.tokens import load_tokens
from ldot_milvus.sources import expand

RERANK, THREADS = 20, (1, 8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=192, help="queries of each measurement")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ldot-bench-") as name, open_store(f"faiss:{name}", "photos") as store:
        Ingestor(store, "ldot-mini", device="cpu").ingest(list(expand([str(ROOT / "examples" / "photos")])))
        retriever = Retriever(load_embedder("ldot-mini", device="cpu"), store)
        result: dict[str, Any] = {
            "machine": processor(), "cores": cores(), "photos": store.count(), "re-ranked": RERANK,
            "parts": parts(retriever, options.queries),
        }  # fmt: skip
        for condition, busy in (("quiet", 0), ("beside a busy process", 1)):
            with busy_processes(busy):
                result[condition] = {
                    f"{threads} at once": at_once(retriever, threads, options.queries) for threads in THREADS
                }
        quiet, busy_ = result["quiet"]["1 at once"], result["beside a busy process"]["1 at once"]
        result["busy_p90_to_quiet_p50"] = round(busy_["p90"] / quiet["p50"], 2)
    report(result, options.out)


def parts(retriever: Retriever, queries: int) -> dict[str, float]:
    """Return the median milliseconds of each bare part and of a search, and the median of the rounds' ratios."""
    files = find_model("ldot-mini")
    assert isinstance(files, LightningDOTFiles)
    reranker = files.own_reranker()
    tokens = load_tokens(files.folder)
    assert reranker is not None
    assert tokens is not None
    text, score = graph(files.folder, TEXT_GRAPH, files.config), graph(reranker.folder, SCORE_GRAPH, reranker.config)
    hits = retriever.search(TEXTS[0], k=RERANK, rerank=0)
    regions = retriever.region_store
    assert regions is not None
    paths = [regions._path(hit.id) for hit in hits]
    stored = [regions_of(one) for one in regions.get([hit.id for hit in hits]).values()]
    features, _, mask = pad_regions(stored, np.float16)
    texts = [tokens.arrays(tokens.ids([query], 60, None)) for query in TEXTS]
    import faiss

    rows = np.stack(
        [row.embedding for row in retriever.store.iterate(with_embeddings=True) if row.embedding is not None]
    )
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    vector = retriever.embedder.encode_texts([TEXTS[0]])
    pairs = np.zeros(RERANK, np.int64)
    bare: dict[str, Callable[[int], object]] = {
        "tokenize": lambda number: tokens.ids([TEXTS[number]], 60, None),
        "encode the text": lambda number: text(ids=texts[number][0], mask=texts[number][1]),
        "search the index": lambda number: index.search(vector, RERANK),
        "read 20 region data": lambda number: [load(Path(path).read_bytes()) for path in paths],
        "score 20 pairs": lambda number: score(
            ids=texts[number][0], mask=texts[number][1], text_of_pair=pairs, regions=features, region_mask=mask
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in (*bare, "search")}
    for count in range(queries):
        number = count % len(TEXTS)
        for name, call in bare.items():
            times[name].append(1000 * seconds(partial(call, number)))
        times["search"].append(1000 * seconds(partial(retriever.search, TEXTS[number], k=5, rerank=RERANK)))
    sums = np.sum([times[name] for name in bare], axis=0)
    medians = {name: round(float(np.median(values)), 2) for name, values in times.items()}
    return {**medians, "sum of the parts": round(float(np.median(sums)), 2),
            "search_to_parts": round(float(np.median(np.array(times["search"]) / sums)), 3)}  # fmt: skip


def graph(folder: Path, name: str, config: dict[str, Any]) -> Graph:
    loaded = load_graph(folder / name, folder / "model.safetensors", config)
    assert loaded is not None
    return loaded


def at_once(retriever: Retriever, threads: int, queries: int) -> dict[str, float]:
    """Return latencies and queries a second of so many threads, each of which searches without a pause."""

    def search(number: int) -> float:
        return 1000 * seconds(lambda: retriever.search(TEXTS[number % len(TEXTS)], k=5, rerank=RERANK))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(search, range(threads)))
        started = time.perf_counter()
        latencies = list(pool.map(search, range(queries)))
        took = time.perf_counter() - started
    p50, p90, p99 = np.percentile(latencies, [50, 90, 99]).round(1).tolist()
    return {"p50": p50, "p90": p90, "p99": p99, "queries_per_second": round(queries / took, 1)}


@contextmanager
def busy_processes(count: int):
    """Run so many processes that compute without end."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    time.sleep(1 if processes else 0)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def compute() -> None:
    while True:
        pass


if __name__ == "__main__":
    main()
