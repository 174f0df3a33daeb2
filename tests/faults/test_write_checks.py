"""``ldot doctor`` writes to what it checks: it finds what can be read and not written, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis as redis_client

from ldot_milvus.doctor import Finding, examine
from ldot_milvus.errors import StoreError
from ldot_milvus.ingest.journal import open_journal
from ldot_milvus.settings import Settings
from ldot_milvus.stores import Record, open_store
from ldot_milvus.stores.regions import RegionStore
from ldot_milvus.workers.broker import BrokerRefusal, check_broker
from tests.brokers import RABBITMQ, RabbitServer, RedisServer
from tests.small_disk import mounted

PASSWORD = "S3cretPw"


def findings(**settings: str) -> dict[str, Finding]:
    return {finding.part: finding for finding in examine(Settings(**settings))}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def filled(folder: Path) -> str:
    address = f"faiss:{folder}"
    with open_store(address, "images") as store:
        store.upsert([Record("a", np.ones(4, np.float32))])
    return address


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    with mounted(tmp_path / "disk", "3m") as folder:
        yield folder


@pytest.mark.parametrize("exists", [True, False])
def test_nothing_remains_of_the_checks(exists: bool, tmp_path: Path) -> None:
    address = filled(tmp_path / "store") if exists else f"faiss:{tmp_path}/store"
    before = tree(tmp_path)
    found = findings(store=address)
    assert {part for part in ("region store", "journal") if not found[part].ok} == set()
    assert tree(tmp_path) == before
    assert exists or not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system of Linux")
def test_a_read_only_disk_and_a_full_one(disk: Path) -> None:
    address = filled(disk / "store")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    found = findings(store=address)
    for part in ("store", "region store", "journal"):
        assert not found[part].ok
        assert re.search("read-only|readonly|Read-only|not checked: the store", found[part].text), found[part].text
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    (disk / "ballast").write_bytes(bytes(2_500_000))
    for check in (open_store(address).check_writable, RegionStore(str(disk / "regions"), "m").check_writable,
                  open_journal(str(disk / "journal.sqlite")).check_writable):  # fmt: skip
        with pytest.raises(StoreError, match=r"No space left on device.*: free some space"):
            check()
    os.remove(disk / "ballast")
    open_store(address).check_writable()


def test_a_bucket_that_denies_writes_and_one_that_keeps_what_it_gets(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    store = RegionStore(f"s3://{bucket}/regions", "m")
    store.check_writable()
    assert s3fs.S3FileSystem().find(bucket) == []

    async def denied(*_: object, **__: object) -> None:
        # As s3fs translates what S3 answers; the server of these tests enforces no policy.
        raise PermissionError("An error occurred (AccessDenied) when calling an operation: Access Denied")

    with monkeypatch.context() as patch:
        patch.setattr(store._fs, "_pipe_file", denied)
        with pytest.raises(StoreError, match=r"region store s3://bucket/regions cannot be written: no permission"):
            store.check_writable()
    with monkeypatch.context() as patch:
        patch.setattr(store._fs, "_rm_file", denied)
        with pytest.raises(StoreError, match=r"cannot be deleted from \(bucket/regions/ldot-doctor-\w+.txt remains\)"):
            store.check_writable()


def test_region_stores_of_other_kinds_are_left_as_they_were() -> None:
    import fsspec

    RegionStore("memory://ldot/regions", "m").check_writable()
    assert not fsspec.filesystem("memory").exists("/ldot/regions")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


def test_a_redis_that_cannot_be_written(redis: RedisServer) -> None:
    admin = redis_client.Redis.from_url(redis.url)

    def as_user(user: str) -> str:
        return redis.url.replace("//", f"//{user}@")

    assert findings(broker=redis.url)["broker"].ok
    open_journal(redis.url).check_writable()
    assert admin.keys("*") == []
    admin.execute_command("ACL", "SETUSER", "reader", "on", f">{PASSWORD}", "~*", "&*", "+@read", "+@connection",
                          "+info", "+multi", "+exec")  # fmt: skip
    refused = as_user(f"reader:{PASSWORD}")
    cases = [(refused, "accepts no message"), (as_user(f"reader:{PASSWORD}x"), "refuses the connection")]
    for address, text in cases:
        found = findings(broker=address, result_backend=address)
        assert not found["broker"].ok
        assert text in found["broker"].text
        assert not found["journal"].ok
        assert PASSWORD not in found["broker"].text + found["journal"].text
    admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    assert "read only replica" in findings(broker=redis.url)["broker"].text
    admin.execute_command("REPLICAOF", "NO", "ONE")
    assert admin.keys("*") == []


@pytest.mark.slow
@pytest.mark.skipif(not RABBITMQ.exists(), reason="RabbitMQ is not installed (tests/install-servers.sh)")
def test_a_rabbitmq_that_refuses(tmp_path: Path) -> None:
    """Case a08: an unknown virtual host, a wrong password and a user without permissions are one line each."""
    server = RabbitServer(tmp_path / "rabbit")
    server.start()
    try:
        check_broker(server.url, "ldot")
        assert server.control("list_queues").strip() == ""
        server.control("add_user", "reader", PASSWORD)
        server.control("set_permissions", "reader", ".*", "", ".*")
        reader = server.url.replace("guest:guest", f"reader:{PASSWORD}")
        with pytest.raises(
            StoreError, match=r"answers, but accepts no message .*ACCESS_REFUSED.*amq.default"
        ) as caught:
            check_broker(reader, "ldot")
        assert PASSWORD not in str(caught.value)
        refused = {"NOT_ALLOWED": server.url.removesuffix("/") + "photos"}
        refused["ACCESS_REFUSED"] = reader.replace(PASSWORD, f"{PASSWORD}x")
        for word, address in refused.items():
            with pytest.raises(BrokerRefusal, match=f"refuses the connection .*{word}") as caught:
                check_broker(address)
            assert PASSWORD not in str(caught.value)
        worker = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "workers", "worker", "--pool", "solo"], capture_output=True,
            text=True, timeout=120, check=False, cwd=tmp_path, env={**os.environ, "LDOT_BROKER": address},
        )  # fmt: skip
        assert worker.returncode == 2
        assert worker.stderr.strip().splitlines()[-1].startswith("Error: the broker at LDOT_BROKER")
        assert "Traceback" not in worker.stderr
        assert PASSWORD not in worker.stderr + worker.stdout
    finally:
        server.stop()
