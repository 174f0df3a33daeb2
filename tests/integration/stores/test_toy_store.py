"""A user's own store, registered by one line, works everywhere that the built-in ones do (docs/extend/store.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click import Command
from click.testing import CliRunner

from ldot_milvus import LightningDOTEmbedder, Retriever, open_store
from ldot_milvus.doctor import examine
from ldot_milvus.errors import UsageError
from ldot_milvus.evaluation.evaluate import evaluate
from ldot_milvus.evaluation.photos import Pair
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.ingest.reindex import rebuild_index
from ldot_milvus.settings import Settings
from ldot_milvus.sources import expand
from ldot_milvus.stores import register_store, registry
from ldot_milvus.stores.migration import checksum, migrate

Folder = Callable[[int], Path]
CAPTIONS = ["a dog", "two horses", "the red bus", "snow", "a boy", "birds", "one cat", "food on a table"]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", registry._REGISTERED.copy())
    register_store("tests.integration.stores.toy_store:ToyAddress")


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"toy:{tmp_path}/box"


def shell(command: Command, *arguments: str) -> str:
    """Run a command in this process, in which the toy store is registered."""
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_ingest_search_rerank_and_evaluate(
    address: str, tiny: LightningDOTEmbedder, tiny_model: str, photo_folder: Folder, tmp_path: Path
) -> None:
    photos = sorted(photo_folder(len(CAPTIONS)).iterdir())
    with open_store(address, "photos") as store:
        assert (type(store).__name__, store.address) == ("ToyStore", address)
        report = Ingestor(store, tiny_model).ingest(list(expand([str(path) for path in photos])))
        assert (report.added, report.failed) == (len(photos), [])
        assert list((tmp_path / "box" / "regions").rglob("*.safetensors"))
        retriever = Retriever(tiny, store)
        pairs = [Pair(str(path), path.read_bytes, [caption]) for path, caption in zip(photos, CAPTIONS, strict=True)]
        figures = evaluate(tiny, pairs, rerank=4)
        for rerank, recall in ((0, figures["text_to_image"]), (4, figures["reranked"]["text_to_image"])):
            answers = [retriever.search(pair.captions[0], k=5, rerank=rerank) for pair in pairs]
            assert all((hits[0].rerank_score is not None) == bool(rerank) for hits in answers)
            for k in (1, 5):
                near = [{hit.source for hit in hits[:k]} for hits in answers]
                right = sum(pair.name in sources for pair, sources in zip(pairs, near, strict=True))
                assert recall[f"R@{k}"] == pytest.approx(100 * right / len(pairs))


def test_the_commands(
    address: str, tiny_model: str, photo_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from celery.bin.celery import celery

    from ldot_milvus.cli import main

    monkeypatch.setenv("LDOT_STORE", address)
    monkeypatch.setenv("LDOT_MODEL", tiny_model)
    monkeypatch.setenv("LDOT_DEVICE", "cpu")
    assert "3 added" in shell(celery, "-A", "workers", "enqueue", str(photo_folder(3)))
    assert {path.name for path in (tmp_path / "box").iterdir()} >= {"store.sqlite", "regions", "ingestion.sqlite"}
    assert "0003" not in shell(main, "search", "a dog", "-k", "5", "--rerank", "3", "--json")
    findings = {finding.part: finding for finding in examine(Settings())}
    assert all(finding.ok for finding in findings.values())
    assert findings["store"].text == f"collection 'images' in {address}: 3 rows"
    assert findings["indexes"].text == "FLAT, HNSW"
    assert findings["region store"].text == f"{tmp_path}/box/regions"
    assert "3 rows" in shell(main, "migrate", address, f"faiss:{tmp_path}/copy")
    assert list((tmp_path / "copy" / "regions").rglob("*.safetensors"))


def test_moving_and_building_anew(address: str, tmp_path: Path, tiny: LightningDOTEmbedder) -> None:
    from ldot_milvus.stores import Record

    vectors = tiny.encode_texts(CAPTIONS)
    records = [Record(f"t{n}", vector, kind="text") for n, vector in enumerate(vectors)]
    with open_store(address, "texts") as store, open_store(f"faiss:{tmp_path}/other", "texts") as other:
        store.bind(tiny.fingerprint, tiny.dim)
        assert store.upsert(records) == rebuild_index(store) == len(records)
        assert migrate(store, other).copied == len(records)
        assert [*map(checksum, store.iterate(with_embeddings=True))] == [*map(checksum, records)]
        assert store.delete(filter={"kind": "text"}) == len(records)


def test_an_index_that_it_cannot_have(address: str) -> None:
    with pytest.raises(UsageError, match="has no index IVF_FLAT: set LDOT_INDEX to auto, FLAT, HNSW"):
        open_store(address, "photos", "IVF_FLAT:nlist=4")


def test_messages_list_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"toy:PATH \(a toy\), faiss:PATH \(a local folder\), PATH.db .* or http://"):
        open_store(f"tyo:{tmp_path}", "photos")
