"""The LangChain adapters, by LangChain's own tests and in a chain."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, RetrieversIntegrationTests

from ldot_milvus import open_store
from ldot_milvus.errors import UsageError
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.integrations.langchain import LightningDOTEmbeddings, LightningDOTRetriever
from ldot_milvus.models.calibration import Calibration, write_calibration
from ldot_milvus.models.registry import find_model
from ldot_milvus.sources import expand
from tests.conftest import PHOTOS, make_photo


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> str:
    folder = tmp_path_factory.mktemp("langchain")
    (folder / "photos").mkdir()
    for seed in range(6):
        (folder / "photos" / f"{seed}.jpg").write_bytes(make_photo(seed))
    address = f"faiss:{folder / 'store'}"
    with open_store(address, "photos") as store:
        Ingestor(store, tiny_model).ingest(list(expand([str(folder / "photos")])))
    return address


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _place(self, address: str, tiny_model: str) -> None:
        type(self).parameters = {"store": address, "collection": "photos", "model": tiny_model, "rerank": 4}

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return LightningDOTRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return type(self).parameters

    @property
    def retriever_query_example(self) -> str:
        return "a red square"


class TestEmbeddings(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _model(self, tiny_model: str) -> None:
        type(self).parameters = {"model": tiny_model}

    @property
    def embeddings_class(self) -> type[LightningDOTEmbeddings]:
        return LightningDOTEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return type(self).parameters


@pytest.fixture
def retriever(address: str, tiny_model: str) -> LightningDOTRetriever:
    return LightningDOTRetriever(store=address, collection="photos", model=tiny_model, k=3, rerank=5)


async def test_sync_and_async_give_the_same(retriever: LightningDOTRetriever) -> None:
    documents = retriever.invoke("a red square")
    assert await retriever.ainvoke("a red square") == documents
    assert len(documents) == 3
    first = documents[0]
    assert isinstance(first, Document)
    assert first.metadata.keys() >= {"source", "score", "rerank_score", "width", "height"}
    assert first.id
    assert (first.metadata["width"], first.metadata["height"]) == (80, 60)
    scores = [document.metadata["rerank_score"] for document in documents]
    assert scores == sorted(scores, reverse=True)


def test_a_call_may_say_otherwise(retriever: LightningDOTRetriever) -> None:
    assert len(retriever.invoke("a red square", k=1)) == 1
    plain = retriever.invoke("a red square", k=6, rerank=0)
    assert len(plain) == 6
    assert {document.metadata["rerank_score"] for document in plain} == {None}
    assert retriever.invoke("a red square", filter={"width": {"$gt": 1000}}) == []


def test_least_probability(retriever: LightningDOTRetriever, address: str, tmp_path: Path, tiny_model: str) -> None:
    assert {document.metadata["probability"] for document in retriever.invoke("a red square")} == {None}
    with pytest.raises(UsageError, match="no calibration"):
        retriever.invoke("a red square", min_probability=0.5)
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    own = find_model(str(folder)).own_reranker()
    scores = [document.metadata["rerank_score"] for document in retriever.invoke("a red square", k=5)]
    write_calibration(own.folder, Calibration(1.0, -(scores[1] + scores[2]) / 2), own.fitted_for, {})
    likely = LightningDOTRetriever(
        store=address, collection="photos", model=str(folder), k=5, rerank=5, min_probability=0.5
    )
    documents = likely.invoke("a red square")
    assert [document.metadata["rerank_score"] for document in documents] == pytest.approx(scores[:2])
    assert all(document.metadata["probability"] >= 0.5 for document in documents)
    assert likely.invoke("a red square", min_probability=1) == []
    assert len(likely.invoke("a red square", min_probability=None)) == 5


def test_lazy_name_is_the_same_class() -> None:
    import ldot_milvus

    assert ldot_milvus.LightningDOTRetriever is LightningDOTRetriever


def test_photos_are_embedded(address: str, tiny_model: str, tmp_path: Path) -> None:
    photo = tmp_path / "p.jpg"
    photo.write_bytes(make_photo(1))
    (vector,) = LightningDOTEmbeddings(tiny_model).embed_image([str(photo)])
    assert len(vector) == 16


def test_the_rag_example_answers_with_its_sources(run: Callable[..., Any]) -> None:
    """examples/rag.py on the sample photos with the packaged model, as the README shows it."""
    ingested = run("celery", "-A", "workers", "enqueue", str(PHOTOS), "--metadata", str(PHOTOS / "photos.jsonl"))
    assert ingested.returncode == 0, ingested.stderr
    done = run("python", str(PHOTOS.parent / "rag.py"), "Where is the dog tied up?")
    assert done.returncode == 0, done.stderr
    assert "000000377575.jpg" in done.stdout
    assert "Sources" in done.stdout
