"""Transports of the MCP server: standard streams, and streamable HTTP."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence

import anyio
import uvicorn
from mcp.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ldot_milvus.errors import UsageError
from ldot_milvus.integrations.mcp import MAX_PHOTO

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_BODY_BYTES = MAX_PHOTO * 4 // 3 + 2**20  # base64, and the rest of a request
_BODY_SECONDS = 60
_SHUTDOWN_SECONDS = 3  # for requests that are being answered
_CONNECTIONS = 256
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}  # seconds, seconds, probes


def serve_stdio(server: Server) -> None:
    """Serve one client over stdin and stdout until it closes one of them, in a process that has no other purpose.

    Only the protocol is written to the client: meanwhile, what anything else prints goes to stderr. The process ends at
    once if a search runs or the model is being loaded then, since nothing can interrupt them.
    """

    async def serve() -> None:
        async with stdio_server() as (incoming, outgoing):
            try:
                await server.run(incoming, outgoing, server.create_initialization_options())
            except anyio.get_cancelled_exc_class():  # stdout is closed, while a thread waits for a line from stdin
                os._exit(0)

    anyio.run(serve)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(timeout=0.5)
            if thread.is_alive():
                os._exit(0)


def serve_http(
    server: Server, address: str, *, names: Sequence[str] = (), ready: Callable[[str], None] = lambda url: None
) -> None:
    """Serve clients over streamable HTTP, without sessions, until SIGINT or SIGTERM.

    Args:
        server: the MCP server.
        address: ``HOST:PORT``, or ``PORT`` for 127.0.0.1; port 0 takes a free one.
        names: host names by which clients reach the server, besides HOST, this machine's name and localhost. Requests
            for other hosts, and those of pages from other hosts, are refused, because a page in a browser can give its
            own name the address of this machine (DNS rebinding).
        ready: is called with the server's URL once clients can connect.

    Raises:
        UsageError: the address is invalid or in use.
    """
    host, port = parse_host_port(address)
    with _listen(host, port) as listening:
        port = listening.getsockname()[1]
        app = server.streamable_http_app(
            stateless_http=True,
            max_request_body_size=_BODY_BYTES,
            transport_security=_allowed([host, *names]),
        )
        config = uvicorn.Config(
            _BodyDeadline(app),
            log_config=None,
            access_log=False,
            ws="none",
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
        ready(f"http://{_bracketed(host)}:{port}/mcp")
        uvicorn.Server(config).run(sockets=[listening])


def parse_host_port(address: str) -> tuple[str, int]:
    """Parse ``HOST:PORT``, ``[IPv6]:PORT``, ``:PORT`` or ``PORT``; without a host it is 127.0.0.1.

    Raises:
        UsageError: the address has no valid port.
    """
    host, _, port = address.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise UsageError(f"--http is {address!r}: give HOST:PORT or PORT, such as 127.0.0.1:8765")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host by this name."""
    return host.startswith("127.") or _bracketed(host) in _LOOPBACK


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(place[:2], family=family)
    except OSError as error:
        raise UsageError(f"--http: {host}:{port} cannot be used ({error.strerror}): choose another address") from error
    # A client whose machine disappears never says so: the kernel finds out. Connections inherit these options.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        for option, value in _KEEPALIVE.items():
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return listening


def _allowed(names: Sequence[str]) -> TransportSecuritySettings:
    hosts = dict.fromkeys([*_LOOPBACK, socket.gethostname(), *map(_bracketed, names)])
    places = [place for host in hosts for place in (host, f"{host}:*")]
    return TransportSecuritySettings(
        allowed_hosts=places,
        allowed_origins=[f"{scheme}://{place}" for scheme in ("http", "https") for place in places],
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _BodyDeadline:
    """Give up a request whose body does not arrive, which uvicorn waits for without a limit."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        deadline = anyio.current_time() + _BODY_SECONDS
        complete = scope["type"] != "http"

        async def limited() -> Message:
            nonlocal complete
            if complete:
                return await receive()
            with anyio.fail_after(deadline - anyio.current_time()):
                message = await receive()
            complete = not message.get("more_body", False)
            return message

        try:
            await self._app(scope, limited, send)
        except TimeoutError:
            if complete:
                raise
            await PlainTextResponse("The request did not arrive", status_code=408)(scope, receive, send)
