"""Processes that outlive the command that started them, and that a later command finds and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Running:
    """A process that leads a process group of its own.

    Attributes:
        pid: its process id, which is that of its group.
        started: when it started, as ``ps`` tells it. A process id is used again, but not with the same start.
    """

    pid: int
    started: str

    def alive(self) -> bool:
        """Tell whether the process itself runs."""
        return _start_of(self.pid) == self.started

    def members(self) -> list[int]:
        """Return the process ids of its group, also if the process itself has ended and left children."""
        leader = _start_of(self.pid)
        if leader is not None and leader != self.started:
            return []  # another process, which has got the same id
        # The command of a thread of the kernel is in brackets; a zombie is only waiting to be collected by its parent.
        rows = (row.split() for row in _ps("-A", "-o", "pid=,pgid=,stat=").splitlines())
        return [int(pid) for pid, group, state in rows if int(group) == self.pid and not state.startswith("Z")]

    def stop(self, number: signal.Signals, seconds: float) -> None:
        """End the process by a signal, and then its group by SIGKILL.

        Args:
            number: the signal for the process itself, which ends its children.
            seconds: how long it may take.
        """
        if self.alive():
            os.kill(self.pid, number)
        self._wait(seconds)
        if self.members():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._wait(10)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.members() and time.monotonic() < deadline:
            time.sleep(0.1)


def start(command: Sequence[str], log: Path, env: Mapping[str, str], folder: Path) -> Running:
    """Start a process in a group of its own, so that the end of a terminal does not reach it.

    Args:
        command: program and arguments.
        log: file for its output, which is emptied.
        env: its environment.
        folder: its working folder.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd=folder,
            start_new_session=True,
        )  # fmt: skip
    return Running(process.pid, _start_of(process.pid) or "")


def _start_of(pid: int) -> str | None:
    """Return when a process started, or None if there is none or it is a zombie."""
    state, _, started = _ps("-p", str(pid), "-o", "stat=,lstart=").strip().partition(" ")
    return None if not state or state.startswith("Z") else " ".join(started.split())


def _ps(*arguments: str) -> str:
    env = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}  # the same start for every shell
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False, env=env).stdout
