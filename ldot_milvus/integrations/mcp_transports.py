"""Transports of the MCP server: standard streams, and streamable HTTP."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence

import anyio
import uvicorn
from mcp.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings

from ldot_milvus.errors import UsageError
from ldot_milvus.http_server import LOOPBACK, BodyLimits, bracketed, listen
from ldot_milvus.integrations.mcp import MAX_PHOTO

_BODY_BYTES = MAX_PHOTO * 4 // 3 + 2**20  # base64, and the rest of a request
_BODY_SECONDS = 60
_SHUTDOWN_SECONDS = 3  # for requests that are being answered
_CONNECTIONS = 256


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
            BodyLimits(app, bytes=lambda _: _BODY_BYTES, seconds=_BODY_SECONDS),
            log_config=None,
            access_log=False,
            ws="none",
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
        ready(f"http://{bracketed(host)}:{port}/mcp")
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


def _listen(host: str, port: int) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as error:
        raise UsageError(f"--http: {host}:{port} cannot be used ({error.strerror}): choose another address") from error


def _allowed(names: Sequence[str]) -> TransportSecuritySettings:
    hosts = dict.fromkeys([*LOOPBACK, socket.gethostname(), *map(bracketed, names)])
    places = [place for host in hosts for place in (host, f"{host}:*")]
    return TransportSecuritySettings(
        allowed_hosts=places,
        allowed_origins=[f"{scheme}://{place}" for scheme in ("http", "https") for place in places],
    )
