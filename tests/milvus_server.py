"""A real Milvus server for tests: an address in the environment, else a container, else the PyPI package ``milvus``."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.servers.milvus_server import PackagedServer

if TYPE_CHECKING:
    from ldot_milvus.stores.milvus.store import MilvusStore


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
