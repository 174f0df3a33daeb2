"""The Milvus server of the PyPI package ``milvus``; ``python -m tests.servers.milvus_server FOLDER PORT`` runs one."""

from __future__ import annotations

import fcntl
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers.ports import free_ports

READY = "Milvus is ready"
"""What the command prints when the server answers."""

SECONDS = 180
"""Until a server must answer."""


class PackagedServer:
    """The server of the PyPI package ``milvus``, with its own folder and ports, which can be killed and restarted.

    Args:
        folder: the folder of its program and its data.
        port: its port; without one, the first free one from 19530 on.
        authorization: whether it asks for a user and a password.
    """

    def __init__(self, folder: Path, *, port: int | None = None, authorization: bool = False) -> None:
        self.folder = folder
        self._authorization = authorization
        self._ports: dict[str, int] = {} if port is None else {"proxy_port": port}
        self._server: Any = None

    def start(self) -> str:
        """Start or restart the server on the same ports and data, and return its address.

        Raises:
            RuntimeError: the server ended.
            TimeoutError: it did not answer in time.
        """
        from milvus import MilvusServer

        self.folder.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time():
            config = _config(self.folder / "etcd.yaml", **self._ports)
            config.set("authorization_enabled", self._authorization)
            self._server = MilvusServer(config, wait_for_started=False)
            self._server.set_base_dir(str(self.folder))
            self._server.start()
            names = (name for name in self._server.config_keys if name.endswith("_port"))
            self._ports = {name: int(self._server.config.get(name)) for name in names}
            self._wait_until_healthy()
        return f"http://127.0.0.1:{self._server.listen_port}"

    def _wait_until_healthy(self) -> None:
        """Wait as the package does, but not for a server that has ended."""
        deadline = time.monotonic() + SECONDS
        while not self._is_healthy():
            if self._server.server_proc.poll() is not None:
                raise RuntimeError(f"Milvus ended: see {self.folder}/logs")
            if time.monotonic() > deadline:
                raise TimeoutError(f"Milvus did not answer within {SECONDS} s: see {self.folder}/logs")
            time.sleep(0.1)
        time.sleep(1)  # as the package does

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._server.webservice_port}/healthz", timeout=10
            ) as answer:
                return b"OK" in answer.read()
        except OSError:
            return False

    def wait(self) -> None:
        """Wait until the server has ended."""
        self._server.server_proc.wait()

    def kill(self) -> None:
        """Kill the server with SIGKILL, as the out-of-memory killer does."""
        self._server.server_proc.kill()
        self._server.server_proc.wait()
        self._server.server_proc = None

    def stop(self) -> None:
        """Kill the server, since this version takes minutes to react to SIGTERM."""
        if self._server is not None and self._server.server_proc is not None:
            self.kill()


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let the servers of this machine start in turn: each takes ports on which nothing listens yet."""
    with (Path(tempfile.gettempdir()) / "ldot-milvus-start.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _config(etcd_file: Path, **options: Any) -> Any:
    """Create the package's configuration with free ports for its etcd, which otherwise always uses 2379 and 2380."""
    from milvus import MilvusServerConfig

    if not etcd_file.exists():
        client, peer = (f"http://127.0.0.1:{port}" for port in free_ports(2))
        etcd_file.write_text(
            f"name: default\nlisten-client-urls: {client}\nadvertise-client-urls: {client}\n"
            f"listen-peer-urls: {peer}\ninitial-advertise-peer-urls: {peer}\ninitial-cluster: default={peer}\n"
        )

    class Config(MilvusServerConfig):  # type: ignore[misc]
        def try_bind_port(self, port: int) -> socket.socket | None:
            probe = socket.socket()
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # allows the port of a server killed just now
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen()
            except OSError:
                probe.close()
                return None
            return probe

        def write_config(self) -> None:
            super().write_config()
            file = Path(self.base_data_dir) / "configs" / "milvus.yaml"
            text = file.read_text()
            assert "\n  use:\n    embed: true" in text
            file.write_text(text.replace("\n  use:\n", f"\n  config:\n    path: {etcd_file}\n  use:\n", 1))

    return Config(**options)


if __name__ == "__main__":
    milvus = PackagedServer(Path(sys.argv[1]), port=int(sys.argv[2]))
    print(f"{READY}: {milvus.start()}", flush=True)
    milvus.wait()
