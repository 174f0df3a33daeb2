"""A real Milvus server for tests: an address in the environment, else a container, else the PyPI package ``milvus``."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ldot_milvus.stores.milvus.store import MilvusStore


class PackagedServer:
    """The server of the PyPI package ``milvus``, with its own folder and ports; a test can kill and restart it."""

    def __init__(self, folder: Path, *, authorization: bool = False) -> None:
        self.folder = folder
        self._authorization = authorization
        self._ports: dict[str, int] = {}
        self._server: Any = None

    def start(self) -> str:
        """Start or restart the server on the same ports and data, and return its address."""
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
        """Kill the server with SIGKILL, as the out-of-memory killer does."""
        self._server.server_proc.kill()
        self._server.server_proc.wait()
        self._server.server_proc = None

    def stop(self) -> None:
        """Kill the server, since this version takes minutes to react to SIGTERM."""
        if self._server is not None and self._server.server_proc is not None:
            self.kill()


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


def free_ports(count: int) -> list[int]:
    """Return local ports on which nothing listens."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def drop_all(store: MilvusStore) -> None:
    """Drop the collections whose names begin with that of a store, since other tests use the same server."""
    for name in store.server.call("list_collections"):
        if name.startswith(store.collection):
            for alias in store.server.call("list_aliases", name).get("aliases") or []:
                store.server.call("drop_alias", alias)
            store.server.call("drop_collection", name)
    store.close()


@pytest.fixture(scope="session")
def milvus_url():
    """URL of a server that tests may write to: LDOT_TEST_MILVUS, else a container, else the packaged server."""
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
    """Start a container; return None without a container engine."""
    try:
        import docker
        from testcontainers.community.milvus import MilvusContainer

        return MilvusContainer("milvusdb/milvus:v2.5.4").start()
    except (ImportError, docker.errors.DockerException):
        return None
