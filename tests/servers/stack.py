"""The parts of a deployment on this machine: Redis, Milvus, a worker and the service, started and stopped together."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.servers.milvus_server import READY
from tests.servers.ports import free_port, preferred_port
from tests.servers.processes import Running, start
from tests.servers.redis_server import redis_command

PORTS = {"redis": 6379, "milvus": 19530, "service": 8080}
"""The ports of the parts, where they are free."""

ROOT = Path(__file__).parents[2]


def _pongs(port: int) -> bool:
    """Whether a Redis answers: it listens before it reads its data, which may end it."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


class NotStarted(Exception):
    """A part ended, or did not answer in time; the message has the end of its log."""


@dataclass(frozen=True)
class Part:
    """A part of the deployment.

    Attributes:
        name: its name, and that of its log.
        address: where it is reached, for people.
        command: program and arguments.
        ready: whether it answers; it is called until it does.
        seconds: how long it may take to answer.
        end: the signal that ends it.
        grace: seconds that it may take to end.
    """

    name: str
    address: str
    command: list[str]
    ready: Callable[[], bool]
    seconds: float = 60
    end: signal.Signals = signal.SIGTERM
    grace: float = 30


class Stack:
    """The parts, with their data, logs and process ids in one folder.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.settings_file = self.folder / "settings.env"
        self._state = self.folder / "processes.json"

    def up(self, say: Callable[[str], object] = print) -> None:
        """Start the parts that do not run, in order, and wait until each answers.

        Args:
            say: prints a line.

        Raises:
            NotStarted: a part did not start; those that this call has started are stopped again.
        """
        with self._locked():
            running, ports = self._read()
            ports = self._choose_ports(running, ports)
            self._write_settings(ports)
            begun: list[Part] = []
            for part in self._parts(ports):
                if part.name in running and running[part.name].alive():
                    say(f"{part.name:8} {part.address}   runs already")
                    continue
                if part.name in running:
                    running[part.name].stop(part.end, 0)  # its children
                begun.append(part)
                running[part.name] = start(part.command, self._log(part), self._env(), ROOT)
                self._write(running, ports)
                try:
                    self._wait_for(part, running[part.name])
                except (NotStarted, KeyboardInterrupt):
                    self._stop(begun, running, ports, lambda _: None)
                    raise
                say(f"{part.name:8} {part.address}")

    def down(self, say: Callable[[str], object] = print) -> bool:
        """Stop all parts, in the reverse order, with everything that they have started.

        Args:
            say: prints a line.

        Returns:
            Whether nothing is left.
        """
        with self._locked():
            running, ports = self._read()
            self._stop(self._parts(ports), running, ports, say)
            return not running

    def processes(self) -> dict[str, list[int]]:
        """Return the process ids of each part that runs, with its children."""
        return {name: members for name, part in self._read()[0].items() if (members := part.members())}

    def _parts(self, ports: dict[str, int]) -> list[Part]:
        redis, milvus, service = (ports.get(name, PORTS[name]) for name in PORTS)
        bin_folder = Path(sys.executable).parent
        health = f"http://127.0.0.1:{service}/health/ready"
        return [
            Part("redis", f"redis://127.0.0.1:{redis}/0", redis_command(self.folder / "redis", redis),
                 lambda: _pongs(redis)),
            # This version of Milvus takes minutes to react to SIGTERM, and survives SIGKILL.
            Part("milvus", f"http://127.0.0.1:{milvus}",
                 [sys.executable, "-m", "tests.servers.milvus_server", str(self.folder / "milvus"), str(milvus)],
                 lambda: READY in self._text("milvus"), 240, signal.SIGKILL),
            # A worker finishes its chunk first.
            Part("worker", "two processes",
                 [str(bin_folder / "celery"), "-A", "ldot_milvus.workers", "worker", "--pool", "prefork",
                  "--concurrency", "2", "--loglevel", "INFO"],
                 lambda: " ready." in self._text("worker"), grace=120),
            Part("service", f"http://127.0.0.1:{service}",
                 [str(bin_folder / "ldot"), "serve", "--host", "127.0.0.1", "--port", str(service)],
                 lambda: _answers(health), 180),
        ]  # fmt: skip

    def _env(self) -> dict[str, str]:
        """The settings are those of the file alone, so that ``up`` starts the same from every shell."""
        others = {name: value for name, value in os.environ.items() if not name.startswith("LDOT_")}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"LDOT_ENV_FILE": str(self.settings_file), "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        return {"OMP_NUM_THREADS": "1", **others, **own}

    def _write_settings(self, ports: dict[str, int]) -> None:
        lines = [
            f"LDOT_STORE=http://127.0.0.1:{ports['milvus']}",
            f"LDOT_BROKER=redis://127.0.0.1:{ports['redis']}/0",
            f"LDOT_REGION_STORE={self.folder / 'regions'}",
            "LDOT_SERVE_INGEST=true",
        ]
        self.settings_file.write_text("\n".join(lines) + "\n")

    @staticmethod
    def _choose_ports(running: dict[str, Running], ports: dict[str, int]) -> dict[str, int]:
        """Keep the ports of parts that run; the others get the usual ones, or free ones where these are taken."""
        chosen = {name: ports[name] for name in PORTS if name in running and name in ports and running[name].alive()}
        for name, usual in PORTS.items():
            if name not in chosen:
                port = preferred_port(ports.get(name, usual))
                chosen[name] = free_port() if port in chosen.values() else port
        return chosen

    def _wait_for(self, part: Part, process: Running) -> None:
        deadline = time.monotonic() + part.seconds
        while not part.ready():
            ended = not process.alive()
            if ended or time.monotonic() > deadline:
                what = "ended" if ended else f"did not answer within {part.seconds:.0f} s"
                last = "\n".join(self._text(part.name).splitlines()[-5:])
                raise NotStarted(f"{part.name} {what}; the end of {self._log(part)}:\n{last}")
            time.sleep(0.2)

    def _stop(
        self, parts: list[Part], running: dict[str, Running], ports: dict[str, int], say: Callable[[str], object]
    ) -> None:
        for part in reversed(parts):
            process = running.pop(part.name, None)
            if process is None or not process.members():
                say(f"{part.name:8} does not run")
                continue
            process.stop(part.end, part.grace)
            if left := process.members():
                running[part.name] = process
                say(f"{part.name:8} could not be stopped: processes {left}")
            else:
                say(f"{part.name:8} stopped")
        self._write(running, ports)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one command at a time start and stop."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _log(self, part: Part) -> Path:
        return self.folder / f"{part.name}.log"

    def _text(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _read(self) -> tuple[dict[str, Running], dict[str, int]]:
        if not self._state.exists():
            return {}, {}
        state = json.loads(self._state.read_text())
        return {name: Running(**values) for name, values in state["running"].items()}, state["ports"]

    def _write(self, running: dict[str, Running], ports: dict[str, int]) -> None:
        state = {"running": {name: asdict(process) for name, process in running.items()}, "ports": ports}
        self._state.write_text(json.dumps(state, indent=2) + "\n")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
