"""Index types of the local store: recall, filters, changes, unavailable types; compared with NumPy."""

from __future__ import annotations

import heapq
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from ldot_milvus.errors import UsageError
from ldot_milvus.stores import Record, index_spec
from ldot_milvus.stores.base import Array, Match
from ldot_milvus.stores.index_spec import IndexSpec
from ldot_milvus.stores.local import collection_index, indexes
from ldot_milvus.stores.local.store import FaissStore
from tests.tolerance import assert_first, slack

DIM = 32
ROWS = 5000
KINDS = ("FLAT", "HNSW", "HNSW:M=16,ef=32", "IVF_FLAT", "IVF_FLAT:nlist=64,nprobe=24", "IVF_SQ8:nlist=64,nprobe=24")
ON_GPU = ("GPU_BRUTE_FORCE", "GPU_CAGRA", "GPU_IVF_FLAT:nlist=64,nprobe=24", "GPU_IVF_PQ")


class FakeGPU:
    """The limits of FAISS on a GPU: no parameters, no removal, at most 2,048 neighbours."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self.nprobe = 1
        self.train = index.train
        self.add = index.add
        self.searches = 0

    def search(self, queries: Array, k: int) -> Any:
        assert 1 <= k <= 2048
        assert 1 <= self.nprobe <= 2048
        self.searches += 1
        if hasattr(self._index, "nprobe"):
            self._index.nprobe = self.nprobe
        return self._index.search(queries, k)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def cells(_: object, dim: int, nlist: int, metric: int) -> FakeGPU:
        return FakeGPU(faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, nlist, metric))

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(indexes, "resources", object)
    monkeypatch.setattr(faiss, "GpuIndexFlatIP", lambda _, dim: FakeGPU(faiss.IndexFlatIP(dim)), raising=False)
    monkeypatch.setattr(faiss, "GpuIndexIVFFlat", cells, raising=False)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use cells and graphs for few rows too, although a scan would be faster."""
    monkeypatch.setattr(indexes, "GRAPH_COST", 0)
    monkeypatch.setattr(collection_index, "CELL_ROWS", 8)
    monkeypatch.setattr(collection_index, "FEWEST_CELLS", 2)


class Truth:
    """The expected rows, and the expected results of a search over them."""

    def __init__(self, records: list[Record]) -> None:
        self.records = {record.id: record for record in records}

    def scores(self, query: Array, kind: str = "image", least: int = 0) -> dict[str, float]:
        """Exact scores of the candidate rows."""
        rows = [r for r in self.records.values() if r.kind == kind and r.width >= least]
        products = np.array([r.embedding for r in rows]).reshape(-1, DIM) @ query
        return dict(zip((r.id for r in rows), products.tolist(), strict=True))

    def check(self, answer: list[Match], query: Array, k: int, kind: str = "image", least: int = 0) -> float:
        """Check what every index type guarantees; return the recall, where rows tied with the k-th count."""
        scores = self.scores(query, kind, least)
        best = heapq.nlargest(k, scores.values())
        ids = [match.record.id for match in answer]
        assert len(ids) == len(set(ids)) == len(best)
        for match in answer:
            row = self.records[match.record.id]  # KeyError: a dead one
            assert row.kind == kind
            assert row.width >= least
            assert match.score == pytest.approx(float(row.embedding @ query), rel=1e-4, abs=1e-3)  # type: ignore[operator]
        assert answer == sorted(answer, key=lambda match: (-match.score, match.record.id))
        return float(np.mean([scores[id] >= best[-1] - slack(np.array(best)) for id in ids])) if best else 1.0


