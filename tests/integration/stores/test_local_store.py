"""The local store: exact results, several processes and threads, crashes, damaged files, and bad arguments."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldot_milvus
from ldot_milvus.errors import CollectionNotFound, LdotError, ModelMismatch, StoreError, UsageError
from ldot_milvus.stores import Record, VectorStore, open_store
from ldot_milvus.stores.base import Array, Filter
from ldot_milvus.stores.local import database
from ldot_milvus.stores.local.store import FaissStore

DIM = 8
ROOT = str(Path(ldot_milvus.__file__).parents[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(folder: Path) -> Iterator[FaissStore]:
    opened = FaissStore(folder, "photos")
    yield opened
    opened.close()


def vector(*head: float) -> Array:
    return np.array([*head, *[0.0] * (DIM - len(head))], np.float32)


def rows(n: int, prefix: str = "r") -> list[Record]:
    return [Record(f"{prefix}{i:05d}", vector(1, i), metadata={"n": i}) for i in range(n)]


def ids_of(store: VectorStore, query: Array, k: int, **more: Any) -> list[str]:
    return [match.record.id for match in store.search(query[None], k, **more)[0]]


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python code in another process, with the test's imports."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# ---- reading and writing


def test_a_row_comes_back_as_it_was_written(store: FaissStore) -> None:
    # An emoji, combining marks, quotes, a line break: 64 bytes at most.
    written = Record(
        "é-🐕-'\"\\\n-مرحبا",
        np.linspace(-1, 1, DIM, dtype=np.float32),
        kind="text",
        namespace="tenant ü",
        source="/a b/c'.jpg",
        caption="two dogs\nin the snow ❄",
        width=3,
        height=2**31 - 1,
        metadata={"a": {"b": [1, 2.5, None, True, "é"]}, "big": 2**63 - 1, "key 'with\" quotes": 1e300},
    )
    assert store.upsert([written]) == 1
    [read] = store.get([written.id], with_embeddings=True)
    assert read.embedding is not None
    assert read.embedding.dtype == np.float32
    np.testing.assert_array_equal(read.embedding, written.embedding)
    for name in ("id", "kind", "namespace", "source", "caption", "width", "height", "metadata"):
        assert getattr(read, name) == getattr(written, name)
    assert store.get([written.id])[0].embedding is None
    [[match]] = store.search(written.embedding[None], 1, kind="text", filter={"id": written.id})  # type: ignore[index]
    assert match.record.id == written.id
    assert match.record.embedding is None


def test_get_keeps_the_order_asked_for_and_is_fast(store: FaissStore) -> None:
    store.upsert(rows(3000))
    asked = [f"r{i:05d}" for i in range(2999, -1, -1)] + ["nobody", "r00000"]
    started = time.perf_counter()
    found = [record.id for record in store.get(asked)]
    assert time.perf_counter() - started < 2
    assert found == [id for id in asked if id != "nobody"]


def test_upsert_replaces_and_the_last_of_a_batch_wins(store: FaissStore) -> None:
    store.upsert([Record("a", vector(1)), Record("b", vector(0.5))])
    assert ids_of(store, vector(1), 1) == ["a"]
    assert store.upsert([Record("b", vector(2)), Record("b", vector(3), caption="last")]) == 1
    [first, second] = store.search(vector(1)[None], 5)[0]
    assert (first.record.id, first.record.caption, first.score, second.record.id) == ("b", "last", 3.0, "a")
    store.upsert([Record("b", vector(3), kind="text")])  # the same vector in another kind
    assert ids_of(store, vector(1), 5) == ["a"]
    assert ids_of(store, vector(1), 5, kind="text") == ["b"]
    store.upsert([Record("a", vector(1), width=7, caption="only this changed")])
    assert store.search(vector(1)[None], 1)[0][0].record.caption == "only this changed"
    assert store.get(["a"])[0].width == 7
    assert store.upsert([]) == 0


def test_every_process_re_reads_only_the_vectors_that_changed(store: FaissStore, folder: Path) -> None:
    store.upsert(rows(3))

    def state() -> tuple[list[int], list[int], list[int]]:
        with sqlite3.connect(folder / "store.sqlite") as connection:
            tables = ("records", "vectors", "tombstones")
            pks = [[pk for (pk,) in connection.execute(f"SELECT pk FROM {table} ORDER BY pk")] for table in tables]
        return pks[0], pks[1], pks[2]

    store.upsert([Record("r00000", vector(1, 0), caption="new")])
    store.update([Record("r00001", caption="new")])
    assert state() == ([1, 2, 3], [1, 2, 3], [])
    store.upsert([Record("r00001", vector(5))])
    store.delete(["r00002"])
    assert state() == ([1, 4], [1, 4], [2, 3])


def test_update_keeps_the_vector_kind_and_size(store: FaissStore) -> None:
    store.upsert([Record("a", vector(1), width=5)])
    changed = Record("a", None, "text", "other", "s", "c", 9, 9, {"x": 1})
    assert store.update([changed, Record("nobody")]) == 1
    [read] = store.get(["a"], with_embeddings=True)
    np.testing.assert_array_equal(read.embedding, vector(1))
    assert (read.kind, read.namespace, read.source, read.caption) == ("image", "other", "s", "c")
    assert (read.width, read.metadata) == (5, {"x": 1})
    assert ids_of(store, vector(1), 1, filter={"metadata.x": 1, "namespace": "other"}) == ["a"]


def test_iterate_gives_every_row_once_in_order_of_id(store: FaissStore) -> None:
    store.upsert(rows(25)[::-1])
    for size in (1, 10, 25, 1000):
        assert [record.id for record in store.iterate(batch_size=size)] == [f"r{i:05d}" for i in range(25)]
    some = list(store.iterate({"metadata.n": {"$gte": 20}}, batch_size=2, with_embeddings=True))
    assert [record.metadata["n"] for record in some] == [20, 21, 22, 23, 24]
    assert some[0].embedding is not None
    with pytest.raises(UsageError):
        store.iterate({"unknown": 1})  # at the call, not at the first row


def test_delete_by_id_and_by_filter(store: FaissStore) -> None:
    store.upsert(rows(10))
    assert len(ids_of(store, vector(0, 1), 10)) == 10
    assert store.delete(["r00001", "nobody"]) == 1
    assert store.delete(filter={"metadata.n": {"$gte": 5}}) == 5
    assert store.delete(ids=[]) == 0
    assert store.count() == 4
    assert ids_of(store, vector(0, 1), 10) == ["r00004", "r00003", "r00002", "r00000"]
    bad_calls: list[dict[str, Any]] = [{}, {"ids": ["a"], "filter": {"id": "a"}}, {"filter": {}}, {"ids": "r00002"}]
    for bad in bad_calls:
        with pytest.raises(UsageError):
            store.delete(**bad)
    assert store.count() == 4


def test_collections_in_one_folder_are_separate(store: FaissStore, folder: Path) -> None:
    with FaissStore(folder, "others") as others:
        store.upsert([Record("a", vector(1))])
        others.upsert([Record("a", np.ones(3, np.float32)), Record("b", np.ones(3, np.float32))])
        store.delete(["a"])
        assert (store.count(), others.count(), store.dim, others.dim) == (0, 2, DIM, 3)
        assert [match.record.id for match in others.search(np.ones((1, 3), np.float32), 5)[0]] == ["a", "b"]
        assert store.search(vector(1)[None], 5) == [[]]


# ---- search


def narrow(width: int, record: Record) -> bool:
    return record.width <= width


def tagged(tag: str, record: Record) -> bool:
    return bool(record.metadata["tag"] == tag)


def unlike(tag: str, width: int, record: Record) -> bool:
    return not (tagged(tag, record) and record.width == width)


def test_search_is_exact_through_random_changes_and_filters(folder: Path) -> None:
    """Comparison with NumPy; small whole numbers make inner products exact and ties frequent."""
    random = np.random.default_rng(0)
    truth: dict[str, Record] = {}
    with FaissStore(folder, "photos") as store, FaissStore(folder, "photos") as second:
        for step in range(60):
            batch = [
                Record(
                    f"id{random.integers(60)}",
                    random.integers(-2, 3, DIM).astype(np.float32),
                    kind=("image", "text")[random.integers(4) // 3],
                    width=int(random.integers(4)),
                    metadata={"tag": "xyz"[random.integers(3)]},
                )
                for _ in range(random.integers(1, 12))
            ]
            store.upsert(batch)
            truth.update({record.id: record for record in batch})
            gone = [f"id{n}" for n in random.integers(60, size=3)]
            assert second.delete(gone) == len({id for id in gone if truth.pop(id, None)})
            kind = ("image", "text")[step % 2]
            width, tag = int(random.integers(4)), "xyz"[random.integers(3)]
            choices: list[tuple[Filter | None, Callable[[Record], bool]]] = [
                (None, lambda r: True),
                ({"width": {"$lte": width}}, partial(narrow, width)),
                ({"metadata.tag": tag}, partial(tagged, tag)),
                ({"$not": {"metadata.tag": tag, "width": width}},
                 partial(unlike, tag, width)),
                ({"id": {"$in": []}}, lambda r: False),
            ]  # fmt: skip
            filter, passes = choices[random.integers(5)]
            queries = random.integers(-2, 3, (random.integers(1, 4), DIM)).astype(np.float32)
            k = int(random.integers(1, 30))
            kept = [record for record in truth.values() if record.kind == kind and passes(record)]
            for reader in (store, second):
                answers = reader.search(queries, k, kind=kind, filter=filter)
                assert reader.count(filter) == sum(map(passes, truth.values()))
                for query, answer in zip(queries, answers, strict=True):
                    best = sorted((-float(query @ r.embedding), r.id) for r in kept)[:k]
                    assert [(-match.score, match.record.id) for match in answer] == best


def test_a_selective_filter_returns_all_that_match(store: FaissStore) -> None:
    store.upsert(rows(3000))
    found = ids_of(store, vector(0, 1), 10, filter={"metadata.n": {"$in": [3, 1, 2]}})
    assert found == ["r00003", "r00002", "r00001"]


def test_ties_at_the_edge_of_k_go_by_id(store: FaissStore) -> None:
    store.upsert([Record(f"t{i:03d}", vector(1)) for i in range(199, -1, -1)] + [Record("zz", vector(2))])
    assert ids_of(store, vector(1), 4) == ["zz", "t000", "t001", "t002"]
    many = store.search(np.zeros((30, DIM), np.float32), 3)
    assert [[match.record.id for match in answer] for answer in many] == [["t000", "t001", "t002"]] * 30


def test_limits_of_k(store: FaissStore) -> None:
    store.upsert(rows(3))
    assert len(ids_of(store, vector(1), 16384)) == 3
    for k in (0, -1, 16385, 1.0, True, None, "5"):
        with pytest.raises(UsageError, match=r"k is .*: give a whole number from 1 to 16,384"):
            store.search(vector(1)[None], k)  # type: ignore[arg-type]


def test_queries_of_the_wrong_shape_or_with_nan(store: FaissStore) -> None:
    store.upsert(rows(3))
    assert store.search(np.zeros((0, DIM), np.float32), 5) == []
    for queries, kind_of_error, words in [
        (vector(1), UsageError, "shape"),
        (np.zeros((1, DIM + 1), np.float32), ModelMismatch, "9 dimensions"),
        (np.array([vector(1), vector(float("nan"))]), UsageError, "query 1"),
        (np.full((1, DIM), 1e300), UsageError, "query 0"),
        (np.array([["a"] * DIM]), UsageError, "numbers"),
        ([[1.0], [1.0, 2.0]], UsageError, "array"),
    ]:
        with pytest.raises(kind_of_error, match=words):
            store.search(queries, 5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="kind"):
        store.search(vector(1)[None], 5, kind="video")


# ---- a store that does not exist


def test_reading_makes_nothing_and_finds_nothing(store: FaissStore, folder: Path) -> None:
    assert (store.model, store.dim, store.count(), store.get(["a"]), list(store.iterate())) == (None, None, 0, [], [])
    assert (store.delete(["a"]), store.delete(filter={"id": "a"}), store.update([Record("a")])) == (0, 0, 0)
    with pytest.raises(CollectionNotFound, match="'photos' yet: ingest"):
        store.search(vector(1)[None], 1)
    assert not folder.exists()
    FaissStore(folder, "others").bind("m", DIM)
    with pytest.raises(CollectionNotFound, match="existing collections: others"):
        store.search(vector(1)[None], 1)
    store.bind("m", DIM)
    assert store.search(np.zeros((2, DIM), np.float32), 1) == [[], []]


def test_a_folder_deleted_under_an_open_store_starts_anew(store: FaissStore, folder: Path) -> None:
    store.upsert(rows(3))
    assert len(ids_of(store, vector(1), 5)) == 3
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert store.count() == 0
    store.upsert([Record("new", vector(1))])
    with FaissStore(folder, "photos") as other:
        assert ids_of(other, vector(1), 5) == ids_of(store, vector(1), 5) == ["new"]


# ---- models


def test_a_collection_belongs_to_one_model(store: FaissStore, folder: Path) -> None:
    store.bind("model-a", DIM)
    store.bind("model-a", DIM)
    assert (store.model, store.dim) == ("model-a", DIM)
    with FaissStore(folder, "photos") as again:
        for model, dim in (("model-b", DIM), ("model-a", DIM + 1)):
            with pytest.raises(ModelMismatch) as caught:
                again.bind(model, dim)
            assert "model-a" in str(caught.value)
            assert model in str(caught.value)
            assert "another collection" in str(caught.value)
        with pytest.raises(ModelMismatch, match="'x' has 3 dimensions"):
            again.upsert([Record("x", np.ones(3, np.float32))])
    for bad_model, bad_dim in (("", DIM), (None, DIM), ("m", 0), ("m", True), ("m", 2.0)):
        with pytest.raises(UsageError):
            store.bind(bad_model, bad_dim)  # type: ignore[arg-type]


def test_a_collection_made_without_a_model_adopts_the_first(store: FaissStore) -> None:
    store.upsert([Record("a", vector(1))])
    assert (store.model, store.dim) == (None, DIM)
    with pytest.raises(ModelMismatch, match="unknown"):
        store.bind("model-a", DIM + 1)
    store.bind("model-a", DIM)
    assert store.model == "model-a"
    with pytest.raises(ModelMismatch):
        store.bind("model-b", DIM)


# ---- bad arguments, refused before anything is written

GOOD = vector(1)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (Record("bad"), "no embedding"),
        (Record("bad", vector(float("nan"))), "NaN"),
        (Record("bad", vector(float("inf"))), "NaN or infinite"),
        (Record("bad", np.full(DIM, 1e300)), "NaN or infinite"),
        (Record("bad", GOOD[None]), "shape"),
        (Record("bad", np.float32(1)), "shape"),
        (Record("bad", np.ones(DIM + 1, np.float32)), "9 dimensions"),
        (Record("bad", np.array(["x"] * DIM)), "numbers"),
        (Record("", GOOD), "an id is empty"),
        (Record("é" * 33, GOOD), "66 bytes"),
        (Record("bad\0", GOOD), "NUL"),
        (Record("bad\ud800", GOOD), "Unicode"),
        (Record(5, GOOD), "an id is a string"),  # type: ignore[arg-type]
        (Record("bad", GOOD, kind="video"), "kind"),
        (Record("bad", GOOD, namespace="n" * 65), "namespace"),
        (Record("bad", GOOD, source="é" * 2049), "source"),
        (Record("bad", GOOD, caption="c" * 8193), "caption"),
        (Record("bad", GOOD, width=-1), "width"),
        (Record("bad", GOOD, width=True), "width"),
        (Record("bad", GOOD, height=2**31), "height"),
        (Record("bad", GOOD, height=1.0), "height"),  # type: ignore[arg-type]
        (Record("bad", GOOD, metadata=[]), "dictionary"),  # type: ignore[arg-type]
        (Record("bad", GOOD, metadata={"a": [float("nan")]}), "nan"),
        (Record("bad", GOOD, metadata={"a": {"b": b"x"}}), "not a JSON value"),
        (Record("bad", GOOD, metadata={"a": {1: 2}}), "key"),
        (Record("bad", GOOD, metadata={"a": 2**63}), "64 bits"),
        (Record("bad", GOOD, metadata={"a": "\0"}), "NUL"),
        (Record("bad", GOOD, metadata={"a": "x" * 70000}), "bytes"),
        ("bad", "expected a Record"),
    ],
)
def test_a_bad_record_writes_nothing_of_its_batch(store: FaissStore, record: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        store.upsert([Record("good", GOOD), record])
    if isinstance(record, Record) and record.id == "bad":
        assert "'bad'" in str(caught.value)
    assert store.count() == 0
    assert store.dim is None


def test_metadata_nested_too_deep(store: FaissStore) -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(UsageError, match="deep"):
        store.upsert([Record("bad", GOOD, metadata=deep)])


def test_the_longest_values_are_kept(store: FaissStore) -> None:
    record = Record("é" * 32, GOOD, "text", "n" * 64, "s" * 4096, "é" * 4096, metadata={"a": "x" * 65000})
    store.upsert([record])
    assert store.get([record.id])[0].caption == record.caption


@pytest.mark.parametrize("bad", ["ids", [5], ["a\0"], [None]])
def test_ids_that_are_not_ids(store: FaissStore, bad: Any) -> None:
    with pytest.raises(UsageError):
        store.get(bad)
    with pytest.raises(UsageError):
        store.delete(bad)


# ---- processes

WRITE = """
import sys, numpy as np
from ldot_milvus.stores import Record, open_store
address, prefix, first, last, size = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
with open_store(address, "photos") as store:
    for start in range(first, last, size):
        store.upsert([Record(f"{prefix}{i:05d}", np.array([1, i, 0, 0, 0, 0, 0, 0], np.float32), metadata={"n": i})
                      for i in range(start, min(start + size, last))])
        print(min(start + size, last), flush=True)
