"""What commit b54e68f made (tests/golden/store_v1.tar.gz) is opened, searched, re-ranked and added to as it is."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldot_milvus import LightningDOTEmbedder, Retriever, open_store
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.models.registry import find_model
from ldot_milvus.regions import open_regions
from ldot_milvus.sources import expand
from tests.conftest import ROOT, make_photo

CASES = [(store, model) for store in ("faiss:local", "lite.db") for model in ("embedded", "features")]


@pytest.fixture
def former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The folder's content as the current folder, and what that commit found in it."""
    with tarfile.open(ROOT / "tests" / "golden" / "store_v1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path / "store_v1")
    expected: dict[str, Any] = json.loads(Path("expected.json").read_text())
    return expected


@pytest.mark.parametrize(("address", "model"), CASES)
def test_a_collection_is_searched_and_added_to(
    address: str, model: str, former: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with open_store(address, model) as store:
        assert store.model == former[f"fingerprint {model}"]
        retriever = Retriever(LightningDOTEmbedder(model, device="cpu"), store)
        with caplog.at_level(logging.WARNING, "ldot_milvus"):
            hits = retriever.search("a cat and a dog", k=6, rerank=4)
        assert "region data" not in caplog.text, "no photo lacks any"
        assert "schema version 1" in caplog.text
        found = {hit.id: hit for hit in hits}
        assert len(found) == 6
        for before in former[f"{address} {model}"]:
            assert found[before["id"]].score == pytest.approx(before["score"], abs=1e-2)
            assert found[before["id"]].rerank_score == pytest.approx(before["rerank_score"], abs=2e-2)

        Path("photos/new.jpg").write_bytes(make_photo(77))
        ingestor = Ingestor(store, model, device="cpu")
        report = ingestor.ingest(list(expand(["photos"])))
        assert (report.added, report.failed) == (1, [])
        assert report.updated == 6, "their sources were relative; nothing was encoded"
        assert {row.source for row in store.iterate()} == {str(path.absolute()) for path in Path("photos").iterdir()}
        assert store.model == former[f"fingerprint {model}"], "the collection keeps its name for the model"
        reranked = Retriever(retriever.embedder, store).search("a cat and a dog", k=7, rerank=7)
        assert len([hit for hit in reranked if hit.rerank_score is not None]) == 7


def test_another_model_is_refused_as_before(former: dict[str, Any]) -> None:
    assert find_model("features").fingerprint == former["fingerprint features"]
    assert find_model("embedded").former_fingerprints == (former["fingerprint embedded"],)
    assert former["fingerprint embedded"] not in find_model("features").former_fingerprints


def test_a_missing_reranker_folder_needs_no_new_collection(former: dict[str, Any]) -> None:
    """Another re-ranker, or none, over the same dual encoder: the same collection."""
    with open_store("faiss:local", "features") as store:
        embedder = LightningDOTEmbedder("features", device="cpu")
        other = Retriever(embedder, store, reranker="embedded")
        assert {hit.rerank_score for hit in Retriever(embedder, store, reranker="none").search("a", k=6)} == {None}
        # Its region data is its own, so the photos are read again for it, and the vectors stay where they are.
        ingestor = Ingestor(store, "features", reranker="embedded", device="cpu")
        assert ingestor.ingest(list(expand(["photos"]))).added == 6
        assert None not in {hit.rerank_score for hit in other.search("a", k=6, rerank=6)}
        assert store.count() == 6
        shutil.rmtree("features/reranker")
        assert Ingestor(store, "features", device="cpu").ingest(list(expand(["photos"]))).unchanged == 6


def test_a_folder_that_training_wrote(former: dict[str, Any]) -> None:
    embedder = LightningDOTEmbedder("trained", device="cpu")
    file, before = open_regions("regions"), former["trained"]
    features = embedder.image_features([file.read(name) for name in before["names"]])
    np.testing.assert_allclose(embedder.encode_features(features), before["images"], atol=1e-4)
    np.testing.assert_allclose(embedder.encode_texts(["a b c", "d e f"]), before["texts"], atol=1e-4)
    assert embedder.reranker is not None
    assert embedder.reranker.dot_weight == before["dot_weight"]
    scores = embedder.reranker.score(["a b c"] * 3, embedder.reranker.keep(features))
    np.testing.assert_allclose(scores, before["rerank"], atol=2e-2)  # kept in half precision
    assert find_model("trained").fingerprint == former["fingerprint trained"]


def test_a_local_store_gets_the_index_over_sources_with_its_first_write(former: dict[str, Any]) -> None:
    def indexes() -> set[str]:
        with sqlite3.connect("local/store.sqlite") as connection:
            return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}

    with open_store("faiss:local", "embedded") as store:
        assert store.count() == 6
        assert "records_by_source" not in indexes()
        store.update(list(store.iterate())[:1])
        assert "records_by_source" in indexes()
