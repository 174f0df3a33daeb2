"""``ldot reindex --reranker``: region data of another re-ranker, beside the vectors and region data that are there."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ldot_milvus import Retriever, open_store
from ldot_milvus.cli import main
from ldot_milvus.errors import CollectionNotFound, ModelMismatch, UsageError
from ldot_milvus.images import content_id
from ldot_milvus.ingest import new_reranker
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.ingest.new_reranker import add_region_data
from ldot_milvus.models.loading import load_embedder
from ldot_milvus.sources import Source, expand
from ldot_milvus.stores import Record, VectorStore
from ldot_milvus.stores.regions import RegionStore
from tests import families
from tests.conftest import make_photo


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(families.blip(tmp_path_factory.mktemp("families") / "blip"))


@pytest.fixture
def photos(photo_folder: Callable[[int], Path]) -> Path:
    return photo_folder(7)


@pytest.fixture
def store(tiny_model: str, photos: Path, tmp_path: Path) -> Iterator[VectorStore]:
    with open_store(f"faiss:{tmp_path / 'data'}", "photos") as store:
        Ingestor(store, tiny_model).ingest([*expand([str(photos)]), Source(path="t", caption="a text", kind="text")])
        yield store


def state(store: VectorStore) -> tuple[list[tuple], dict[str, bytes]]:
    """Everything that must not change: rows with their vectors' bits, and the files of the old re-ranker."""
    rows = [(row.id, row.source, row.metadata, row.embedding.tobytes()) for row in store.iterate(with_embeddings=True)]
    regions = Path(store.address.removeprefix("faiss:")) / "regions"
    (old,) = [folder for folder in regions.iterdir() if folder.is_dir()]
    return rows, {str(path): path.read_bytes() for path in sorted(old.rglob("*.safetensors"))}


def files_of(before: dict[str, bytes]) -> dict[str, bytes]:
    return {path: Path(path).read_bytes() for path in before}


def command(store: VectorStore, model: str, *arguments: str) -> Result:
    env = {"LDOT_STORE": store.address, "LDOT_COLLECTION": store.collection, "LDOT_MODEL": model, "LDOT_DEVICE": "cpu"}
    return CliRunner().invoke(main, ["reindex", *arguments], env=env)


