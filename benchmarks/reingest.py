"""Ingest a folder twice with ``celery -A workers enqueue``; print both times and their ratio as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main(folder: str) -> None:
    celery = str(Path(sys.executable).parent / "celery")
    with tempfile.TemporaryDirectory() as place:
        env = {**os.environ, "LDOT_STORE": f"faiss:{place}/store"}
        env.pop("LDOT_BROKER", None)
        seconds, summaries = [], []
        for _ in range(2):
            started = time.perf_counter()
            done = subprocess.run(
                [celery, "-A", "workers", "enqueue", folder], env=env, capture_output=True, text=True, check=False
            )
            seconds.append(round(time.perf_counter() - started, 2))
            summaries.append(next(line for line in done.stdout.splitlines() if "added" in line).split(": ", 1)[1])
    print(json.dumps({"seconds": seconds, "second_to_first": round(seconds[1] / seconds[0], 3), "runs": summaries}))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parents[1] / "examples" / "photos"))