"""


def test_what_one_process_changes_another_finds_at_its_next_search(store: FaissStore, folder: Path) -> None:
    store.upsert(rows(5))
    assert ids_of(store, vector(0, 1), 1) == ["r00004"]
    writer = run(WRITE, f"faiss:{folder}", "r", 3, 8, 2)
    assert writer.wait(60) == 0
    assert ids_of(store, vector(0, 1), 2) == ["r00007", "r00006"]
    code = "import sys; from ldot_milvus.stores import open_store\n"
    code += "print(open_store(sys.argv[1], 'photos').delete(['r00007', 'r00004']))"
    deleter = run(code, f"faiss:{folder}")
    assert deleter.communicate(timeout=60)[0].strip() == "2"
    assert ids_of(store, vector(0, 1), 2) == ["r00006", "r00005"]
    assert len(ids_of(store, vector(0, 1), 100)) == store.count() == 6


def start_together(address: str, prefix: str, barrier: Any) -> None:
    """Bind and write at the same moment as the other processes."""
    barrier.wait(30)
    with open_store(address, "photos") as store:
        store.bind("model-a", DIM)
        for i in range(20):
            # Ids of its own and ids that all processes write.
            store.upsert([Record(f"{prefix}{i:03d}", vector(1, i)), Record(f"shared{i:03d}", vector(2, i))])


def test_processes_that_start_at_once_all_bind_and_lose_nothing(store: FaissStore, folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [context.Process(target=start_together, args=(f"faiss:{folder}", p, barrier)) for p in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert store.model == "model-a"
    expected = {f"{prefix}{i:03d}" for prefix in ("a", "b", "c", "shared") for i in range(20)}
    assert {record.id for record in store.iterate()} == expected
    assert set(ids_of(store, vector(1), 1000)) == expected


def test_kill_9_in_the_middle_of_writing_keeps_all_that_was_acknowledged(folder: Path) -> None:
    address = f"faiss:{folder}"
    acknowledged = 0
    for _ in range(3):
        writer = run(WRITE, address, "r", acknowledged, 100_000, 50)
        assert writer.stdout is not None
        for _ in range(4):
            acknowledged = int(writer.stdout.readline())
        time.sleep(0.003)  # into the next write
        writer.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, writer.communicate(timeout=30)[0].split())])
        with FaissStore(folder, "photos") as store:
            present = [record.metadata["n"] for record in store.iterate()]
            assert present == list(range(len(present)))
            assert len(present) >= acknowledged
            assert len(present) % 50 == 0, "a batch is written as a whole or not at all"
            assert len(ids_of(store, vector(1), 16384)) == len(present)
            acknowledged = len(present)
    with sqlite3.connect(folder / "store.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM records").fetchone() == (
            connection.execute("SELECT count(*) FROM vectors").fetchone()
        )


def test_a_store_goes_on_in_both_processes_after_a_fork(folder: Path) -> None:
    code = """
