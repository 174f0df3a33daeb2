"""Upgrade of a collection of version 1 in place: interrupted anywhere, it loses nothing and does not open as whole."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ldot_milvus import open_store
from ldot_milvus.errors import StoreError
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.search.retriever import Retriever
from ldot_milvus.sources import Source
from ldot_milvus.stores import Record, VectorStore
from ldot_milvus.stores.base import VERSION
from ldot_milvus.stores.identity import CONTENT_ID, content_of, row_id
from ldot_milvus.stores.migration import migrate
from ldot_milvus.stores.regions import RegionStore
from ldot_milvus.stores.upgrade import outdated, require_current, upgrade
from tests.conftest import Run, make_photo
from tests.faulty import QuickModel

DIM = 8
KEPT = {"features": np.ones((1, 2), np.float16)}


def content(number: int) -> str:
    return f"{number:064x}"


def fill_version_1(
    store: VectorStore, regions: RegionStore, count: int = 5, model: str = "m" * 32
) -> dict[tuple[str, str], str]:
    """Write rows as 0.1.0 did; return the id that each photo and text has in version 2, by namespace and content."""
    rng = np.random.default_rng(0)
    rows = [Record(content(n), namespace=("default", "ann", "bob")[n % 3], caption=f"{n}") for n in range(3 * count)]
    rows += [
        Record("mine", namespace="ann", metadata={CONTENT_ID: content(10**6), "a": 1}),
        Record("theirs", namespace="bob"),
    ]
    rows += [Record(content(10**7), namespace="ann", kind="text", caption="a text")]
    dim = store.dim or DIM
    store.bind(model, dim)
    vectors = rng.standard_normal((len(rows), dim)).astype(np.float32)
    for start in range(0, len(rows), 500):
        store.upsert([
            Record(**{**vars(row), "embedding": vector, "width": 3})
            for row, vector in zip(rows[start : start + 500], vectors[start : start + 500], strict=True)
        ])  # fmt: skip
    regions.put({row.id: KEPT for row in rows if row.kind == "image"})
    store.set_properties({VERSION: "1"})
    return {
        (row.namespace, content_of(row)): row.id if row.id in ("mine", "theirs") else row_id(row.namespace, row.id)
        for row in rows
    }


@pytest.fixture(params=["faiss:{}/store", "{}/milvus.db"], ids=["local", "milvus_lite"])
def store(request: pytest.FixtureRequest, tmp_path: Path):
    with open_store(request.param.format(tmp_path), "photos") as opened:
        yield opened


@pytest.fixture
def regions(tmp_path: Path) -> RegionStore:
    return RegionStore(str(tmp_path / "regions"), "r" * 32)


def ids(store: VectorStore) -> dict[tuple[str, str], str]:
    return {(row.namespace, content_of(row)): row.id for row in store.iterate()}


def test_rows_of_other_namespaces_get_ids_of_their_own(store: VectorStore, regions: RegionStore) -> None:
    expected = fill_version_1(store, regions)
    before = {(row.namespace, content_of(row)): row for row in store.iterate(with_embeddings=True)}
    done = upgrade(store, [regions])
    assert (done.rows, done.changed) == (18, 11)
    assert ids(store) == expected
    for row in store.iterate(with_embeddings=True):
        old = before[row.namespace, content_of(row)]
        np.testing.assert_array_equal(row.embedding, old.embedding)
        assert (row.caption, row.kind, row.source, row.width) == (old.caption, old.kind, old.source, old.width)
    photos = [row.id for row in store.iterate({"kind": "image"})]
    assert regions.has(photos) == set(photos)
    assert regions.has([content(1), content(2)]) == set(), "the old ones are gone"
    assert (store.schema_version, outdated(store)) == (2, None)
    assert upgrade(store, [regions]).changed == 0


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("faiss:{}/store", id="local"),
        pytest.param("{}/milvus.db", id="milvus_lite", marks=pytest.mark.slow),  # 15 seconds
    ],
)
def test_interrupted_before_or_after_any_write(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collection keeps every photo with its region data and does not open as whole; another call completes it."""
    monkeypatch.setattr("ldot_milvus.stores.upgrade.BATCH", 3)

    class Crash(BaseException):
        pass

    for crash_at in range(1, 100):
        with monkeypatch.context() as patched, open_store(address.format(tmp_path), f"c{crash_at}") as store:
            regions = RegionStore(str(tmp_path / f"regions{crash_at}"), "r" * 32)
            expected = fill_version_1(store, regions, 2)
            left = [crash_at]

            def crashing(*args, written, left=left, **kwargs):
                left[0] -= 1
                if left[0] == 0:
                    raise Crash
                result = written(*args, **kwargs)
                left[0] -= 1
                if left[0] == 0:
                    raise Crash
                return result

            for owner, names in ((store, ("upsert", "delete", "set_properties")), (regions, ("put", "delete"))):
                for name in names:
                    patched.setattr(owner, name, partial(crashing, written=getattr(owner, name)))
            with suppress(Crash):
                upgrade(store, [regions])
            finished, left[0] = left[0] > 0, 0
            rows = list(store.iterate())
            photos = {row.id for row in rows if row.kind == "image"}
            assert {(row.namespace, content_of(row)) for row in rows} == expected.keys()
            assert regions.has(list(photos)) == photos
            if store.schema_version == 1:
                with pytest.raises(StoreError, match="schema version 1"):
                    require_current(store)
                upgrade(store, [regions])
            assert ids(store) == expected
            if finished:
                break
    assert finished
    assert crash_at > 15


