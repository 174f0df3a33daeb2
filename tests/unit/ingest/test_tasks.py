"""Items, targets and chunks in messages and journals: typed, and readable by other versions."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldot_milvus.errors import UsageError
from ldot_milvus.ingest.changes import RowChange
from ldot_milvus.ingest.chunks import Chunk, chunks_of, process_chunk, process_chunks_inline
from ldot_milvus.ingest.ingestor import Failure, Ingestor, Report
from ldot_milvus.ingest.journal import FailedItem, Journal, Run, open_journal
from ldot_milvus.ingest.journal.base import item_key
from ldot_milvus.ingest.target import OpenTarget, Target
from ldot_milvus.ingest.tasks import CHANGE, INGEST, TASKS, Task, task_named
from ldot_milvus.settings import Settings
from ldot_milvus.sources import Source

TARGET = Target("faiss:/s", "images", "ldot-mini")

texts = st.text(max_size=20)
paths = st.text(st.characters(codec=None), min_size=1, max_size=20)  # surrogates too, as bytes that are not UTF-8 give
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
sources = st.builds(
    Source, path=paths, base=paths | st.just(""), member=st.none() | paths, offset=st.none() | st.integers(0),
    size=st.none() | st.integers(0), kind=st.sampled_from(["image", "regions", "text"]), id=st.none() | texts,
    caption=texts, namespace=texts, metadata=st.dictionaries(texts, values, max_size=3), problem=st.none() | texts,
)  # fmt: skip
changes = st.builds(RowChange, id=texts, source=st.none() | texts)
targets = st.builds(
    Target, store=texts, collection=texts, model=texts, region_store=st.none() | texts, reranker=st.none() | texts,
    skip_near_duplicates=st.booleans(),
)  # fmt: skip

work = st.tuples(st.just(INGEST), st.lists(sources, max_size=3)) | st.tuples(
    st.just(CHANGE), st.lists(changes, max_size=3)
)

# Exact text that the version before this module wrote (commit 34a00a5).
OLD_TARGET = '{"store": "faiss:/s", "collection": "images", "model": "ldot-mini", "region_store": null}'
OLD_SOURCE = (
    '{"path": "photos/a.jpg", "base": "/home/me", "member": null, "offset": null, "size": null, "kind": "image", '
    '"id": null, "caption": "a dog", "namespace": "default", "metadata": {"album": 1}, "problem": null}'
)
OLD_RUN = (
    f'{{"id": "20261126-025743-bf55", "task": "ingest", "target": {OLD_TARGET}, "items": 5, "started": 1795661863.5}}'
)
OLD_FAILURE = (
    '{"source": "photos/a.jpg", "reason": "the file is empty", "run": "20261126-025743-bf55", "task": "ingest", '
    f'"target": {OLD_TARGET}, "item": {OLD_SOURCE}, "attempt": 2, "time": 1795661863.5}}'
)
OLD_CHANGE_FAILURE = (
    '{"source": "abc", "reason": "its worker died", "run": "20261126-025743-bf55", "task": "change", '
    f'"target": {OLD_TARGET}, "item": {{"id": "abc", "source": "b.jpg"}}, "attempt": 1, "time": 1795661863.5}}'
)
OLD_MESSAGE = (
    f'{{"run": "20261126-025743-bf55", "id": "7.0", "task": "ingest", "target": {OLD_TARGET}, "items": [{OLD_SOURCE}]}}'
)
OLD_CHANGE_MESSAGE = (
    f'{{"run": "20261126-025743-bf55", "id": "0", "task": "change", "target": {OLD_TARGET}, '
    '"items": [{"id": "abc"}, {"id": "def", "source": "b.jpg"}]}'
)
A_DOG = Source("photos/a.jpg", base="/home/me", caption="a dog", metadata={"album": 1})


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return open_journal(str(tmp_path / "journal.sqlite"))


@given(work, targets, texts)
def test_a_chunk_travels_as_json(work: tuple[Task[Any], list[Any]], target: Target, run: str) -> None:
    task, items = work
    chunk = Chunk(run, "7.0", task, target, items)
    again = Chunk.from_dict(json.loads(json.dumps(chunk.to_dict())))
    assert again == chunk
    assert again.task is task


@given(work, targets)
def test_a_failure_keeps_what_it_takes_to_retry(work: tuple[Task[Any], list[Any]], target: Target) -> None:
    task, items = work
    for item in items:
        failed = FailedItem(item.name, "why", "run", task.name, target, item.to_dict())
        again = FailedItem.from_json(failed.to_json())
        assert again == failed
        assert again.key == failed.key
        assert task_named(again.task).item(again.item) == item
        assert again.target == target


@given(targets, st.dictionaries(texts, values, max_size=3))
def test_a_target_of_a_later_version_is_read_without_what_is_new(target: Target, more: dict[str, Any]) -> None:
    assert Target.from_dict({**more, **target.to_dict()}) == target


def test_what_an_earlier_version_wrote_is_read() -> None:
    assert Run.from_json(OLD_RUN) == Run("20261126-025743-bf55", "ingest", TARGET, 5, 1795661863.5)
    failed = FailedItem.from_json(OLD_FAILURE)
    assert (failed.source, failed.reason, failed.run_id) == (
        "photos/a.jpg",
        "the file is empty",
        "20261126-025743-bf55",
    )
    assert (failed.target, failed.attempt, failed.time) == (TARGET, 2, 1795661863.5)
    assert INGEST.item(failed.item) == A_DOG
    assert CHANGE.item(FailedItem.from_json(OLD_CHANGE_FAILURE).item) == RowChange("abc", "b.jpg")
    assert Chunk.from_dict(json.loads(OLD_MESSAGE)) == Chunk("20261126-025743-bf55", "7.0", INGEST, TARGET, [A_DOG])
    assert Chunk.from_dict(json.loads(OLD_CHANGE_MESSAGE)).items == [RowChange("abc"), RowChange("def", "b.jpg")]


@pytest.mark.parametrize("text", [OLD_RUN, OLD_FAILURE, OLD_CHANGE_FAILURE, OLD_MESSAGE, OLD_CHANGE_MESSAGE])
def test_an_earlier_version_reads_what_is_written_now(text: str) -> None:
    """Everything that the earlier version reads has the same names and values; only a target has more fields."""
    old = json.loads(text)
    if "items" in old and "id" in old and "started" in old:
        new = json.loads(Run.from_json(text).to_json())
    elif "items" in old:
        new = json.loads(json.dumps(Chunk.from_dict(old).to_dict()))
    else:
        new = json.loads(FailedItem.from_json(text).to_json())
    assert new["target"].pop("reranker") is None
    assert new["target"].pop("skip_near_duplicates") is False
    assert new == old


@pytest.mark.parametrize(
    ("task", "item", "key"),
    [
        (INGEST, A_DOG, "105890641649afab40c690e73e994151"),
        (INGEST, Source("t.jsonl", base="/home/me", kind="text", caption="one"), "9be48801a2b11c924658ee565cf93949"),
        (INGEST, Source("x.tar", base="/home/me", member="a/b.jpg", offset=512, size=99),
         "4495ab79ccae3974ce37ca6f578aa1f0"),
        (CHANGE, RowChange("abc", "b.jpg"), "162cb7938b81a30e2bdf372cda272c1a"),
        (CHANGE, RowChange("abc"), "aa3d2defbcc1c33e430e2ae11ee31798"),
    ],
)  # fmt: skip
def test_a_failure_of_an_earlier_version_leaves_when_its_item_succeeds(
    journal: Journal, task: Task[Any], item: Any, key: str
) -> None:
    """The keys are those of the earlier version."""
    run = Run.new(task.name, TARGET, 1)
    journal.start(run)
    (chunk,) = chunks_of(run, [item], 1)
    process_chunk(chunk, journal, lambda items: Report(failed=[Failure(item.name, "why")]), pytest.fail)
    assert [failed.key for failed in journal.failures()] == [key]
    assert item_key(task.name, replace(TARGET, model="other", region_store="/r"), item.to_dict()) == key
    (again,) = chunks_of(replace(run, id="another"), [item], 1)
    process_chunk(again, journal, lambda items: Report(added=1), pytest.fail)
    assert journal.failures() == []


def test_a_file_of_an_earlier_version_is_read(journal: Journal, tmp_path: Path) -> None:
    journal.start(Run.new("ingest", TARGET, 1))  # makes the tables, which have not changed
    with sqlite3.connect(tmp_path / "journal.sqlite") as sql:
        sql.execute("DELETE FROM runs")
        sql.execute("INSERT INTO runs VALUES ('old', 'ingest', ?, 5, 1795661863.5, '')", (OLD_TARGET,))
        sql.execute("INSERT INTO failures VALUES ('key', 'old', 1795661863.5, ?)", (OLD_FAILURE,))
    assert journal.runs() == [Run("old", "ingest", TARGET, 5, 1795661863.5)]
    progress = journal.progress("old")
    assert progress is not None
    assert progress.run.target == TARGET
    assert [failed.item["path"] for failed in journal.failures()] == ["photos/a.jpg"]


def test_without_workers_no_item_becomes_a_dictionary(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    for item_type in (Source, RowChange):
        monkeypatch.setattr(item_type, "to_dict", lambda self: pytest.fail("it was serialised"))
    monkeypatch.setattr(Source, "from_dict", lambda values: pytest.fail("it was read back"))
    items = [Source("a.jpg"), Source("b.jpg")]
    run = Run.new("ingest", TARGET, 2)
    journal.start(run)
    seen: list[Any] = []

    def perform(part: Sequence[Source]) -> Report:
        seen.extend(part)
        return Report(added=len(part))

    assert [report.added for report in process_chunks_inline(chunks_of(run, items, 64), journal, perform)] == [2]
    assert [id(item) for item in seen] == [id(item) for item in items]


def test_names_that_journals_and_brokers_hold() -> None:
    """Queued messages and journals contain the names: a changed name would lose chunks."""
    assert {task.name: (task.celery_name, task.queue(Settings().queue)) for task in TASKS.values()} == {
        "ingest": ("ldot.ingest_chunk", "ldot"),
        "change": ("ldot.change_rows", "ldot.changes"),
    }
    with pytest.raises(UsageError, match="upgrade"):
        task_named("embed")


def test_a_target_means_the_same_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for store, absolute in {
        "faiss:./data": f"faiss:{tmp_path}/data", "faiss:~/data": "faiss:/home/me/data", "x.db": f"{tmp_path}/x.db",
        "http://milvus:19530": "http://milvus:19530",
    }.items():  # fmt: skip
        assert Target.of(Settings(store=store)).store == absolute


def test_an_opened_target_performs_every_task(tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conftest import make_photo
    from tests.faulty import QuickModel

    monkeypatch.setattr(Ingestor, "embedder", QuickModel())
    (tmp_path / "a.jpg").write_bytes(make_photo(1))
    target = Target(f"faiss:{tmp_path / 'store'}", "images", tiny_model)
    with OpenTarget(target, Settings()) as opened:
        assert opened.ingestor is opened.ingestor
        assert INGEST.performer(opened, target)([Source(str(tmp_path / "a.jpg"))]).added == 1
        (row,) = opened.store.iterate()
        assert CHANGE.performer(opened, target)([RowChange(row.id, "b.jpg")]).updated == 1
        assert CHANGE.performer(opened, target)([RowChange(row.id)]).deleted == 1
        assert opened.store.count() == 0