import os, sys, time, numpy as np
from ldot_milvus.stores import Record, open_store
store = open_store(sys.argv[1], "photos")
queries = np.eye(8, dtype=np.float32).repeat(10, 0)
store.upsert([Record(f"p{i}", np.ones(8, np.float32)) for i in range(2000)])
store.search(queries, 3)  # starts OpenMP's threads, which the child does not have
child = os.fork()
if child == 0:
    assert store._database._connection is None  # an open file must not cross a fork
    store.upsert([Record("child", np.full(8, 9, np.float32))])
    os._exit(0 if store.search(queries, 1)[0][0].record.id == "child" else 1)
store.upsert([Record("parent", np.full(8, 5, np.float32))])
assert os.waitpid(child, 0)[1] == 0
print([match.record.id for match in store.search(queries, 2)[0]])
"""
    process = run(f"import os; os.environ['OMP_NUM_THREADS'] = '2'\n{code}", f"faiss:{folder}")
    try:
        output, _ = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        subprocess.run(["kill", "-9", str(process.pid)], check=False)
        raise
    assert output.strip() == "['child', 'parent']"


def test_threads_share_a_store(store: FaissStore) -> None:
    store.bind("model-a", DIM)
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for i in range(15):
                store.upsert([Record(f"{name}{i}", vector(1, i))])
                assert f"{name}{i}" in ids_of(store, vector(1), 1000)
                if i % 3 == 0:
                    assert store.delete([f"{name}{i}"]) == 1
                    assert f"{name}{i}" not in ids_of(store, vector(1), 1000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert store.count() == len(ids_of(store, vector(1), 1000)) == 40


def test_writing_and_reading_rows_do_not_load_faiss(folder: Path) -> None:
    code = """
