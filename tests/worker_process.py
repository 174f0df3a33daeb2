"""A worker as a test wants it: started, watched, and killed at any moment."""

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
    """``celery worker`` in a folder and a process group of its own: what it is told must not hang on where it stands.

    Args:
        app: what ``-A`` names; ``tests.faulty`` breaks at chosen places.
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
        """The processes of its pool."""
        try:
            text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in text.split()]

    def kill(self) -> None:
        """-9 to the worker itself."""
        self.process.kill()
        self.process.wait()

    def kill_group(self) -> None:
        """-9 to the worker and its pool at once, as a host that goes away does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, seconds: float = 30) -> None:
        """Ask it to end, and see to it."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_for(self, text: str, seconds: float = 120) -> str:
        """Wait until its log has this text; returns the log."""
        deadline = time.monotonic() + seconds
        while text not in (log := self.log.read_text(errors="replace")):
            assert self.process.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.1)
        return log
