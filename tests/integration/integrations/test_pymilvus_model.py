"""The functions for pymilvus.model, by the base classes of the package milvus-model and with pymilvus itself."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from milvus_model.base import BaseEmbeddingFunction, BaseRerankFunction, RerankResult

from ldot_milvus import open_store
from ldot_milvus.errors import UsageError
from ldot_milvus.integrations.pymilvus_model import LightningDOTEmbeddingFunction, LightningDOTRerankFunction
from tests.integration.integrations.album import Album
from tests.tolerance import assert_first

TEXTS = ["a red square", "blocks of colour"]


@pytest.fixture(scope="module")
def embeddings(tiny_model: str) -> LightningDOTEmbeddingFunction:
    return LightningDOTEmbeddingFunction(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def rerank(album: Album) -> LightningDOTRerankFunction:
    return LightningDOTRerankFunction(**album.parts)


def test_they_are_functions_of_pymilvus_model(
    embeddings: LightningDOTEmbeddingFunction, rerank: LightningDOTRerankFunction
) -> None:
    assert isinstance(embeddings, BaseEmbeddingFunction)
    assert isinstance(rerank, BaseRerankFunction)
    asked = list(inspect.signature(BaseRerankFunction.__call__).parameters)
    assert list(inspect.signature(LightningDOTRerankFunction.__call__).parameters) == asked


def test_vectors_are_those_of_the_model(embeddings: LightningDOTEmbeddingFunction, album: Album, tiny) -> None:
    expected = tiny.encode_texts(TEXTS)
    for encode in (embeddings, embeddings.encode_queries, embeddings.encode_documents):
        vectors = encode(TEXTS)
        assert isinstance(vectors, list)
        assert {(vector.shape, vector.dtype) for vector in vectors} == {((embeddings.dim,), np.dtype(np.float32))}
        np.testing.assert_allclose(np.stack(vectors), expected, atol=1e-5)
    photos = sorted(album.photos.iterdir())[:2]
    for images in (photos, [str(photo) for photo in photos], [photo.read_bytes() for photo in photos]):
        vectors = embeddings.encode_images(images)
        np.testing.assert_allclose(np.stack(vectors), tiny.encode_images(photos), atol=1e-5)
    assert embeddings.encode_queries([]) == embeddings.encode_images([]) == []
    with pytest.raises(UsageError):
        embeddings.encode_queries("a single string")


def test_models_are_shared_unless_a_device_is_given(tiny, tiny_model: str) -> None:
    assert LightningDOTEmbeddingFunction(tiny).embedder is tiny
    shared = LightningDOTEmbeddingFunction(tiny_model).embedder
    assert LightningDOTEmbeddingFunction(tiny_model).embedder is shared
    with pytest.raises(UsageError, match="device"):
        LightningDOTEmbeddingFunction(tiny_model, device="abacus")


def test_a_collection_of_pymilvus_is_filled_searched_and_reranked(
    embeddings: LightningDOTEmbeddingFunction, rerank: LightningDOTRerankFunction, album: Album, tmp_path: Path
) -> None:
    """The way of pymilvus' own guides: encode, insert, search, re-rank."""
    from pymilvus import MilvusClient

    photos = [str(photo) for photo in sorted(album.photos.iterdir())]
    client = MilvusClient(str(tmp_path / "photos.db"))
    try:
        client.create_collection("photos", dimension=embeddings.dim, metric_type="IP", consistency_level="Strong")
        vectors = embeddings.encode_images(photos)
        rows = [{"id": n, "vector": v, "source": p} for n, (v, p) in enumerate(zip(vectors, photos, strict=True))]
        client.insert("photos", rows)
        (found,) = client.search(
            "photos", embeddings.encode_queries(["a red square"]), limit=4, output_fields=["source"]
        )
    finally:
        client.close()
    documents = [hit["entity"]["source"] for hit in found]
    hits = {hit.source: hit for hit in album.search("a red square", k=6, rerank=6)}
    assert_first(documents, {source: hit.score for source, hit in hits.items()})
    results = rerank("a red square", documents, top_k=3)
    assert_first([result.text for result in results], {source: hits[source].rerank_score for source in documents})


@pytest.mark.parametrize("field", ["id", "source"])
def test_photos_are_ranked_as_by_the_retriever(rerank: LightningDOTRerankFunction, album: Album, field: str) -> None:
    scores = {getattr(hit, field): hit.rerank_score for hit in album.search("a red square", k=6, rerank=6)}
    documents = sorted(scores)
    results = rerank("a red square", documents, top_k=4)
    assert all(isinstance(result, RerankResult) for result in results)
    assert_first([result.text for result in results], scores)
    assert len(results) == 4
    for result in results:
        assert documents[result.index] == result.text
        assert result.score == pytest.approx(scores[result.text], abs=1e-4)
    assert len(rerank("a red square", documents)) == 5  # the default of pymilvus.model
    assert len(rerank("a red square", documents, None)) == 6


def test_each_document_has_its_result(rerank: LightningDOTRerankFunction, album: Album) -> None:
    hit = album.search("a red square", k=1)[0]
    results = rerank("a red square", [hit.id, hit.source, hit.id], 5)
    assert sorted(result.index for result in results) == [0, 1, 2]
    assert len({result.score for result in results}) == 1
    assert rerank("a red square", []) == []


def test_photos_without_region_data_are_left_out(album: Album, tiny, tmp_path: Path) -> None:
    from ldot_milvus.stores import Record

    with open_store(f"faiss:{tmp_path / 'bare'}", "photos") as store:
        store.bind(tiny.fingerprint, tiny.dim)
        store.upsert([Record("a", tiny.encode_texts(["a"])[0], source="/a.jpg")])
    parts = {**album.parts, "store": f"faiss:{tmp_path / 'bare'}"}
    assert LightningDOTRerankFunction(**parts)("a red square", ["a"]) == []


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        (["nowhere"], {}, r"document 0 \('nowhere'\) is no photo of collection 'photos'"),
        (["/" + "x" * 100 + ".jpg"], {}, "is no photo of collection"),
        ("a single string", {}, "not a single string"),
        ([], {"top_k": 0}, "top_k is 0"),
        ([], {"top_k": -1}, "top_k is -1"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    rerank: LightningDOTRerankFunction, documents: list[str], options: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        rerank("a red square", documents, **options)
    assert "\n" not in str(caught.value)