import sys, numpy as np
from ldot_milvus.stores import Record, open_store
store = open_store(sys.argv[1], "photos")
store.bind("m", 8)
store.upsert([Record("a", np.ones(8, np.float32))])
store.get(["a"]), store.count({"width": 0}), store.update([Record("a")]), list(store.iterate()), store.delete(["a"])
print([name for name in ("faiss", "torch") if name in sys.modules])
"""
    assert run(code, f"faiss:{folder}").communicate(timeout=60)[0].strip() == "[]"


# ---- damaged files, permissions, locks and full disks


def everything_refuses(store: FaissStore, words: str) -> None:
    for call in (
        lambda: store.count(),
        lambda: store.get(["a"]),
        lambda: store.search(vector(1)[None], 1),
        lambda: store.upsert([Record("a", vector(1))]),
        lambda: store.bind("m", DIM),
        lambda: store.delete(["a"]),
    ):
        with pytest.raises(StoreError, match=words):
            call()


def test_a_file_that_is_not_a_database(store: FaissStore, folder: Path) -> None:
    folder.mkdir()
    (folder / "store.sqlite").write_bytes(b"certainly not SQLite" * 500)
    everything_refuses(store, "damaged.*ingest again")
    assert (folder / "store.sqlite").read_bytes().startswith(b"certainly"), "left as it was"


def test_a_file_overwritten_in_the_middle(folder: Path) -> None:
    with FaissStore(folder, "photos") as store:
        store.upsert(rows(500))
    file = folder / "store.sqlite"
    content = bytearray(file.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    file.write_bytes(content)
    with FaissStore(folder, "photos") as store, pytest.raises(StoreError, match="damaged"):
        store.count()


def test_a_damaged_row(folder: Path, store: FaissStore) -> None:
    store.upsert(rows(3))
    with sqlite3.connect(folder / "store.sqlite") as connection:
        connection.execute("UPDATE vectors SET embedding = x'00'")
    with pytest.raises(StoreError, match=r"damaged.*wrong length"):
        store.search(vector(1)[None], 1)
    with sqlite3.connect(folder / "store.sqlite") as connection:
        connection.execute("UPDATE records SET metadata = '{'")
    with pytest.raises(StoreError, match=r"damaged.*metadata"):
        store.get(["r00001"])


def test_a_newer_store_and_another_programs_database(store: FaissStore, folder: Path) -> None:
    store.bind("m", DIM)
    store.close()
    with sqlite3.connect(folder / "store.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    everything_refuses(store, "newer ldot-milvus.*upgrade")
    (folder / "store.sqlite").unlink()
    with sqlite3.connect(folder / "store.sqlite") as connection:
        connection.execute("CREATE TABLE theirs (x)")
    everything_refuses(store, "another program's database")


def test_an_empty_file_counts_as_no_store(store: FaissStore, folder: Path) -> None:
    folder.mkdir()
    (folder / "store.sqlite").touch()
    assert store.count() == 0
    assert (folder / "store.sqlite").stat().st_size == 0
    assert store.upsert(rows(2)) == 2


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with FaissStore(tmp_path / "file" / "data", "photos") as store:
        assert store.count() == 0
        with pytest.raises(StoreError, match="choose another folder"):
            store.upsert(rows(1))
    with FaissStore(tmp_path, "photos") as store:
        (tmp_path / "store.sqlite").mkdir()
        with pytest.raises(StoreError, match="choose another folder"):
            store.count()


def test_a_read_only_folder() -> None:
    # Not under tmp_path, which only its owner may enter: the child gives up root, which no permission stops.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with FaissStore(folder, "photos") as store:
            store.upsert(rows(3))
        (folder / "store.sqlite").chmod(0o444)
        folder.chmod(0o555)
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                with FaissStore(folder, "photos") as store:
                    calls = (partial(store.upsert, rows(1)), store.count, partial(store.bind, "m", DIM))
                for call in calls:
                    try:
                        os.write(tell, f"{call()}\n".encode())
                    except LdotError as error:
                        os.write(tell, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(tell)
        with os.fdopen(told) as pipe:
            lines = pipe.read().splitlines()
        folder.chmod(stat.S_IRWXU)
        assert len(lines) == 3
        for line in lines:
            assert line.startswith("StoreError: cannot open")
            assert "change the permissions" in line


def test_a_full_disk_writes_nothing(store: FaissStore) -> None:
    store.upsert(rows(10))
    with store._database.reading() as transaction:
        assert transaction is not None
        pages = transaction._sql.execute("PRAGMA page_count").fetchone()[0]
        transaction._sql.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match="no space left"):
        store.upsert(rows(2000, "new"))
    assert store.count() == 10
    assert len(ids_of(store, vector(1), 100)) == 10
    assert store.upsert(rows(1)) == 1


@pytest.mark.slow
def test_a_writer_that_never_ends(store: FaissStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    store.upsert(rows(2))
    other = sqlite3.connect(folder / "store.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"locked by another process.*try again"):
        store.upsert(rows(3))
    assert store.count() == 2  # readers do not wait for writers
    other.execute("ROLLBACK")
    other.close()
    assert store.upsert(rows(3)) == 3


def test_an_error_while_catching_up_does_not_leave_half_an_index(
    store: FaissStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upsert(rows(3))
    assert len(ids_of(store, vector(1), 10)) == 3
    store.upsert([Record("x", vector(1)), Record("y", vector(1), kind="text")])
    assert store._index is not None

    def fail(*_: object) -> None:
        raise MemoryError

    # The images are indexed, the texts are not.
    monkeypatch.setattr(store._index._indexes["text"], "add_with_ids", fail)
    with pytest.raises(MemoryError):
        store.search(vector(1)[None], 10)
    assert ids_of(store, vector(1), 10) == ["r00000", "r00001", "r00002", "x"]


# ---- addresses


def test_open_store_by_address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(f"faiss:{folder}", "photos") as store:
        assert (store.address, store.collection) == (f"faiss:{folder}", "photos")
        store.upsert(rows(1))
    assert (folder / "store.sqlite").exists()
    monkeypatch.setenv("LDOT_STORE", f"faiss:{folder}")
    monkeypatch.setenv("LDOT_COLLECTION", "photos")
    with open_store() as store:
        assert store.count() == 1
    with open_store(collection="others") as store:
        assert store.count() == 0


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "é", "a" * 256, "a\n", "../x", 5])
def test_bad_collection_names(name: Any) -> None:
    with pytest.raises(UsageError, match="collection name"):
        open_store("faiss:./data", name)
