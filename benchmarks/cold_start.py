"""The first answer from the shell: ``ldot search`` of two checkouts in alternation, each in new processes.

    python benchmarks/cold_start.py OLD NEW [--pairs 5] [--out benchmarks/results/cold-start.json]

OLD and NEW are checkouts. Each fills a store of its own with examples/photos first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUERY = "two people riding horses on the beach"
PHOTOS = Path(__file__).parents[1] / "examples" / "photos"


def run(checkout: Path, folder: Path, *command: str) -> tuple[float, float]:
    """Run a command of a checkout in a folder; return its seconds of wall clock and of the processor."""
    env = {**os.environ, "PYTHONPATH": str(checkout), "LDOT_STORE": f"faiss:{folder}/store"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {"old": [], "new": [], "help": []}
    with tempfile.TemporaryDirectory() as root:
        folders = {name: Path(root) / name for name in ("old", "new")}
        checkouts = {"old": arguments.old.resolve(), "new": arguments.new.resolve()}
        for name, folder in folders.items():
            folder.mkdir()
            run(checkouts[name], folder, "-m", "celery", "-A", "workers", "enqueue", str(PHOTOS))
            run(checkouts[name], folder, "-m", "ldot_milvus", "search", QUERY)  # fills the page cache
        for _ in range(arguments.pairs):
            for name, folder in folders.items():
                seconds[name].append(run(checkouts[name], folder, "-m", "ldot_milvus", "search", QUERY))
            seconds["help"].append(run(checkouts["new"], folders["new"], "-m", "ldot_milvus", "--help"))
    medians = {
        name: {"seconds": round(statistics.median(one for one, _ in runs), 3),
               "processor_seconds": round(statistics.median(one for _, one in runs), 3)}
        for name, runs in seconds.items()
    }  # fmt: skip
    result = {
        "machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "pairs": arguments.pairs,
        "search_old": medians["old"], "search_new": medians["new"], "help_new": medians["help"],
        "ratio": round(medians["new"]["seconds"] / medians["old"]["seconds"], 3),
        "ratio_processor": round(medians["new"]["processor_seconds"] / medians["old"]["processor_seconds"], 3),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
