"""Local ports: free ones, and waiting until a server listens or no longer does."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from contextlib import ExitStack, suppress

_RANDOM = random.SystemRandom()  # tests seed the others


def free_port() -> int:
    """Return a local port on which nothing listens."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return different local ports on which nothing listens.

    They are below those of outgoing connections, one of which could take the port of a server that is restarted. They
    are drawn at random, so that processes that ask at the same time get different ones.

    Args:
        count: how many.
    """
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            port = _RANDOM.randrange(10_000, 32_768)
            probe = stack.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def preferred_port(port: int) -> int:
    """Return ``port`` if nothing listens on it, else another one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port of a server that has just ended
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return free_port()
    return port


def listens(port: int) -> bool:
    """Tell whether a local server accepts connections."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    """Wait until a process that was just started listens.

    Args:
        port: its port.
        process: the process, whose end fails the waiting.
        seconds: how long to wait.
    """
    deadline = time.monotonic() + seconds
    while not listens(port):
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args!r} does not answer"
        time.sleep(0.1)


def wait_for_no_port(port: int) -> None:
    """Wait until nothing listens on a port."""
    deadline = time.monotonic() + 20
    while listens(port):
        assert time.monotonic() < deadline, f"port {port} still answers"
        time.sleep(0.05)