def test_interrupted_and_continued(
    store: VectorStore, tiny, tiny_model: str, blip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, files = state(store)
    before = Retriever(tiny, store).search("Two dogs", k=7)
    monkeypatch.setattr(new_reranker, "PART_SIZE", 2)
    put, calls = RegionStore.put, []

    def interrupted(self: RegionStore, items) -> None:
        calls.append(items)
        if len(calls) == 3:
            raise KeyboardInterrupt
        put(self, items)

    monkeypatch.setattr(RegionStore, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add_region_data(store, tiny_model, blip)
    monkeypatch.setattr(RegionStore, "put", put)
    assert Retriever(tiny, store).search("Two dogs", k=7) == before  # the old re-ranker works until then

    report = add_region_data(store, tiny_model, blip)
    assert (report.photos, report.present, report.made, report.failed) == (7, 7, 3, [])
    assert report.complete
    assert Path(report.former or "") == Path(next(iter(files))).parents[1]
    assert add_region_data(store, tiny_model, blip).made == 0

    assert [(row.id, row.source, row.metadata, row.embedding.tobytes()) for row in
            store.iterate(with_embeddings=True)] == rows  # fmt: skip
    assert files_of(files) == files
    assert Retriever(tiny, store).search("Two dogs", k=7) == before
    hits = Retriever(tiny, store, reranker=blip).search("Two dogs", k=7)
    alone = load_embedder(blip, device="cpu")
    for hit in hits:
        kept = alone.reranker.keep(alone.image_features([hit.source]))
        expected = alone.reranker.score(["Two dogs"], kept)[0] + hit.score
        assert hit.rerank_score == pytest.approx(float(expected), abs=1e-3)


def test_the_region_data_are_those_of_ingestion(store: VectorStore, tiny, tiny_model: str, photos: Path) -> None:
    """With one pass for both stages; also where the region data are lost."""
    retriever = Retriever(tiny, store)
    ids = [row.id for row in store.iterate({"kind": "image"})]
    before = retriever.region_store.get(ids)
    retriever.region_store.delete(ids)
    assert add_region_data(store, tiny_model, tiny_model, device="cpu").made == 7
    for id, kept in retriever.region_store.get(ids).items():
        for name, array in kept.items():
            np.testing.assert_allclose(array.astype(np.float32), before[id][name].astype(np.float32), atol=1e-2)


def test_a_photo_that_cannot_be_read(store: VectorStore, tiny_model: str, blip: str, photos: Path) -> None:
    (photos / "0001.jpg").unlink()
    (photos / "0002.jpg").write_bytes(make_photo(99))
    damaged = Record(content_id(b"no photo"), np.ones(store.dim, np.float32), source=str(photos / "damaged.jpg"))
    (photos / "damaged.jpg").write_bytes(b"no photo")
    store.upsert([damaged])
    done = command(store, tiny_model, "--reranker", blip)
    assert done.exit_code == 1, done.output
    assert f"5 of 8 photos have the region data of {blip} (5 made now): searches keep the old re-ranker" in done.stdout
    assert "LDOT_RERANKER" not in done.output
    failed = sorted(line for line in done.stderr.splitlines() if "failed:" in line)
    assert len(failed) == 3
    assert "0001.jpg: no such file" in failed[0].lower()
    assert "0002.jpg: the source holds another photo now" in failed[1]
    assert "damaged.jpg: not an image" in failed[2]

    (photos / "0001.jpg").write_bytes(make_photo(1))
    (photos / "0002.jpg").write_bytes(make_photo(2))
    store.delete([damaged.id])
    done = command(store, tiny_model, "--reranker", blip)
    assert done.exit_code == 0, done.output
    first, second = done.stdout.splitlines()
    assert first.endswith(f"7 of 7 photos have the region data of {blip} (2 made now): set LDOT_RERANKER={blip}")
    assert "delete this folder" in second
    shutil.rmtree(second.partition("stays in ")[2].partition(":")[0])
    with open_store(store.address, "photos") as again:
        hits = Retriever(load_embedder(tiny_model, device="cpu"), again, reranker=blip).search("Two dogs", k=7)
    assert None not in {hit.rerank_score for hit in hits}


def test_a_copy_is_read_where_the_source_is_gone(tiny_model: str, blip: str, photos: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    shutil.copytree(photos, copies)
    with open_store(f"faiss:{tmp_path / 'data'}", "copies") as store:
        Ingestor(store, tiny_model).ingest(list(expand([str(photos), str(copies)])))
        for path in photos.iterdir():
            path.unlink()
        report = add_region_data(store, tiny_model, blip)
        assert (report.made, report.failed) == (7, [])


@pytest.mark.parametrize("server", [False, pytest.param(True, marks=pytest.mark.servers)], ids=["local", "server"])
def test_a_collection_without_a_reranker_gets_one(
    server: bool,
    blip: str,
    photos: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    siglip = str(families.siglip(tmp_path / "siglip"))
    address = request.getfixturevalue("milvus_url") if server else f"faiss:{tmp_path / 'data'}"
    monkeypatch.setenv("LDOT_REGION_STORE", str(tmp_path / "regions"))
    with open_store(address, f"photos_{secrets.token_hex(4)}") as store:
        Ingestor(store, siglip, device="cpu").ingest(list(expand([str(photos)])))
        vectors = {row.id: row.embedding.tobytes() for row in store.iterate(with_embeddings=True)}
        done = command(store, siglip, "--reranker", blip)
        assert done.exit_code == 0, done.output
        assert f"7 of 7 photos have the region data of {blip} (7 made now)" in done.stdout
        assert {row.id: row.embedding.tobytes() for row in store.iterate(with_embeddings=True)} == vectors
        for path in photos.iterdir():
            path.unlink()
        hits = Retriever(load_embedder(siglip, device="cpu"), store, reranker=blip).search("Two dogs", k=7)
        assert len(hits) == 7
        assert None not in {hit.rerank_score for hit in hits}


def test_mistakes_are_one_line(store: VectorStore, tiny_model: str, other_model: str, blip: str) -> None:
    rows, files = state(store)
    with pytest.raises(UsageError, match="LDOT_RERANKER=none"):
        add_region_data(store, tiny_model, "none")
    with pytest.raises(ModelMismatch):
        add_region_data(store, other_model, blip)
    with (
        open_store(store.address, "absent") as absent,
        pytest.raises(CollectionNotFound, match="no collection 'absent'"),
    ):
        add_region_data(absent, tiny_model, blip)
    for arguments, word in (
        (["--reranker", "no-such"], "no-such"),
        (["--reranker", blip, "--index", "FLAT"], "once for each"),
    ):
        done = command(store, tiny_model, *arguments)
        assert done.exit_code == 2
        (line,) = done.stderr.strip().splitlines()
        assert word in line
    assert state(store) == (rows, files)
