"""Run the application with uvicorn."""

from __future__ import annotations

import socket

import uvicorn

from ldot_milvus.errors import UsageError
from ldot_milvus.serve.app import create_app
from ldot_milvus.settings import Settings

_SHUTDOWN_SECONDS = 20  # for requests that are being answered


def run(settings: Settings, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: see :func:`~ldot_milvus.serve.app.create_app`.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.

    Raises:
        UsageError: the address cannot be used.
    """
    with _listen(host, port) as listening:
        config = uvicorn.Config(
            create_app(settings), ws="none", server_header=False, timeout_graceful_shutdown=_SHUTDOWN_SECONDS
        )
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another --host or --port"
        ) from error