def test_an_earlier_version_is_read_and_said_so_and_not_written(
    store: VectorStore, regions: RegionStore, tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = fill_version_1(store, regions)
    (tmp_path / "a.jpg").write_bytes(make_photo(1))

    class Model(QuickModel):
        name, dim, fingerprint, former_fingerprints, reranker = "m", DIM, "m" * 32, (), None

        def encode_texts(self, texts):
            return np.ones((len(texts), DIM), np.float32)

    with caplog.at_level(logging.WARNING, "ldot_milvus"):
        hits = Retriever(Model(), store).search("x", k=100)  # type: ignore[arg-type]
    assert len(hits) == len(expected) - 1
    (said,) = (record.message for record in caplog.records if record.name.startswith("ldot_milvus"))
    assert "schema version 1" in said
    assert "ldot migrate" in said
    with pytest.raises(StoreError, match=r"schema version 1.*ldot migrate"):
        require_current(store)
    upgrade(store, [regions])
    require_current(store)


def test_without_tenants_there_is_nothing_to_upgrade(store: VectorStore) -> None:
    store.bind("m" * 32, DIM)
    store.upsert([Record(content(1), np.ones(DIM, np.float32))])
    store.set_properties({VERSION: "1"})
    require_current(store)
    assert store.schema_version == 2


def test_a_copy_has_the_version_of_its_source(store: VectorStore, regions: RegionStore, tmp_path: Path) -> None:
    expected = fill_version_1(store, regions)
    with open_store(f"faiss:{tmp_path}/copy", "photos") as copy:
        migrate(store, copy)
        assert copy.schema_version == 1
        upgrade(store, [regions])
        with pytest.raises(StoreError, match=r"different schema versions.*ldot migrate"):
            migrate(store, copy)
        upgrade(copy)
        migrate(store, copy)
        assert ids(copy) == expected


def test_a_worker_waits_for_the_upgrade(store: VectorStore, tiny_model: str, tmp_path: Path) -> None:
    """A StoreError is retried, so that the chunk is not lost."""
    files = Ingestor(store, tiny_model)._files
    store.upsert([Record(content(1), np.ones(files.dim, np.float32), namespace="ann")])
    store.set_properties({VERSION: "1"})
    with pytest.raises(StoreError, match="ldot migrate"):
        Ingestor(store, tiny_model)
    upgrade(store)
    (tmp_path / "a.jpg").write_bytes(make_photo(1))
    assert Ingestor(store, tiny_model).ingest([Source(str(tmp_path / "a.jpg"))]).added == 1


def test_the_command(run: Run, tmp_path: Path) -> None:
    regions = RegionStore(str(tmp_path / "store" / "regions"), "r" * 32)
    with open_store(f"faiss:{tmp_path}/store", "photos") as store:
        expected = fill_version_1(store, regions)
    done = run("ldot", "migrate", f"faiss:{tmp_path}/store", "--collection", "photos")
    assert done.returncode == 0, done.stderr
    assert "has schema version 2: 11 of 18 rows got another id" in done.stdout
    with open_store(f"faiss:{tmp_path}/store", "photos") as store:
        assert ids(store) == expected
    again = run("ldot", "migrate", f"faiss:{tmp_path}/store", "--collection", "photos")
    assert "0 of 18 rows" in again.stdout
    missing = run("ldot", "migrate", f"faiss:{tmp_path}/store", "--collection", "nothing")
    assert missing.returncode == 2


def test_a_file_of_version_1_stays_one_until_it_is_written_to(tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path}", "photos") as store:
        store.bind("m" * 32, DIM)
    file = tmp_path / "store.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TABLE properties")
        connection.execute("PRAGMA user_version = 1")
    with open_store(f"faiss:{tmp_path}", "photos") as store:
        assert (store.schema_version, store.properties) == (1, {VERSION: "1"})
        with sqlite3.connect(file) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        store.upsert([Record("a", np.ones(DIM, np.float32))])
        assert store.schema_version == 1, "its rows are of version 1"
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,), "0.1.0 refuses the file from now on"
