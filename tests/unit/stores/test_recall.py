"""Measuring the recall of an index: a known share of wrong rows, ties, claimed scores, a part of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ldot_milvus.stores import Match, Record, recall
from ldot_milvus.stores.base import Array
from ldot_milvus.stores.exact import exactly
from ldot_milvus.stores.index_spec import EXACT_UP_TO, GPU_BYTES, IndexSpec, choose, choose_after
from ldot_milvus.stores.local.store import FaissStore
from ldot_milvus.stores.recall import LEAST_ROWS, QUERIES, Recall, measure

DIM, ROWS = 16, 1500


def filled(folder: Path, vectors: Array) -> FaissStore:
    """Return a store whose HNSW is exact: it compares a query with so few rows one by one."""
    store = FaissStore(folder, "photos", IndexSpec("HNSW"))
    store.upsert([Record(f"{n:05d}", row) for n, row in enumerate(vectors)])
    return store


def normal(count: int = ROWS) -> Array:
    return np.random.default_rng(0).normal(size=(count, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaissStore]:
    with filled(tmp_path_factory.mktemp("recall"), normal()) as opened:
        yield opened


def answering(store: FaissStore, change: Callable[[list[Match]], list[Match]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the searches of a store return what ``change`` makes of the best 260 matches."""
    search = FaissStore.search

    def changed(queries: Array, k: int, **options: str) -> list[list[Match]]:
        return [change(line)[:k] for line in search(store, queries, 260, **options)]

    monkeypatch.setattr(store, "search", changed)


@pytest.mark.parametrize("most", [ROWS, 500], ids=["all rows read", "a third of the rows read"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 1.0])
def test_a_known_share_of_wrong_rows(
    store: FaissStore, share: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an index that misses each row with this probability, and returns the next ones instead."""
    monkeypatch.setattr(recall, "MOST_ROWS", most)
    random = np.random.default_rng(1)
    skipped = 200 if share == 1.0 else 0
    answering(store, lambda line: [match for match in line[skipped:] if random.random() >= share % 1], monkeypatch)
    measured = measure(store)
    assert measured is not None
    assert (measured.rows, measured.read, measured.queries) == (ROWS, most, QUERIES)
    judged = QUERIES * measured.k * most / ROWS
    deviation = np.sqrt(share * (1 - share) / judged)
    # A part of the rows shows fewer of the misses where there are many: 1 / (1 + share) of the neighbours at the least.
    most_expected = 1 - share if most == ROWS else max(1 - share, 1 / (1 + share) if share < 1 else 0)
    assert 1 - share - 4 * deviation <= measured.recall <= most_expected + 4 * deviation
    assert measured.sufficient == (share <= 0.02)


def test_claimed_scores_do_not_count(store: FaissStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores are those of the best rows, the rows are others."""

    def lie(line: list[Match]) -> list[Match]:
        return [Match(far.record, near.score) for far, near in zip(line[200:], line, strict=False)]

    answering(store, lie, monkeypatch)
    measured = measure(store)
    assert measured is not None
    assert measured.recall == 0


def test_ties_are_equally_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each vector is there 50 times: any ten of these rows are the nearest ones."""
    with filled(tmp_path, np.repeat(normal(30), 50, axis=0)) as store:
        random = np.random.default_rng(2)

        def shuffled(line: list[Match]) -> list[Match]:
            tied = [match for match in line if match.score >= line[0].score * (1 - 1e-6)]
            return [tied[n] for n in random.permutation(len(tied))]

        answering(store, shuffled, monkeypatch)
        measured = measure(store)
    assert measured is not None
    assert measured.recall == 1


def test_what_is_measured_is_kept(store: FaissStore) -> None:
    measured = measure(store)
    assert Recall.of(store) == measured is not None
    with FaissStore(store.address.removeprefix("faiss:"), "photos", IndexSpec("FLAT")) as other:
        assert Recall.of(other) is None  # of another index
    assert str(measured).startswith("HNSW has recall@10 1.000 (300 queries, 1,500 rows, 20")


def test_few_rows_and_the_kind_with_more_rows(tmp_path: Path) -> None:
    vectors = normal(LEAST_ROWS + 10)
    with filled(tmp_path, vectors[: LEAST_ROWS - 1]) as store:
        assert measure(store) is None
        assert Recall.of(store) is None
        store.upsert([Record(f"t{n}", row, kind="text") for n, row in enumerate(vectors)])
        measured = measure(store)
    assert measured is not None
    assert (measured.rows, measured.recall) == (LEAST_ROWS + 10, 1)


@pytest.mark.parametrize("k", [1, 7, 1000, 3000])
def test_exact_search_of_a_stream(k: int) -> None:
    """Over several pages, with equal scores and with scores that overflow."""
    vectors = np.random.default_rng(3).integers(-2, 3, size=(2500, 3)).astype(np.float32)
    records = [Record(f"{n * 7919 % 2500:04d}", row) for n, row in enumerate(vectors)]
    queries = np.float32([[1, 2, 0], [0, 0, 0], [-1, 1, 1]])
    for query, found in zip(queries, exactly(queries, k, iter(records)), strict=True):
        expected = sorted((-float(row @ query), record.id) for row, record in zip(vectors, records, strict=True))
        assert [(-match.score, match.record.id) for match in found] == expected[:k]
    large = [Record(f"{n}", np.float32([3e38, -3e38, n])) for n in range(3)]
    with np.errstate(over="ignore", invalid="ignore"):
        assert len(exactly(np.float32([[3, 3, 1]]), 2, iter(large))[0]) == 2


@pytest.mark.parametrize(
    ("rows", "dim", "gpu", "expected"),
    [
        (0, 0, False, "FLAT"),
        (EXACT_UP_TO, 768, False, "FLAT"),
        (EXACT_UP_TO + 1, 768, False, "HNSW"),
        (0, 0, True, "GPU_BRUTE_FORCE"),
        (GPU_BYTES // (4 * 768), 768, True, "GPU_BRUTE_FORCE"),
        (GPU_BYTES // (4 * 768) + 1, 768, True, "HNSW"),
        (GPU_BYTES // (4 * 768) + 1, 386, True, "GPU_BRUTE_FORCE"),
    ],
)
def test_what_auto_takes(rows: int, dim: int, gpu: bool, expected: str) -> None:
    """Exact search as far as the memory of a GPU goes, and after every type that fails another one, up to FLAT."""
    spec: IndexSpec | None = choose(rows, dim, gpu)
    assert spec == IndexSpec(expected)
    seen = []
    while spec is not None:
        seen.append(spec.index_type)
        spec = choose_after(spec)
    assert seen[-1] == "FLAT"
    assert "GPU_CAGRA" not in seen
