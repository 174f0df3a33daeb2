"""The journal: a file and Redis behave the same, also with several processes at once."""

from __future__ import annotations

import multiprocessing
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ldot_milvus.errors import StoreError
from ldot_milvus.ingest.journal import FailedItem, Journal, Run, journal_address, open_journal
from ldot_milvus.ingest.journal.base import DAYS_KEPT, folded, item_key, label_of, sums_of
from ldot_milvus.ingest.target import Target
from ldot_milvus.settings import Settings

TARGET = Target("faiss:/s", "images", "m")


@pytest.fixture(params=["file", pytest.param("redis", marks=pytest.mark.servers)])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    if request.param == "file":
        yield open_journal(str(tmp_path / "made" / "journal.sqlite"))
        return
    import redis

    url = request.getfixturevalue("redis_url")
    redis.Redis.from_url(url).flushdb()
    yield open_journal(url)


def failed(name: str, run: Run, reason: str = "the file is empty") -> FailedItem:
    return FailedItem(name, reason, run.id, "ingest", TARGET, {"path": name, "base": "/b"})


def test_nothing_is_there_before_the_first_run(journal: Journal) -> None:
    assert journal.progress("none") is None
    assert (journal.runs(), journal.failures(), journal.totals()) == ([], [], {})


def test_a_run_from_its_start_to_its_end(journal: Journal) -> None:
    run = Run.new("ingest", TARGET, 20)
    journal.start(run)
    assert journal.runs() == [run]
    assert journal.begin(run.id, "0") == 1
    progress = journal.progress(run.id)
    assert progress is not None
    assert (progress.run, progress.done, progress.working, progress.complete) == (run, 0, 1, False)
    journal.note_trouble(run.id, "the store is away")
    waiting = journal.progress(run.id)
    assert waiting is not None
    assert waiting.trouble == "the store is away"
    sums = sums_of(16, {"added": 15, "failed": 1, "bytes": 100}, {"read": 0.5}, ["the file is empty"])
    journal.end(run.id, "0", sums, [failed("a.jpg", run)])
    journal.end(run.id, "0", sums, [failed("a.jpg", run)])  # the same chunk by another worker
    assert journal.begin(run.id, "0") == 0
    assert journal.ended(run.id) == {"0": False}
    journal.end(run.id, "split", {})
    assert journal.ended(run.id) == {"0": False, "split": True}
    journal.end(run.id, "1", sums_of(4, {"unchanged": 4}, {"read": 0.25}, []))
    progress = journal.progress(run.id)
    assert progress is not None
    assert (progress.done, progress.working, progress.complete, progress.trouble) == (20, 0, True, "")
    assert (progress.sums["added"], progress.sums["unchanged"], progress.sums["seconds:read"]) == (15, 4, 0.75)
    assert progress.changed >= run.started
    assert journal.totals() == progress.sums
    assert journal.totals()["failures:the file is empty"] == 1


def test_beginnings_are_counted_and_taken_back(journal: Journal) -> None:
    run = Run.new("ingest", TARGET, 8)
    journal.start(run)
    assert [journal.begin(run.id, "0") for _ in range(3)] == [1, 2, 3]
    journal.give_back(run.id, "0")
    assert journal.begin(run.id, "0") == 3
    for _ in range(3):
        journal.give_back(run.id, "0")
    progress = journal.progress(run.id)
    assert progress is not None
    assert progress.working == 0


def test_failures_are_counted_on_and_leave_when_they_succeed(journal: Journal) -> None:
    first, second = Run.new("ingest", TARGET, 2), Run.new("ingest", TARGET, 2)
    for run in (first, second):
        journal.start(run)
        journal.end(run.id, "0", {"items": 2}, [failed("a.jpg", run), failed("b\udcff.jpg", run)])
    found = {item.source: item for item in journal.failures()}
    assert found.keys() == {"a.jpg", "b\udcff.jpg"}
    assert [item.attempt for item in found.values()] == [2, 2]
    assert journal.failures(first.id) == []
    assert len(journal.failures(second.id)) == 2
    journal.end(second.id, "1", {"items": 1}, [], [found["a.jpg"].key])
    assert [item.source for item in journal.failures()] == ["b\udcff.jpg"]
    assert journal.clear([found["b\udcff.jpg"].key, "another"]) == 1
    assert journal.failures() == []
    assert journal.clear([]) == 0


def test_old_runs_are_forgotten_and_their_failures_are_not(journal: Journal) -> None:
    old = replace(Run.new("ingest", TARGET, 1), id="old", started=time.time() - (DAYS_KEPT + 1) * 86_400)
    journal.start(old)
    journal.end("old", "0", {"items": 1}, [failed("a.jpg", old)])
    new = Run.new("ingest", TARGET, 1)
    journal.start(new)
    assert [run.id for run in journal.runs()] == [new.id]
    assert [item.source for item in journal.failures()] == ["a.jpg"]