def vectors(random: np.random.Generator, n: int) -> Array:
    """Clustered vectors with norms from 0.1 to 10."""
    centres = np.random.default_rng(5).normal(size=(60, DIM))
    rows = centres[random.integers(60, size=n)] + 0.7 * random.normal(size=(n, DIM))
    rows *= (10 ** random.uniform(-1, 1, n) / np.linalg.norm(rows, axis=1))[:, None]
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """A read-only collection; ``width`` is the rank of a row by its norm, the longest first."""
    random = np.random.default_rng(0)
    rows = vectors(random, ROWS)
    ranks = np.argsort(np.argsort(-np.linalg.norm(rows, axis=1)))
    records = [
        Record(f"r{i:04}", row, "text" if i % 50 == 0 else "image", width=int(ranks[i]), metadata={"n": i})
        for i, row in enumerate(rows)
    ]
    folder = tmp_path_factory.mktemp("shared")
    with FaissStore(folder, "photos") as store:
        store.upsert(records)
    return folder, Truth(records)


@pytest.fixture
def queries() -> Array:
    return vectors(np.random.default_rng(1), 40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def opened(folder: Path, spec: str) -> FaissStore:
    return FaissStore(folder, "photos", IndexSpec.parse(spec))


def part(store: FaissStore, kind: str = "image") -> indexes.RowIndex:
    assert store._index is not None
    return store._index._indexes[kind]


def pass_only(store: FaissStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every full scan fail from now on, so that the index itself must find the rows."""

    def fail(*_: object) -> None:
        raise AssertionError("scanned")

    monkeypatch.setattr(part(store), "_scan", fail)


# ---- results


@pytest.mark.parametrize("spec", KINDS)
def test_recall_on_vectors_of_any_norm(
    spec: str, shared: tuple[Path, Truth], queries: Array, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, truth = shared
    with opened(folder, spec) as store:
        store.search(queries[:1], 1)
        if spec != "FLAT":
            pass_only(store, monkeypatch)
        answers = store.search(queries, 10)
        recalls = [truth.check(answer, query, 10) for query, answer in zip(queries, answers, strict=True)]
        assert np.mean(recalls) >= (1 if spec == "FLAT" else 0.95)


@pytest.mark.parametrize("spec", KINDS)
def test_a_selective_filter_gives_the_exact_answer(spec: str, shared: tuple[Path, Truth], queries: Array) -> None:
    folder, truth = shared
    random = np.random.default_rng(2)
    with opened(folder, spec) as store:
        for matching in (1, 2, 10, 50):
            numbers = [int(n) * 50 + 1 for n in random.permutation(ROWS // 50)[:matching]]  # images all
            among = Truth([truth.records[f"r{n:04}"] for n in numbers])
            for k in (1, 10, 60):
                answers = store.search(queries[:5], k, filter={"metadata.n": {"$in": numbers}})
                for query, answer in zip(queries, answers, strict=False):
                    among.check(answer, query, k)
                    assert_first([match.record.id for match in answer], among.scores(query))


@pytest.mark.parametrize("spec", KINDS)
def test_a_filter_that_keeps_the_short_vectors_only(
    spec: str, shared: tuple[Path, Truth], queries: Array, eager: None
) -> None:
    """The filter excludes all near rows, where a graph's own filtered search silently loses half of the results."""
    folder, truth = shared
    with opened(folder, spec) as store:
        for least in (ROWS // 10, ROWS // 2, ROWS * 9 // 10):
            answers = store.search(queries, 10, filter={"width": {"$gte": least}})
            recalls = [truth.check(a, q, 10, least=least) for q, a in zip(queries, answers, strict=True)]
            assert np.mean(recalls) >= (1 if spec == "FLAT" else 0.95)


@pytest.mark.parametrize("spec", KINDS)
def test_more_than_there_are_and_kinds_apart(
    spec: str, shared: tuple[Path, Truth], queries: Array, eager: None
) -> None:
    folder, truth = shared
    with opened(folder, spec) as store:
        for kind, k in (("text", 101), ("image", 300), ("image", 6000)):
            for query, answer in zip(queries, store.search(queries[:2], k, kind=kind), strict=False):
                recall = truth.check(answer, query, k, kind)
                assert recall == 1 or k == 300, "where everything is asked for, nothing is missing"
        assert store.search(queries[:0], 5) == []
        assert store.search(queries[:1], 5, filter={"id": "nobody"}) == [[]]


def test_many_queries_and_one_give_the_same(shared: tuple[Path, Truth], queries: Array, eager: None) -> None:
    """Except for ties: FAISS multiplies several queries in another way than one."""
    folder, truth = shared
    for spec in KINDS:
        with opened(folder, spec) as store:
            together = store.search(queries, 5)
            for query, answer in zip(queries, together, strict=True):
                [alone] = store.search(query[None], 5)
                assert [m.score for m in alone] == pytest.approx([m.score for m in answer], rel=1e-5)
                scores = truth.scores(query)
                tie = slack(np.array([match.score for match in answer]))
                for one, other in zip(alone, answer, strict=True):
                    assert abs(scores[one.record.id] - scores[other.record.id]) <= tie


# ---- changes


@pytest.mark.parametrize("spec", ["auto", *KINDS])
def test_random_changes(spec: str, folder: Path, eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_spec, "EXACT_UP_TO", 60)
    changes(spec, folder)


@pytest.mark.parametrize("spec", ["auto", *ON_GPU])
def test_random_changes_on_a_gpu(
    spec: str, folder: Path, eager: None, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_spec, "EXACT_UP_TO", 60)
    changes(spec, folder)


def changes(spec: str, folder: Path, seed: int = 3) -> None:
    random = np.random.default_rng(seed)
    truth = Truth([])
    recalls: list[float] = []
    with opened(folder, spec) as store, opened(folder, "FLAT") as writer:
        for step in range(45):
            batch = [
                Record(f"id{random.integers(400):03}", row, ("image", "text")[random.integers(4) // 3],
                       width=int(random.integers(10)))
                for row in vectors(random, random.integers(1, 40))
            ]  # fmt: skip
            (store, writer)[step % 2].upsert(batch)
            truth.records.update({record.id: record for record in batch})
            gone = [f"id{n:03}" for n in random.integers(400, size=random.integers(1, 25))]
            if step % 15 == 14:
                gone = [id for id in truth.records if random.random() < 0.7]
            store.delete(gone)
            for id in gone:
                truth.records.pop(id, None)
            kind, least, k = ("image", "text")[step % 3 // 2], int(random.integers(10)), int(random.integers(1, 40))
            asked = vectors(random, random.integers(1, 4))
            filter = {"width": {"$gte": least}} if step % 2 else None
            for query, answer in zip(asked, store.search(asked, k, kind=kind, filter=filter), strict=True):
                recalls.append(truth.check(answer, query, k, kind, least if filter else 0))
    exact = spec in ("FLAT", "GPU_BRUTE_FORCE")
    assert np.mean(recalls) >= (1 if exact else 0.95)


def added(store: FaissStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many rows each call adds to the index of images."""
    counts: list[int] = []
    images = part(store)
    add = images.add_with_ids

    def counted(rows: Array, pks: Any) -> None:
        counts.append(len(pks))
        add(rows, pks)

    monkeypatch.setattr(images, "add_with_ids", counted)
    return counts


@pytest.mark.parametrize("spec", ["HNSW", "IVF_FLAT:nlist=20,nprobe=4", "IVF_SQ8:nlist=20,nprobe=4"])
def test_only_new_rows_are_added_until_a_fifth_is_dead(
    spec: str, folder: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = vectors(np.random.default_rng(4), 260)
    with opened(folder, spec) as store:
        store.upsert([Record(f"r{i:03}", row) for i, row in enumerate(rows[:200])])
        store.search(rows[:1], 1)
        first = part(store)
        counts = added(store, monkeypatch)
        for i in range(200, 210):
            store.upsert([Record(f"r{i:03}", rows[i])])
            assert store.search(rows[i : i + 1] * 100, 1, filter={"id": f"r{i:03}"})[0][0].record.id == f"r{i:03}"
        assert counts == [1] * 10
        store.upsert([Record("r000", rows[210])])  # replaced
        assert "r000" in [match.record.id for match in store.search(rows[210:211], 210)[0]]
        store.delete([f"r{i:03}" for i in range(1, 42)])
        assert len(store.search(rows[:1], 210)[0]) == 169
        assert part(store) is first
        assert (first.count, first.dead) == (169, 42)
        store.delete(["r042"])
        assert len(store.search(rows[:1], 210)[0]) == 168
        assert part(store) is not first
        assert (part(store).count, part(store).dead) == (168, 0)
        assert part(store).spec.index_type == first.spec.index_type


def test_auto_is_exact_first_and_a_graph_when_it_has_grown(
    folder: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_spec, "EXACT_UP_TO", 100)
    rows = vectors(np.random.default_rng(4), 200)
    with FaissStore(folder, "photos") as store:

        def after(first: int, last: int, kind: str = "image") -> str:
            store.upsert([Record(f"{kind}{i:03}", rows[i], kind) for i in range(first, last)])
            store.search(rows[:1], 1)
            return part(store, kind).spec.index_type

        assert after(0, 100) == "FLAT"
        assert after(100, 101) == "HNSW"
        assert after(0, 50, "text") == "FLAT"
        texts = part(store, "text")
        assert after(101, 110) == "HNSW"
        assert part(store, "text") is texts
        store.delete([f"image{i:03}" for i in range(15)])  # below the limit, but less than a fifth
        assert after(0, 0) == "HNSW"
        store.delete([f"image{i:03}" for i in range(15, 30)])
        assert after(0, 0) == "FLAT"
        assert after(0, 40) == "HNSW"
        with FaissStore(folder, "photos") as other:
            other.search(rows[:1], 1)
            assert part(other).spec.index_type == "HNSW"
            assert part(other, "text").spec.index_type == "FLAT"


def test_cells_come_with_the_rows(folder: Path) -> None:
    rows = vectors(np.random.default_rng(4), 4200)
    with opened(folder, "IVF_FLAT:nlist=4096") as store:
        seen = []
        for first, last in ((0, 1000), (1000, 1024), (1024, 4000), (4000, 4200)):
            store.upsert([Record(f"r{i:04}", rows[i]) for i in range(first, last)])
            store.search(rows[:1], 1)
            seen.append((part(store).spec.index_type, getattr(part(store).index, "nlist", None)))
        assert seen == [("FLAT", None), ("IVF_FLAT", 16), ("IVF_FLAT", 16), ("IVF_FLAT", 65)]


@pytest.mark.parametrize("spec", KINDS)
def test_rows_that_are_all_alike(spec: str, folder: Path, eager: None) -> None:
    with opened(folder, spec) as store:
        for value in (0.0, 1.0, 1e19):  # products beyond float32 among them
            store.upsert([Record(f"r{i:03}", np.full(DIM, value, np.float32)) for i in range(300)])
            assert len(store.search(np.full((2, DIM), value, np.float32), 7)[1]) == 7
        assert len(store.search(np.ones((1, DIM), np.float32), 1000)[0]) == 300


def test_threads_share_a_graph(folder: Path, eager: None) -> None:
    rows = vectors(np.random.default_rng(4), 200)
    failures: list[BaseException] = []
    with opened(folder, "HNSW:M=8,efConstruction=40,ef=250") as store:
        store.bind("model-a", DIM)

        def work(start: int) -> None:
            try:
                for i in range(start, start + 40):
                    store.upsert([Record(f"r{i}", rows[i])])
                    assert f"r{i}" in [match.record.id for match in store.search(rows[i : i + 1], 200)[0]]
                    if i % 3 == 0:
                        assert store.delete([f"r{i}"]) == 1
                        assert f"r{i}" not in [match.record.id for match in store.search(rows[i : i + 1], 200)[0]]
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(start,)) for start in (0, 40, 80, 120)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures
        assert len(store.search(rows[:1], 1000)[0]) == store.count()


def test_a_graph_goes_on_after_a_fork(folder: Path) -> None:
    code = """
import os, sys
os.environ["OMP_NUM_THREADS"] = "2"
import numpy as np
from ldot_milvus.stores import Record
from ldot_milvus.stores.local import indexes
from ldot_milvus.stores.local.store import FaissStore
from ldot_milvus.stores.index_spec import IndexSpec
indexes.GRAPH_COST = 0
rows = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
store = FaissStore(sys.argv[1], "photos", IndexSpec("HNSW"))
store.upsert([Record(f"r{i}", row) for i, row in enumerate(rows)])
store.search(rows[:50], 3)
child = os.fork()
if child == 0:
    store.upsert([Record(f"c{i}", row * 10) for i, row in enumerate(rows)])
    os._exit(0 if store.search(rows[:50], 1)[0][0].record.id.startswith("c") else 1)
print(os.waitpid(child, 0)[1], len(store.search(rows[:50], 3)))
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "50"], done.stderr


# ---- unavailable index types


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    with caplog.at_level(logging.WARNING):
        yield caplog.messages


@pytest.mark.parametrize(
    ("asked", "taken"),
    [("GPU_BRUTE_FORCE", "FLAT"), ("GPU_CAGRA:graph_degree=32", "HNSW"), ("GPU_IVF_FLAT", "IVF_FLAT"),
     ("GPU_IVF_PQ:m=4", "IVF_SQ8")],
)  # fmt: skip
def test_without_a_gpu_the_nearest_type_answers_and_says_so_once(
    asked: str, taken: str, shared: tuple[Path, Truth], queries: Array, eager: None, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = shared
    with opened(folder, asked) as store, opened(folder, taken) as same:
        assert not caplog.messages
        for _ in range(2):
            assert store.search(queries, 10) == same.search(queries, 10)
        [message] = caplog.messages
        assert caplog.records[0].levelno == logging.WARNING
        index_type = asked.partition(":")[0]
        assert message == (f"index {index_type} is unavailable (FAISS sees no GPU here): this local store uses {taken}")
        assert part(store).spec.index_type == taken


def test_index_types_on_a_gpu(
    shared: tuple[Path, Truth], queries: Array, eager: None, gpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    folder, truth = shared
    taken = {}
    for spec in ("auto", *ON_GPU):
        with opened(folder, spec) as store:
            answers = store.search(queries, 10)
            recalls = [truth.check(answer, query, 10) for query, answer in zip(queries, answers, strict=True)]
            assert np.mean(recalls) >= 0.95
            answering = part(store)
            assert isinstance(answering, indexes.GpuIndex)
            assert answering._device.searches == 1
            taken[spec.partition(":")[0]] = answering.spec.index_type
            answers = store.search(queries, 10, filter={"width": {"$gte": ROWS // 10}})
            for query, answer in zip(queries, answers, strict=True):
                truth.check(answer, query, 10, least=ROWS // 10)
            assert answering._device.searches == 2
            store.search(queries[:1], 3000)
            assert answering._device.searches == 2
    assert taken == {
        "auto": "GPU_BRUTE_FORCE", "GPU_BRUTE_FORCE": "GPU_BRUTE_FORCE", "GPU_CAGRA": "GPU_BRUTE_FORCE",
        "GPU_IVF_FLAT": "GPU_IVF_FLAT", "GPU_IVF_PQ": "GPU_IVF_FLAT",
    }  # fmt: skip
    assert [message.split(":")[0] for message in caplog.messages] == [
        "index GPU_CAGRA is unavailable (FAISS has no such type)",
        "index GPU_IVF_PQ is unavailable (FAISS has no such type)",
    ]


def test_ties_on_a_gpu_go_by_id(folder: Path, gpu: None) -> None:
    with opened(folder, "GPU_BRUTE_FORCE") as store:
        store.upsert([Record(f"t{i:03}", np.ones(DIM, np.float32)) for i in range(199, -1, -1)])
        store.upsert([Record("zz", np.full(DIM, 2, np.float32))])
        found = store.search(np.ones((2, DIM), np.float32), 3)[1]
        assert [match.record.id for match in found] == ["zz", "t000", "t001"]


def test_a_spec_is_checked_when_the_store_is_opened(folder: Path) -> None:
    with pytest.raises(UsageError, match="M is a whole number"):
        FaissStore(folder, "photos", IndexSpec("HNSW", {"M": 1}))
    with pytest.raises(UsageError, match="inner product"):
        FaissStore(folder, "photos", IndexSpec("HNSW", {"metric_type": "L2"}))
