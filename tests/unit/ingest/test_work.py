"""Processing of a chunk: twice, after a worker's death, with a bad item, with an unavailable store.

A start without an end stands for the death of a worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ldot_milvus.errors import InputError, ModelMismatch, RegionStoreNotFound, StoreError, UsageError
from ldot_milvus.ingest.chunks import (
    MAX_ATTEMPTS,
    Chunk,
    chunks_of,
    process_chunk,
    process_chunks_inline,
    retry_while_unavailable,
    unfinished,
)
from ldot_milvus.ingest.ingestor import Failure, Report
from ldot_milvus.ingest.journal import Journal, Run, open_journal
from ldot_milvus.ingest.target import Target
from ldot_milvus.sources import Source

TARGET = Target("faiss:/s", "images", "m")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return open_journal(str(tmp_path / "journal.sqlite"))


def started(journal: Journal, count: int, size: int = 64) -> tuple[Run, list[Chunk]]:
    run = Run.new("ingest", TARGET, count)
    journal.start(run)
    return run, list(chunks_of(run, [Source(f"{n}.jpg") for n in range(count)], size))


def added(items: Sequence[Any]) -> Report:
    return Report(added=len(items))


def names(journal: Journal) -> dict[str, str]:
    return {item.source: item.reason for item in journal.failures()}


def test_chunks_travel_and_split_the_same_way_each_time(journal: Journal) -> None:
    _, chunks = started(journal, 130)
    assert [(chunk.id, len(chunk.items)) for chunk in chunks] == [("0", 64), ("1", 64), ("2", 2)]
    assert Chunk.from_dict(chunks[0].to_dict()) == chunks[0]
    parts = chunks[0].parts()
    assert [part.id for part in parts] == [f"0.{n}" for n in range(8)]
    assert [item for part in parts for item in part.items] == chunks[0].items
    assert parts == chunks[0].parts()
    assert [part.id for part in chunks[2].parts()] == ["2.0", "2.1"]


def test_what_is_unfinished(journal: Journal) -> None:
    run, chunks = started(journal, 130)
    assert list(unfinished(chunks, journal.ended(run.id))) == chunks
    process_chunk(chunks[0], journal, added, pytest.fail)
    journal.begin(run.id, "1")  # its worker died; the second one splits it, and all parts but one are lost
    parts: list[Chunk] = []
    process_chunk(chunks[1], journal, added, parts.append)
    process_chunk(parts[3], journal, added, pytest.fail)
    left = list(unfinished(chunks, journal.ended(run.id)))
    assert [chunk.id for chunk in left] == [*(f"1.{n}" for n in (0, 1, 2, 4, 5, 6, 7)), "2"]
    for chunk in left:
        process_chunk(chunk, journal, added, pytest.fail)
    assert list(unfinished(chunks, journal.ended(run.id))) == []
    progress = journal.progress(run.id)
    assert progress is not None
    assert (progress.complete, progress.done) == (True, 130)


def test_done_twice_counts_once(journal: Journal) -> None:
    run, (chunk,) = started(journal, 5)
    assert process_chunk(chunk, journal, added, pytest.fail) == Report(added=5)
    assert process_chunk(chunk, journal, lambda items: pytest.fail("it was done"), pytest.fail) is None
    progress = journal.progress(run.id)
    assert progress is not None
    assert (progress.complete, progress.sums["added"]) == (True, 5)


def test_what_an_item_fails_with_is_recorded_and_forgotten_when_it_succeeds(journal: Journal) -> None:
    _, (chunk,) = started(journal, 3)
    process_chunk(chunk, journal, lambda items: Report(added=2, failed=[Failure("1.jpg", "empty")]), pytest.fail)
    assert names(journal) == {"1.jpg": "empty"}
    _, (again,) = started(journal, 3)
    process_chunk(again, journal, added, pytest.fail)
    assert names(journal) == {}


def test_a_chunk_that_was_begun_before_is_split(journal: Journal) -> None:
    run, (chunk,) = started(journal, 20)
    journal.begin(run.id, chunk.id)  # and its worker died
    sent: list[Chunk] = []
    assert process_chunk(chunk, journal, lambda items: pytest.fail("it is suspicious"), sent.append) is None
    assert sum(len(part.items) for part in sent) == 20
    for part in sent:
        process_chunk(part, journal, added, pytest.fail)
    progress = journal.progress(run.id)
    assert progress is not None
    assert (progress.done, progress.sums["added"], progress.working) == (20, 20, 0)


def test_parts_that_were_not_sent_are_sent_when_the_chunk_comes_again(journal: Journal) -> None:
    """A worker dies, or loses its broker, after it has split a chunk and before it has sent all parts."""
    run, (chunk,) = started(journal, 16)
    journal.begin(run.id, chunk.id)
    sent: list[Chunk] = []

    def send(part: Chunk) -> None:
        if len(sent) == 3:
            raise StoreError("the broker does not answer")
        sent.append(part)

    with pytest.raises(StoreError):
        process_chunk(chunk, journal, added, send)
    process_chunk(sent[0], journal, added, pytest.fail)
    again: list[Chunk] = []
    assert process_chunk(chunk, journal, added, again.append) is None
    assert [part.id for part in again] == [f"0.{n}" for n in range(1, 8)]
    for part in [*sent, *again]:
        process_chunk(part, journal, added, pytest.fail)
    progress = journal.progress(run.id)
    assert progress is not None
    assert (progress.done, progress.sums["added"]) == (16, 16)


def test_a_slow_worker_and_one_that_splits_its_chunk_count_it_once(journal: Journal) -> None:
    run, (chunk,) = started(journal, 16)

    def slow(items: Sequence[Any]) -> Report:
        """Deliver the chunk to another worker, which splits it, while this one processes it."""
        process_chunk(chunk, journal, lambda items: pytest.fail("it is suspicious"), parts.append)
        return Report(added=len(items))

    parts: list[Chunk] = []
    process_chunk(chunk, journal, slow, pytest.fail)
    for part in parts:
        process_chunk(part, journal, lambda items: Report(unchanged=len(items)), pytest.fail)
    progress = journal.progress(run.id)
    assert progress is not None
    assert progress.done == 16


def test_an_item_that_always_kills_ends_in_the_failures_and_the_rest_is_in(journal: Journal) -> None:
    run, (chunk,) = started(journal, 64)
    queue, deaths = [chunk], 0

    def deadly(items: Sequence[Any]) -> Report:
        if any(item.path == "13.jpg" for item in items):
            raise Killed
        return Report(added=len(items))

    class Killed(BaseException):
        pass

    while queue:
        first = queue.pop(0)
        beginnings = journal.begin  # a death leaves a beginning: begun here, and given back by the exception
        try:
            process_chunk(first, journal, deadly, queue.append)
        except Killed:
            beginnings(run.id, first.id)
            deaths += 1
            queue.append(first)  # the broker hands it out again
        assert deaths < 20
    assert names(journal) == {"13.jpg": f"its worker died {MAX_ATTEMPTS} times while working on it"}
    progress = journal.progress(run.id)
    assert progress is not None
    assert (progress.complete, progress.sums["added"], progress.sums["failed"]) == (True, 63, 1)
    assert deaths == 2 + MAX_ATTEMPTS


def test_an_error_that_nobody_expected_is_pinned_on_its_item(journal: Journal) -> None:
    run, chunks = started(journal, 70)

    def stumbling(items: Sequence[Any]) -> Report:
        if any(item.path in ("13.jpg", "65.jpg") for item in items):
            raise ZeroDivisionError("oops")
        return Report(added=len(items))

    total = Report()
    for report in process_chunks_inline(chunks, journal, stumbling):
        total.add(report)
    assert (total.added, len(total.failed)) == (68, 2)
    assert names(journal) == dict.fromkeys(("13.jpg", "65.jpg"), "unexpected error ZeroDivisionError: oops")
    progress = journal.progress(run.id)
    assert progress is not None
    assert progress.complete


@pytest.mark.parametrize(
    "error", [UsageError("unknown model"), ModelMismatch("another model's"), RegionStoreNotFound("elsewhere")]
)
def test_what_waiting_does_not_help_fails_the_whole_chunk(journal: Journal, error: Exception) -> None:
    _, (chunk,) = started(journal, 3)

    def refused(items: Sequence[Any]) -> Report:
        raise error

    report = process_chunk(chunk, journal, refused, pytest.fail)
    assert report is not None
    assert len(report.failed) == 3
    assert set(names(journal).values()) == {str(error)}


def test_a_store_that_is_away_is_no_attempt(journal: Journal) -> None:
    _, (chunk,) = started(journal, 3)

    def away(items: Sequence[Any]) -> Report:
        raise StoreError("does not answer")

    for _ in range(5):
        with pytest.raises(StoreError):
            process_chunk(chunk, journal, away, pytest.fail)
    assert process_chunk(chunk, journal, added, pytest.fail) == Report(added=3)
    assert journal.failures() == []


def test_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses, notes = [0.0], [], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds
        pauses.append(seconds)

    monkeypatch.setattr("time.sleep", sleep)
    outcomes = [StoreError("away")] * 8 + [Report(added=1)]

    def work() -> Report:
        outcome = outcomes.pop(0)
        if isinstance(outcome, StoreError):
            raise outcome
        return outcome

    assert retry_while_unavailable(work, 1000, notes.append) == Report(added=1)
    assert notes == ["away"] * 8
    assert now[0] == pytest.approx(1 + 2 + 4 + 8 + 16 + 30 + 30 + 30, abs=1)

    def away() -> Report:
        raise StoreError("away")

    def silent(trouble: str) -> None:
        raise StoreError("the journal is away too")

    with pytest.raises(StoreError, match="away"):
        retry_while_unavailable(away, 10, silent)
    before = now[0]
    with pytest.raises(StoreError, match="away"):
        retry_while_unavailable(away, 1000, notes.append, stopping=lambda: True)
    assert now[0] == before


def test_input_errors_are_for_the_report_and_not_for_here(journal: Journal) -> None:
    """An InputError raised by ``perform`` concerns the whole chunk: every item is recorded as a failure."""
    _, (chunk,) = started(journal, 2)

    def refused(items: Sequence[Any]) -> Report:
        raise InputError("the tar is gone")

    process_chunk(chunk, journal, refused, pytest.fail)
    assert names(journal) == {"0.jpg": "the tar is gone", "1.jpg": "the tar is gone"}