def _begin_and_end(address: str, run: str, chunks: int) -> None:
    journal = open_journal(address)
    for chunk in range(chunks):
        journal.begin(run, str(chunk))
        journal.end(run, str(chunk), {"items": 1})


def test_several_processes_at_once(journal: Journal, request: pytest.FixtureRequest) -> None:
    """All processes work on the same chunks, and each chunk counts once."""
    address = request.getfixturevalue("redis_url") if "redis" in journal.address else journal.address
    run = Run.new("ingest", TARGET, 30)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_begin_and_end, args=(address, run.id, 30)) for _ in range(4)]
    for worker in workers:
        worker.start()
    journal.start(run)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    progress = journal.progress(run.id)
    assert progress is not None
    assert (progress.done, progress.working, progress.complete) == (30, 0, True)


@pytest.mark.servers
def test_deployments_in_one_redis_do_not_see_each_other(redis_url: str) -> None:
    """The keys of the default name are those of earlier versions."""
    import redis

    redis.Redis.from_url(redis_url).flushdb()
    journals = {name: open_journal(redis_url, name) for name in ("ldot", "photos")}
    runs = {name: Run.new("ingest", TARGET, 1) for name in journals}
    for name, journal in journals.items():
        journal.start(runs[name])
        journal.begin(runs[name].id, "0")
        journal.end(runs[name].id, "0", {"items": 1}, [failed(f"{name}.jpg", runs[name])])
    for name, journal in journals.items():
        assert journal.runs() == [runs[name]]
        assert [item.source for item in journal.failures()] == [f"{name}.jpg"]
        assert journal.totals()["items"] == 1
    journals["photos"].clear([item.key for item in journals["ldot"].failures()])
    assert len(journals["ldot"].failures()) == 1
    run = f"ldot:run:{runs['ldot'].id}"
    keys = set(redis.Redis.from_url(redis_url, decode_responses=True).keys("ldot:*"))
    assert keys == {"ldot:runs", "ldot:failures", "ldot:totals", run, f"{run}:ended", f"{run}:sums"}


def test_a_journal_that_cannot_be_used_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("this is no database, and long enough to be told from one" * 20)
    (tmp_path / "folder.sqlite").mkdir()
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE t (a)")
        other.execute("PRAGMA user_version = 7")
    for place in ("file", "file/below.sqlite", "folder.sqlite", "other.sqlite", "redis://:secret@127.0.0.1:1/0"):
        address = place if "://" in place else str(tmp_path / place)
        with pytest.raises(StoreError, match=r"LDOT_RESULT_BACKEND|choose another file") as caught:
            open_journal(address).start(Run.new("ingest", TARGET, 1))
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, "HERE/ldot-data/ingestion.sqlite"),
        ({"store": "faiss:/s", "broker": "redis://h/0"}, "/s/ingestion.sqlite"),
        ({"store": "/s/x.db"}, "/s/x.db-ingestion.sqlite"),
        ({"store": "http://m:19530", "broker": "redis://h/0"}, "redis://h/0"),
        ({"store": "http://m:19530", "broker": "amqp://h"}, "HERE/ldot-data/ingestion.sqlite"),
        ({"result_backend": "journal.sqlite"}, "HERE/journal.sqlite"),
        ({"store": "http://m:19530", "broker": "amqp://h", "result_backend": "rediss://r/1"}, "rediss://r/1"),
        ({"store": "faiss:/s", "result_backend": "/mnt/shared/journal.sqlite"}, "/mnt/shared/journal.sqlite"),
    ],
)
def test_where_the_journal_is(
    settings: dict[str, str], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert journal_address(Settings(**settings)) == address.replace("HERE", str(tmp_path))


def test_a_source_is_known_whatever_is_said_of_it() -> None:
    item = {"path": "a.jpg", "base": "/b", "caption": "one", "metadata": {"x": 1}, "problem": None}
    key = item_key("ingest", TARGET, item)
    assert item_key("ingest", TARGET, {**item, "caption": "two", "metadata": {}, "namespace": "me"}) == key
    assert item_key("ingest", TARGET, {**item, "path": "b.jpg"}) != key
    assert item_key("ingest", replace(TARGET, collection="other"), item) != key
    texts = [{"path": "t.jsonl", "kind": "text", "caption": caption} for caption in ("one", "two")]
    assert item_key("ingest", TARGET, texts[0]) != item_key("ingest", TARGET, texts[1])


def test_reasons_are_counted_by_kind() -> None:
    assert label_of("50,000 x 3 pixels are more than the limit of 178,956,970 pixels") == (
        "N x N pixels are more than the limit of N pixels"
    )
    assert label_of("not an image (or of a format that is not supported: use JPEG)") == "not an image"
    many = {f"failures:{n}": 1.0 for n in range(100)}
    assert folded({"failures:new": 2, "failures:5": 1, "added": 3}, many) == {
        "failures:other": 2, "failures:5": 1, "added": 3,
    }  # fmt: skip
