"""The LlamaIndex retriever, in LlamaIndex's own objects."""

from __future__ import annotations

import asyncio
import copy
import io
import pickle
import tarfile
from pathlib import Path

import pytest
from llama_index.core import Settings
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle
from PIL import Image

from ldot_milvus import open_store
from ldot_milvus.errors import FilterError, ModelMismatch, UsageError
from ldot_milvus.integrations.llama_index import LightningDOTRetriever
from ldot_milvus.stores import Record
from tests.integration.integrations.album import Album


@pytest.fixture(scope="module")
def retriever(album: Album) -> LightningDOTRetriever:
    return LightningDOTRetriever(**album.parts, k=3, rerank=5)


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


def test_nodes_are_the_hits_of_the_library(retriever: LightningDOTRetriever, album: Album) -> None:
    assert isinstance(retriever, BaseRetriever)
    nodes = retriever.retrieve("a red square")
    hits = album.search("a red square", k=3, rerank=5)
    assert ids(nodes) == [hit.id for hit in hits]
    for found, hit in zip(nodes, hits, strict=True):
        assert isinstance(found.node, ImageNode)
        assert found.score == pytest.approx(hit.rerank_score, abs=1e-4)
        assert found.text == (hit.caption or hit.source)
        assert found.metadata["dot_product"] == pytest.approx(hit.score, abs=1e-4)
        assert (found.metadata["source"], found.metadata["metadata"]) == (hit.source, hit.metadata)
        with Image.open(found.node.resolve_image()) as image:
            assert image.size == (hit.width, hit.height)
        if hasattr(found.node, "get_content_blocks"):  # not in 0.14.0; as a vision-language model gets it
            assert found.node.get_content_blocks()[-1].resolve_image().read()


async def test_async_is_the_same_and_runs_side_by_side(retriever: LightningDOTRetriever) -> None:
    texts = [f"colour {n}" for n in range(4)]
    together = await asyncio.gather(*map(retriever.aretrieve, texts))
    assert list(map(ids, together)) == [ids(retriever.retrieve(text)) for text in texts]


def test_a_query_bundle_means_what_it_means_in_llama_index(album: Album, tiny) -> None:
    retriever = LightningDOTRetriever(**album.parts, k=6)
    photo = album.photos / "3.jpg"
    vector = tiny.encode_images([photo])[0].tolist()
    cases = [
        (QueryBundle("a red square"), {"text": "a red square"}),
        (QueryBundle("", image_path=str(photo)), {"image": photo}),
        (QueryBundle("red", embedding=vector), {"image": photo}),
        (QueryBundle("red", custom_embedding_strs=["a red square"]), {"text": "a red square"}),
        (QueryBundle("red", custom_embedding_strs=["red", "blue"]), {"text": [(1, "red"), (1, "blue")]}),
        (QueryBundle("red", image_path=str(photo)), {"text": [(1, "red"), (1, photo)]}),
    ]
    for bundle, query in cases:
        hits = album.search(**query, k=6)
        scores = {hit.id: hit.score if hit.rerank_score is None else hit.rerank_score for hit in hits}
        found = {node.node_id: node.score for node in retriever.retrieve(bundle)}
        assert found == pytest.approx(scores, rel=1e-3, abs=1e-3), bundle


def test_fields_may_be_changed(album: Album) -> None:
    retriever = LightningDOTRetriever(**album.parts, k=6)
    assert len(retriever.retrieve("red")) == 6
    retriever.k, retriever.filter = 2, {"metadata.album": "a"}
    assert [node.metadata["metadata"]["album"] for node in retriever.retrieve("red")] == ["a", "a"]


def test_it_works_inside_a_query_engine(retriever: LightningDOTRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    engine = RetrieverQueryEngine.from_args(
        retriever,
        response_mode=ResponseMode.NO_TEXT,
        node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=-1e9)],
    )
    assert ids(engine.query("a red square").source_nodes) == ids(retriever.retrieve("a red square"))


def test_copies_and_pickles_before_and_after_use(album: Album) -> None:
    retriever = LightningDOTRetriever(**album.parts, k=2)
    answers = []
    for _ in range(2):
        copies = [copy.copy(retriever), copy.deepcopy(retriever), pickle.loads(pickle.dumps(retriever)), retriever]
        answers += [ids(one.retrieve("a red square")) for one in copies]
    assert all(answer == answers[0] for answer in answers)


def test_photos_that_llama_index_cannot_read_itself(album: Album, tiny, tmp_path: Path) -> None:
    """A member of a tar comes as the picture itself, a URL stays one, and a photo that is gone is no error."""
    archive = tmp_path / "shard.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(album.photos / "2.jpg", "2.jpg")
    sources = {
        "tar": f"{archive}/2.jpg",
        "gone": f"{archive}/3.jpg",
        "url": "https://photos.example/a.jpg",
        "file": str(album.photos / "2.jpg"),
    }
    vector = tiny.encode_texts(["a"])[0]
    with open_store(f"faiss:{tmp_path / 'store'}", "photos") as store:
        store.bind(tiny.fingerprint, tiny.dim)
        store.upsert([Record(name, vector, source=source) for name, source in sources.items()])
    parts = {**album.parts, "store": f"faiss:{tmp_path / 'store'}"}
    retriever = LightningDOTRetriever(**parts, reranker="none", k=4)
    nodes = {node.node_id: node.node for node in retriever.retrieve("a")}
    with Image.open(nodes["tar"].resolve_image()) as image:
        assert image.size == (660, 480)
    assert nodes["tar"].image_mimetype == "image/jpeg"
    assert nodes["url"].image_url == sources["url"]
    assert nodes["file"].image_path == sources["file"]
    assert (nodes["gone"].image, nodes["gone"].image_path) == (None, None)
    assert isinstance(nodes["tar"].resolve_image(), io.BytesIO)


@pytest.mark.parametrize(
    ("fields", "query", "kind", "message"),
    [
        ({"k": 0}, "red", UsageError, "k is 0"),
        ({"filter": {"colour": 1}}, "red", FilterError, "colour"),
        ({"min_probability": 0.5}, "red", UsageError, "no calibration"),
        ({}, "", UsageError, "empty"),
        ({}, QueryBundle("red", embedding=[1.0]), ModelMismatch, "16"),
        ({"min_probability": 0.5}, QueryBundle("red", embedding=[1.0] * 16), UsageError, "leave it out"),
    ],
)
def test_mistakes_are_our_errors(
    album: Album, fields: dict, query: object, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        LightningDOTRetriever(**album.parts, **fields).retrieve(query)


def test_an_unknown_argument_is_refused(album: Album) -> None:
    with pytest.raises(TypeError, match="top_n"):
        LightningDOTRetriever(**album.parts, top_n=3)
