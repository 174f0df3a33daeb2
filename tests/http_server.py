"""A server for tests that sends exactly the given bytes, also invalid HTTP."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

Answer = Callable[[], bytes | Iterable[bytes]]


class RawServer:
    """Answers each path with the parts that its function yields, and records the requests.

    Attributes:
        hits: number of requests by path.
        hosts: the received Host headers.
        sent: number of bytes sent by path.
    """

    def __init__(
        self, address: str = "127.0.0.1", wrap: Callable[[socket.socket], socket.socket] | None = None
    ) -> None:
        self.answers: dict[str, Answer] = {}
        self.hits: Counter[str] = Counter()
        self.hosts: list[str] = []
        self.sent: Counter[str] = Counter()
        self._wrap = wrap or (lambda connection: connection)
        self._closing = threading.Event()
        self._listener = socket.create_server((address, 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://{address}:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def says(self, path: str, answer: bytes | Answer) -> str:
        """Set the answer of a path; return its URL."""
        self.answers[path] = answer if callable(answer) else lambda: answer
        return self.url + path

    def close(self) -> None:
        self._closing.set()
        self._listener.close()

    def dripping(self, first: bytes, drop: bytes, seconds: float) -> Iterator[bytes]:
        """Yield ``first``, then ``drop`` repeatedly until the server is closed."""
        yield first
        while not self._closing.wait(seconds):
            yield drop

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, self._wrap(connection) as opened:
            request = b""
            while b"\r\n\r\n" not in request:
                part = opened.recv(65536)
                if not part:
                    return
                request += part
            lines = request.decode("latin-1").split("\r\n")
            path = lines[0].split(" ")[1]
            self.hits[path] += 1
            self.hosts += [line[6:] for line in lines if line.lower().startswith("host: ")]
            answer = self.answers[path]()
            for part in [answer] if isinstance(answer, bytes) else answer:
                opened.sendall(part)
                self.sent[path] += len(part)


def ok(body: bytes, *headers: str) -> bytes:
    """Format an answer with the status 200 and a body."""
    lines = "".join(f"{header}\r\n" for header in headers or (f"Content-Length: {len(body)}",))
    return f"HTTP/1.1 200 OK\r\n{lines}Connection: close\r\n\r\n".encode() + body


def status(code: int, *headers: str) -> bytes:
    """Format an answer without a body."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 {code} So\r\n{lines}Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
