"""A real Milvus server for tests: an address in the environment, else a container, else the PyPI package ``milvus``."""

from __future__ import annotations

import os
import tempfile
import time
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
        from milvus import MilvusServer, MilvusServerConfig

        self._server = MilvusServer(MilvusServerConfig(authorization_enabled=self._authorization, **self._ports))
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
