"""Start the services of ``examples/`` as a user does, and load them with concurrent queries."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.servers.ports import free_port

ROOT = Path(__file__).parents[1]
TEXTS = ("a long red bus", "two people riding horses on the beach", "a bear in the grass", "a boy on a skateboard")


@dataclass(frozen=True)
class Answers:
    """What a load of queries got.

    Attributes:
        outcomes: number of each status code, or of each exception by name.
        latencies: seconds of each query, sorted.
        seconds: from the first query to the last answer.
        bodies: the different answers of each text.
    """

    outcomes: dict[str, int]
    latencies: list[float]
    seconds: float
    bodies: dict[str, set[str]]


@contextmanager
def idle_heartbeat(folder: Path) -> Iterator[None]:
    """Write to a file in a new ``folder`` how late the machine wakes a process that does nothing else."""
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "standstill.py")], env={**os.environ, "LDOT_TEST_STANDSTILL": str(folder)}
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Service:
    """A service in its own process group.

    Args:
        folder: folder of its log.
        command: program and arguments; ``{port}`` becomes a free port.
        env: additional environment variables.
    """

    def __init__(self, folder: Path, command: Sequence[str], env: dict[str, str]) -> None:
        self.port = free_port()
        self.log = folder / "service.log"
        program, *arguments = [part.format(port=self.port) for part in command]
        paths = [str(ROOT), str(ROOT / "examples"), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).parent / program), *arguments],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **env},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def wait_for(self, text: str, count: int = 1, seconds: float = 120) -> None:
        """Wait until the log contains a text so many times."""
        deadline = time.monotonic() + seconds
        while (log := self.log.read_text(errors="replace")).count(text) < count:
            assert self.process.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.05)

    def load(self, path: str, queries: int, *, seconds: float = 120) -> Answers:
        """Send so many queries at once, each over a connection of its own.

        Args:
            path: path with ``{}`` for the text of a query.
            queries: number of queries, and of connections.
            seconds: time limit of each.
        """
        return asyncio.run(self._load(path, queries, seconds))

    async def _load(self, path: str, queries: int, limit: float) -> Answers:
        import httpx

        outcomes: Counter[str] = Counter()
        latencies: list[float] = []
        bodies: dict[str, set[str]] = {}

        async def ask(client: httpx.AsyncClient, text: str) -> None:
            started = time.monotonic()
            try:
                answer = await client.get(self.url(path.format(text.replace(" ", "+"))))
                outcomes[str(answer.status_code)] += 1
                bodies.setdefault(text, set()).add(answer.text)
            except httpx.HTTPError as error:
                outcomes[type(error).__name__] += 1
            latencies.append(time.monotonic() - started)

        limits = httpx.Limits(max_connections=queries, max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=limit, limits=limits) as client:
            started = time.monotonic()
            await asyncio.gather(*(ask(client, TEXTS[number % len(TEXTS)]) for number in range(queries)))
            took = time.monotonic() - started
        return Answers(dict(outcomes), sorted(latencies), took, bodies)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
