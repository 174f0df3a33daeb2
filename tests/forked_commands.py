"""Run commands in forked children of one process, all at once: what they import is imported once.

Reads a JSON list of ``{"command": [program, ...], "env": {...}, "folder": PATH, "seconds": N}`` from standard input.
Prints a JSON list of ``{"status": exit status or null, "seconds": duration, "output": text}``. The status is null if
the command was killed after its seconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run_all(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the cells in a process of their own; see above."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(cells), env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=280, check=True,
    )  # fmt: skip
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def _main() -> None:
    _import_all()
    running = [(cell, *_start(cell), time.monotonic()) for cell in json.load(sys.stdin)]
    results: dict[int, dict[str, Any]] = {}
    while len(results) < len(running):
        for cell, pid, output, started in running:
            if pid in results:
                continue
            seconds = time.monotonic() - started
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and seconds < cell["seconds"]:
                continue
            if not ended:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status) if ended else None
            results[pid] = {"status": code, "seconds": seconds, "output": output.read_text(errors="replace")}
        time.sleep(0.05)
    print(json.dumps([results[pid] for _, pid, _, _ in running]))


def _import_all() -> None:
    import celery.__main__
    import celery.bin.celery
    import celery.bin.worker  # noqa: F401
    import faiss  # noqa: F401
    import huggingface_hub  # noqa: F401
    import kombu.transport.pyamqp
    import kombu.transport.redis  # noqa: F401
    import s3fs  # noqa: F401

    import ldot_milvus.cli
    import ldot_milvus.models.lightningdot.embedder
    import ldot_milvus.stores.milvus.store
    import ldot_milvus.workers.enqueue  # noqa: F401


def _start(cell: dict[str, Any]) -> tuple[int, Path]:
    folder = Path(cell["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "output.txt"
    pid = os.fork()
    if pid:
        return pid, output
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ.update(cell["env"])
        file = os.open(output, os.O_CREAT | os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = list(cell["command"])
        if sys.argv[0] == "celery":
            from celery.__main__ import main
        else:
            from ldot_milvus.cli import main
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _main()
