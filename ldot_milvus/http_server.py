"""What our HTTP servers have in common: a listening socket, and limits on the body of a request."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

import anyio
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

BYTES_A_SECOND = 32 * 2**10
"""Least rate at which a body has to arrive, after the first seconds."""

DRAINED = 4 * 2**20
DRAIN_SECONDS = 2.0

_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}  # seconds, seconds, probes


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host by this name."""
    return host.startswith("127.") or bracketed(host) in LOOPBACK


def bracketed(host: str) -> str:
    """Return a host as in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket whose connections notice that a client's machine has disappeared.

    Raises:
        OSError: the address cannot be used.
    """
    family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.create_server(place[:2], family=family, backlog=1024)
    # A client whose machine disappears never says so: the kernel finds out. Connections inherit these options.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        for option, value in _KEEPALIVE.items():
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return listening


Refuse = Callable[[int, str], ASGIApp]
"""Makes an answer of a status and a text."""


class BodyLimits:
    """Refuse a request whose body is too large or arrives too slowly, for both of which uvicorn has no limit.

    Args:
        app: the application.
        bytes: returns the largest body of a request.
        seconds: time limit of the first bytes; more are allowed for a body that arrives.
        refuse: makes the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        bytes: Callable[[Scope], int],
        seconds: float = 30,
        refuse: Refuse = lambda status, text: PlainTextResponse(text, status, {"connection": "close"}),
    ) -> None:
        self._app, self._bytes, self._seconds, self._refuse = app, bytes, seconds, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application with a limited ``receive``."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._bytes(scope), self._seconds)
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if body.refused and not started:  # whatever the application made of it
                return
            started = True
            await send(message)

        body.check_length(scope)
        if not body.refused:
            try:
                await self._app(scope, body.receive, answer)
            except _Refused:
                pass
            except Exception:
                if not body.refused:
                    raise
        if body.refused and not started:
            await body.drain()
            await self._refuse(*body.refused)(scope, receive, send)


class _Refused(Exception):
    """The rest of a body is not read."""


class _Body:
    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self._receive, self._limit, self._seconds = receive, limit, seconds
        self._began = anyio.current_time()
        self._size, self._complete = 0, False
        self.refused: tuple[int, str] | None = None

    def check_length(self, scope: Scope) -> None:
        """Refuse a body that is announced as too large."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limit:
            self._refuse_size()

    async def receive(self) -> Message:
        """Receive the next part within the limits."""
        if self._complete:
            return await self._receive()
        allowed = self._seconds + self._size / BYTES_A_SECOND
        try:
            with anyio.fail_after(self._began + allowed - anyio.current_time()):
                message = await self._receive()
        except TimeoutError:
            self.refused = 408, "the request did not arrive in time: send it faster"
            raise _Refused from None
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            self._refuse_size()
            raise _Refused
        self._complete = not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Read a part of the rest and drop it: many clients read no answer before they have sent everything."""
        end = self._size + DRAINED
        with anyio.move_on_after(DRAIN_SECONDS):
            while self._size < end and not self._complete:
                message = await self._receive()
                self._size += len(message.get("body", b""))
                self._complete = not message.get("more_body", False)

    def _refuse_size(self) -> None:
        self.refused = 413, f"the request is larger than the limit of {self._limit:,} bytes: send less at a time"
