"""A Celery worker process that a test can watch and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
CELERY = str(Path(sys.executable).parent / "celery")


class Worker:
    """``celery worker`` in its own process group and in another folder than the command that sends to it.

    Args:
        folder: folder for the worker's log and working folder.
        env: additional environment variables.
        arguments: options of ``celery worker``.
        app: the value of ``-A``; ``tests.faulty`` injects faults.
    """

    def __init__(self, folder: Path, env: dict[str, str], *arguments: str, app: str = "workers") -> None:
        self.folder = folder / "elsewhere"
        self.folder.mkdir(exist_ok=True)
        self.log = folder / "worker.log"
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [CELERY, "-A", app, "worker", "--loglevel", "INFO", *arguments],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **env},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def children(self) -> list[int]:
        """Return the process ids of its pool."""
        try:
            text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in text.split()]

    def kill(self) -> None:
        """Kill the worker itself with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def kill_group(self) -> None:
        """Kill the worker and its pool at once with SIGKILL, as the failure of a host does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, seconds: float = 30) -> None:
        """Terminate the worker, and kill it after ``seconds``."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_for(self, text: str, seconds: float = 120) -> str:
        """Wait until the log contains ``text``; return the log."""
        deadline = time.monotonic() + seconds
        while text not in (log := self.log.read_text(errors="replace")):
            assert self.process.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.1)
        return log
