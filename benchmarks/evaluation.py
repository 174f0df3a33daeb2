"""``ldot eval --rerank 20`` against an earlier version, without a cache and with one that an evaluation has filled.

    git worktree add /tmp/before v0.1.0
    python -m benchmarks.evaluation --old /tmp/before --data dev.tar --out benchmarks/results/evaluation.json

The processes of the versions take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.families import ROOT, processor
from benchmarks.report import report
from ldot_milvus.forks import cores


def evaluate(tree: Path, data: str, *options: str) -> dict[str, Any]:
    """Run ``ldot eval`` of a working tree, and return what it prints."""
    command = [sys.executable, "-m", "ldot_milvus", "eval", "--data", data, "--rerank", "20", "--json", *options]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, cwd=tree, stdout=subprocess.PIPE, text=True, check=True)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="a working tree of the version to compare with")
    parser.add_argument("--data", required=True, help="photos with captions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"old": [], "new": [], "new, cached": []}
    figures: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="ldot-bench-") as cache:
            runs = {
                "old": evaluate(options.old, options.data),
                "new": evaluate(ROOT, options.data, "--cache", cache),
                "new, cached": evaluate(ROOT, options.data, "--cache", cache),
            }
        for name, result in runs.items():
            seconds[name].append(result.pop("seconds"))
            print(name, seconds[name][-1], flush=True)
        figures += [runs["new"], runs["new, cached"]]
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    result = {
        "machine": processor(), "cores": cores(), "images": figures[0]["images"], "rounds": options.rounds,
        "seconds": {name: round(value, 1) for name, value in medians.items()},
        "old_to_new": round(medians["old"] / medians["new"], 2),
        "old_to_cached": round(medians["old"] / medians["new, cached"], 2),
        "same_figures": all(one == figures[0] for one in figures),
    }  # fmt: skip
    report(result, options.out)


if __name__ == "__main__":
    main()
