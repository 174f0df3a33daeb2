"""A real Milvus server for tests: an address in the environment, else a container, else the PyPI package ``milvus``."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest


class PackagedServer:
    """The server inside ``pip install milvus``, with a folder and ports of its own; it can be killed and restarted."""

    def __init__(self, folder: Path, *, authorization: bool = False) -> None:
        self.folder = folder
        self._authorization = authorization
        self._ports: dict[str, int] = {}
        self._server: Any = None

    def start(self) -> str:
        """Start (again, on the same ports and data) and return the address."""
        from milvus import MilvusServer

        self.folder.mkdir(parents=True, exist_ok=True)
        config = _config(self.folder / "etcd.yaml", **self._ports)
        config.set("authorization_enabled", self._authorization)
        self._server = MilvusServer(config)
        self._server.set_base_dir(str(self.folder))
        self._server.start()
        names = (name for name in self._server.config_keys if name.endswith("_port"))
        self._ports = {name: int(self._server.config.get(name)) for name in names}
        return f"http://127.0.0.1:{self._server.listen_port}"

    def kill(self) -> None:
        """kill -9, as a crash or the out-of-memory killer does it."""
        self._server.server_proc.kill()
        self._server.server_proc.wait()
        self._server.server_proc = None

    def stop(self) -> None:
        """Killed too: this version takes minutes to heed SIGTERM."""
        if self._server is not None and self._server.server_proc is not None:
            self.kill()


def _config(etcd_file: Path, **options: Any) -> Any:
    """The package's configuration, with ports of its own for the etcd inside: it would always take 2379 and 2380."""
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
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port of a server that was killed just now
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


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@pytest.fixture(scope="session")
def milvus_url():
    """LDOT_TEST_MILVUS (a server that tests may fill), else a container, else the packaged server."""
    given = os.environ.get("LDOT_TEST_MILVUS")
    if given:
        yield given
        return
    container = _container()
    if container is not None:
        with container:
            yield f"http://{container.get_container_host_ip()}:{container.get_exposed_port(19530)}"
        return
    with tempfile.TemporaryDirectory(prefix="ldot-milvus-", ignore_cleanup_errors=True) as folder:
        server = PackagedServer(Path(folder))
        try:
            yield server.start()
        finally:
            server.stop()
            time.sleep(0.2)


def _container():
    """A started container, or None where there is no container engine."""
    try:
        import docker
        from testcontainers.community.milvus import MilvusContainer

        return MilvusContainer("milvusdb/milvus:v2.5.4").start()
    except (ImportError, docker.errors.DockerException):
        return None
