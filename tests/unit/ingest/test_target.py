"""Which chunks a worker takes: those for its own stores, by their own address or by an alias."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldot_milvus.errors import UsageError
from ldot_milvus.ingest.target import Target, target_of_worker
from ldot_milvus.ingest.tasks import TASKS
from ldot_milvus.settings import Settings
from ldot_milvus.workers.application import make_app

SERVER, OTHER = "http://milvus:19530", "http://test:19530"


def target(store: str, regions: str | None = None) -> Target:
    return Target(store, "images", "ldot-mini", regions)


@pytest.mark.parametrize(
    ("own", "named", "used"),
    [
        ({}, SERVER, SERVER),
        ({}, "faiss:/data/a", "faiss:/data/a"),
        ({"STORE": ""}, OTHER, OTHER),
        ({"STORE": SERVER}, SERVER, SERVER),
        ({"STORE": SERVER}, "http://MILVUS:19530/", SERVER),
        ({"STORE": SERVER}, OTHER, None),
        ({"STORE": SERVER}, "https://milvus:19530", None),
        ({"STORE": SERVER}, "faiss:/data/a", None),
        ({"STORE": "faiss:/data/a"}, "faiss:/data/a", "faiss:/data/a"),
        ({"STORE": "faiss:/data/a/"}, "faiss:/data/a", "faiss:/data/a"),
        ({"STORE": "faiss:/data/a"}, "faiss:/data/A", None),
        ({"STORE": "faiss:./a"}, "faiss:/data/a", None),
        ({"STORE": "/data/a.db"}, "/data/b.db", None),
        ({"STORE": SERVER, "STORE_ALIAS": "http://localhost:19530"}, "http://localhost:19530", SERVER),
        ({"STORE": SERVER, "STORE_ALIAS": f"{OTHER}/, http://localhost:19530"}, "http://localhost:19530", SERVER),
        ({"STORE": SERVER, "STORE_ALIAS": f"{OTHER}/, http://localhost:19530"}, OTHER, SERVER),
        ({"STORE": SERVER, "STORE_ALIAS": "http://localhost:19530"}, SERVER, SERVER),
        ({"STORE": SERVER, "STORE_ALIAS": "http://localhost:19530"}, OTHER, None),
        ({"STORE": SERVER, "STORE_ALIAS": ""}, OTHER, None),
        ({"STORE": "faiss:/data/a", "STORE_ALIAS": "faiss:/mnt/a"}, "faiss:/mnt/a", "faiss:/data/a"),
        ({"STORE_ALIAS": OTHER}, OTHER, OTHER),
    ],
)
def test_the_store_of_a_chunk(
    monkeypatch: pytest.MonkeyPatch, own: dict[str, str], named: str, used: str | None
) -> None:
    for name, value in own.items():
        monkeypatch.setenv(f"LDOT_{name}", value)
    if used is not None:
        assert target_of_worker(target(named), Settings()) == target(used)
        return
    with pytest.raises(UsageError) as refused:
        target_of_worker(target(named), Settings())
    text = str(refused.value)
    assert len(text.splitlines()) == 1
    for part in (named, "LDOT_STORE is", f"LDOT_STORE_ALIAS={named}", "LDOT_QUEUE"):
        assert part in text


@pytest.mark.parametrize(
    ("own", "named", "used"),
    [
        ({}, "s3://photos/regions", "s3://photos/regions"),
        ({}, None, None),
        ({"REGION_STORE": "s3://photos/regions"}, None, "s3://photos/regions"),
        ({"REGION_STORE": "s3://photos/regions"}, "s3://photos/regions/", "s3://photos/regions"),
        ({"REGION_STORE": "s3://photos/regions"}, "s3://photos/Regions", None),
        ({"REGION_STORE": "/data/regions"}, "/mnt/regions", None),
        ({"REGION_STORE": "/data/regions", "REGION_STORE_ALIAS": "/mnt/regions"}, "/mnt/regions", "/data/regions"),
        ({"REGION_STORE": "/data/regions", "STORE_ALIAS": "/mnt/regions"}, "/mnt/regions", None),
    ],
)
def test_the_region_store_of_a_chunk(
    monkeypatch: pytest.MonkeyPatch, own: dict[str, str], named: str | None, used: str | None
) -> None:
    for name, value in own.items():
        monkeypatch.setenv(f"LDOT_{name}", value)
    if used is not None or named is None:
        assert target_of_worker(target(SERVER, named), Settings()) == target(SERVER, used)
    else:
        with pytest.raises(UsageError, match=f"region store {named}.*LDOT_REGION_STORE_ALIAS={named}"):
            target_of_worker(target(SERVER, named), Settings())


def test_a_link_to_the_store_is_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for real, link in ((f"faiss:{tmp_path}/real/s", f"faiss:{tmp_path}/link/s"),
                       (f"{tmp_path}/real/s.db", f"{tmp_path}/link/s.db")):  # fmt: skip
        monkeypatch.setenv("LDOT_STORE", link)
        assert target_of_worker(target(real), Settings()) == target(link)


def test_deployments_on_one_broker_share_no_name() -> None:
    """Queues, exchanges of remote control and of events, and Redis' record of the chunks that a worker has taken."""

    def names(queue: str) -> set[str]:
        conf = make_app(Settings(broker="redis://h/0", queue=queue)).conf
        assert [queue.name for queue in conf.task_queues] == [task.queue(queue) for task in TASKS.values()]
        assert {route["queue"] for route in conf.task_routes.values()} == {queue.name for queue in conf.task_queues}
        unacked = {part: f"unacked{part}" for part in ("", "_index", "_mutex")}
        return {
            *(queue.name for queue in conf.task_queues), conf.task_default_queue, conf.control_exchange,
            conf.event_exchange,
            *(conf.broker_transport_options.get(f"{name}_key", name) for name in unacked.values()),
        }  # fmt: skip

    queues = ["ldot", "photos", "photos.test", "ldot.photos", "photos.unacked", "photos.control"]
    assert names("ldot") == {"ldot", "ldot.changes", "celery", "celeryev", "unacked", "unacked_index", "unacked_mutex"}
    assert len(set().union(*map(names, queues))) == sum(len(names(queue)) for queue in queues)


@pytest.mark.parametrize("name", ["a,b", "a b", "photos.changes", "/", "-Q", "a" * 101])
def test_a_queue_that_cannot_be_named_or_belongs_to_another_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"^queue is '"):
        Settings(queue=name)
