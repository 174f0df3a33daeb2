"""Migration between stores, and rebuilding of collections."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ldot_milvus.errors import ModelMismatch, RegionStoreNotFound, StoreError, UsageError
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.ingest.reindex import rebuild_index, reembed
from ldot_milvus.models.registry import find_model
from ldot_milvus.sources import expand
from ldot_milvus.stores import Record, VectorStore, open_store
from ldot_milvus.stores.base import Array
from ldot_milvus.stores.migration import checksum, migrate
from ldot_milvus.stores.region_place import RegionPlace, RegionRecord
from ldot_milvus.stores.regions import RegionStore

pytestmark = [pytest.mark.xdist_group("milvus"), pytest.mark.servers]

DIM = 8


def fill(store: VectorStore, count: int) -> None:
    rng = np.random.default_rng(0)
    store.bind("model-a", DIM)
    vectors = rng.normal(size=(count, DIM)).astype(np.float32)
    metadata = [{"n": n, "é": None} for n in range(count)]
    store.upsert([Record(f"{n:05d}", vectors[n], namespace=f"t{n % 3}", metadata=metadata[n]) for n in range(count)])


def everything(store: VectorStore) -> list[str]:
    return [checksum(row) for row in store.iterate(with_embeddings=True)]


def regions(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {"features": rng.random((3, 4), np.float32), "boxes": rng.random((3, 7), np.float32)}


@pytest.fixture(params=["lite", "server"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "x.db") if request.param == "lite" else str(request.getfixturevalue("milvus_url"))


def test_there_and_back_again(address: str, tmp_path: Path) -> None:
    name = f"m{secrets.token_hex(6)}"
    here, there = RegionStore(str(tmp_path / "a"), "model-a"), RegionStore(str(tmp_path / "b"), "model-a")
    with (
        open_store(f"faiss:{tmp_path}/one", name) as one,
        open_store(address, name) as server,
        open_store(f"faiss:{tmp_path}/two", name) as two,
    ):
        fill(one, 700)
        here.put({f"{n:05d}": regions(n) for n in range(700)})
        # An interrupted migration: some rows and regions already exist in the target, and one row differs.
        server.bind("model-a", DIM)
        server.upsert(list(one.iterate(with_embeddings=True))[:300])
        server.upsert([Record("00007", np.zeros(DIM, np.float32), caption="stale")])
        there.put({f"{n:05d}": regions(n) for n in range(100)})
        done = migrate(one, server, [(here, there)])
        assert (done.rows, done.copied, done.regions, done.checked) == (700, 401, 600, 700)
        again = migrate(one, server, [(here, there)])
        assert (again.copied, again.regions) == (0, 0)
        migrate(server, two)
        assert everything(two) == everything(server) == everything(one)
        assert two.model == "model-a"
        np.testing.assert_array_equal(there.get(["00650"])["00650"]["boxes"], regions(650)["boxes"])
        with open_store(f"faiss:{tmp_path}/three", name) as other:
            other.bind("model-b", DIM)
            with pytest.raises(ModelMismatch):
                migrate(server, other)


def test_the_command(run, tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path}/one", "photos") as store:
        fill(store, 20)
    RegionStore(str(tmp_path / "one" / "regions"), "model-a").put({"00003": regions(3)})
    arguments = ["ldot", "migrate", "faiss:./one", "./x.db", "--collection", "photos"]
    first, second = run(*arguments), run(*arguments)
    assert "20 rows of faiss:./one: 20 copied" in first.stdout, first
    assert "region data of 1 photos copied; checksums of 20 rows compared" in first.stdout
    assert "20 rows of faiss:./one: 0 copied, 20 already in" in second.stdout
    assert list((tmp_path / "x.db-regions").rglob("00003*"))
    missing = run("ldot", "migrate", "faiss:./nothing", "./y.db")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    same = run("ldot", "migrate", "./x.db", f"{tmp_path}/x.db")
    assert same.returncode == 2
    assert "name two stores" in same.stderr


def test_the_command_records_where_the_region_data_is(run, address: str, tmp_path: Path) -> None:
    """Beside Milvus Lite it needs no record."""
    name = f"m{secrets.token_hex(6)}"
    with open_store(f"faiss:{tmp_path}/one", name) as store:
        fill(store, 20)
    RegionStore(str(tmp_path / "one" / "regions"), "model-a").put({"00003": regions(3)})
    done = run("ldot", "migrate", "faiss:./one", address, "--collection", name)
    assert "region data of 1 photos copied" in done.stdout, done
    (tmp_path / "elsewhere").mkdir()
    back = run("ldot", "migrate", address, "faiss:../two", "--collection", name, cwd=tmp_path / "elsewhere")
    assert "region data of 1 photos copied" in back.stdout, back
    with open_store(address, name) as store:
        record = RegionRecord.of(store)
        assert (record and record.address) == (None if address.endswith(".db") else f"{tmp_path}/ldot-data/regions")
        rebuild_index(store)
        assert RegionRecord.of(store) == record


@pytest.mark.parametrize(
    "index",
    [
        "FLAT",
        *(pytest.param(index, marks=pytest.mark.slow) for index in ("IVF_FLAT:nlist=4,nprobe=4", "HNSW:M=8,ef=64")),
    ],
)
def test_a_new_index_takes_the_place_of_the_old_one(address: str, index: str) -> None:
    name = f"m{secrets.token_hex(6)}"
    query = np.ones((1, DIM), np.float32)
    with open_store(address, name) as store, open_store(address, name, index) as other:
        fill(store, 300)
        before = [match.record.id for match in store.search(query, 10)[0]]
        assert rebuild_index(other) == 300
        for one in (store, other):  # an application that had it open finds the new one under the same name
            assert [match.record.id for match in one.search(query, 10)[0]] == before
            assert one.count() == 300
            assert one.model == "model-a"
        assert rebuild_index(other) == 300  # and once more
        assert everything(other) == everything(store)


def test_a_new_model_reads_the_photos_again(
    tiny_model: str, other_model: str, photo_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = photo_folder(5)
    with open_store(f"faiss:{tmp_path}/data", "photos") as store:
        Ingestor(store, tiny_model).ingest(list(expand([str(folder)])))
        old = {row.id: row for row in store.iterate(with_embeddings=True)}
        report = reembed(store, other_model)
        assert (report.added, report.failed) == (5, [])
        new = {row.id: row for row in store.iterate(with_embeddings=True)}
        assert new.keys() == old.keys()
        assert store.model == find_model(other_model).fingerprint
        for id, row in new.items():
            assert row.source == old[id].source
            assert not np.allclose(row.embedding, old[id].embedding)
        assert RegionRecord.of(store) is None
        assert reembed(store, other_model, region_store=f"{tmp_path}/new").added == 5
        assert RegionPlace(store).find() == f"{tmp_path}/new"
        shutil.rmtree(tmp_path / "new")  # lost: the photos are read again, into a new place
        with pytest.raises(RegionStoreNotFound):
            reembed(store, other_model)
        assert reembed(store, other_model, region_store=f"{tmp_path}/newer").added == 5
        record = RegionRecord.of(store)
        assert reembed(store, other_model, reranker="none").added == 5
        assert RegionRecord.of(store) == record is not None
        next(folder.iterdir()).unlink()
        with pytest.raises(StoreError, match=r"1 of 5 photos could not be read again.*is unchanged"):
            reembed(store, tiny_model)
        assert store.count() == 5


def test_reindexing_what_is_not_there(tmp_path: Path) -> None:
    with (
        open_store(f"faiss:{tmp_path}", "absent") as store,
        pytest.raises(StoreError, match="no collection 'absent'"),
    ):
        rebuild_index(store)
    with pytest.raises(UsageError, match="unknown index"):
        open_store(f"faiss:{tmp_path}", "photos", "DISKANN")
