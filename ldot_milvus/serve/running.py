"""Run the application with uvicorn, until SIGINT or SIGTERM."""

from __future__ import annotations

import logging
import socket
from types import FrameType

import uvicorn
from typing_extensions import override

from ldot_milvus.errors import UsageError
from ldot_milvus.http_server import bracketed, is_loopback, listen
from ldot_milvus.logs import CleanRecords, JsonFormatter
from ldot_milvus.serve.app import create_app
from ldot_milvus.serve.connections import BoundedConnection
from ldot_milvus.settings import Settings

log = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 20
"""For requests that are being answered when the process is told to end."""


def run(settings: Settings, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM. Requests that are being answered are finished first, within a time limit.

    Args:
        settings: see :func:`~ldot_milvus.serve.app.create_app`.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.

    Raises:
        UsageError: the address cannot be used.
    """
    _log_to_stderr(settings)
    try:
        listening = listen(host, port)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no host name"
        raise UsageError(f"cannot listen on {host}:{port} ({reason}): choose another --host or --port") from error
    with listening:
        if settings.serve_secret is None and not is_loopback(host):
            log.warning("there is no token: everyone who reaches %s can search (LDOT_SERVE_TOKEN)", host)
        config = uvicorn.Config(
            create_app(settings, bind=host),
            http=BoundedConnection,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        log.info("serving http://%s:%d", bracketed(host), _port(listening))
        _Server(config).run(sockets=[listening])


class _Server(uvicorn.Server):
    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal, and at once at the second; uvicorn would then die of it, and we end with 0."""
        self.force_exit = self.should_exit
        self.should_exit = True


def _port(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])


def _log_to_stderr(settings: Settings) -> None:
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else text)
    handler.addFilter(CleanRecords())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("ldot_milvus").setLevel(logging.INFO)
