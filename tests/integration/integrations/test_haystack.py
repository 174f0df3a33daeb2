"""The Haystack component, in Haystack's pipelines."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from haystack import Document, Pipeline
from haystack.components.converters.image import DocumentToImageContent
from haystack.core.serialization import component_from_dict, component_to_dict
from haystack.utils.filters import document_matches_filter

from ldot_milvus.errors import FilterError, UsageError
from ldot_milvus.integrations.haystack import LightningDOTRetriever
from tests.integration.integrations.album import Album


@pytest.fixture(scope="module")
def retriever(album: Album) -> LightningDOTRetriever:
    retriever = LightningDOTRetriever(**album.parts, top_k=3, rerank=5)
    retriever.warm_up()
    return retriever


def test_documents_are_the_hits_of_the_library(retriever: LightningDOTRetriever, album: Album) -> None:
    documents = retriever.run(query="a red square")["documents"]
    hits = album.search("a red square", k=3, rerank=5)
    assert [document.id for document in documents] == [hit.id for hit in hits]
    for document, hit in zip(documents, hits, strict=True):
        assert isinstance(document, Document)
        assert document.content == (hit.caption or hit.source)
        assert document.score == pytest.approx(hit.rerank_score, abs=1e-4)
        assert document.meta["dot_product"] == pytest.approx(hit.score, abs=1e-4)
        assert (document.meta["source"], document.meta["metadata"]) == (hit.source, hit.metadata)
        assert Document.from_dict(document.to_dict()) == document
    assert [len(retriever.run(query="red", top_k=k)["documents"]) for k in (1, 6)] == [1, 6]


async def test_async_is_the_same_and_runs_side_by_side(retriever: LightningDOTRetriever) -> None:
    texts = [f"colour {n}" for n in range(4)]
    together = await asyncio.gather(*(retriever.run_async(text, top_k=2) for text in texts))
    assert together == [retriever.run(text, top_k=2) for text in texts]


def test_a_pipeline_hands_the_photos_on(album: Album) -> None:
    pipeline = Pipeline()
    pipeline.add_component("retriever", LightningDOTRetriever(**album.parts, top_k=2))
    pipeline.add_component("images", DocumentToImageContent(file_path_meta_field="source"))
    pipeline.connect("retriever.documents", "images.documents")
    answer = pipeline.run({"retriever": {"query": "a red square"}}, include_outputs_from={"retriever"})
    documents, images = answer["retriever"]["documents"], answer["images"]["image_contents"]
    assert [image.meta["file_path"] for image in images] == [document.meta["source"] for document in documents]
    assert {image.mime_type for image in images} == {"image/jpeg"}


def test_a_pipeline_is_saved_and_loaded(album: Album) -> None:
    pipeline = Pipeline()
    arguments = {**album.parts, "top_k": 2, "rerank": 4, "filters": {"metadata.album": "a"}, "reranker": None}
    pipeline.add_component("retriever", LightningDOTRetriever(**arguments, min_probability=None))
    text = pipeline.dumps()
    allowed = {"allowed_modules": ["ldot_milvus"]}  # from Haystack 3
    known = inspect.signature(Pipeline.loads).parameters
    loaded = Pipeline.loads(text, **{name: value for name, value in allowed.items() if name in known})
    assert loaded.dumps() == text
    query = {"retriever": {"query": "a red square"}}
    assert loaded.run(query) == pipeline.run(query)
    values = component_to_dict(loaded.get_component("retriever"), "retriever")
    assert values["init_parameters"] == {**arguments, "min_probability": None}
    again = component_from_dict(LightningDOTRetriever, values, "retriever")
    assert again.to_dict() == values
    assert values["init_parameters"].keys() == inspect.signature(LightningDOTRetriever.__init__).parameters.keys() - {
        "self"
    }


def condition(field: str, operator: str, value: object) -> dict[str, object]:
    return {"field": field, "operator": operator, "value": value}


WIDE, LATE = condition("meta.width", ">", 660), condition("meta.metadata.year", ">=", 2022)
FILTERS = [
    condition("meta.width", "==", 660),
    condition("meta.width", "!=", 660),
    WIDE,
    condition("meta.width", ">=", 660),
    condition("meta.width", "<", 660),
    condition("meta.width", "<=", 660),
    condition("meta.metadata.album", "in", ["a", "c"]),
    condition("meta.metadata.album", "not in", ["a", "c"]),
    condition("meta.metadata.nothing", "!=", "a"),
    LATE,
    {"operator": "AND", "conditions": [WIDE, LATE]},
    {"operator": "OR", "conditions": [WIDE, condition("meta.metadata.album", "==", "b")]},
    {"operator": "NOT", "conditions": [WIDE, LATE]},
    {"operator": "AND", "conditions": [WIDE, {"operator": "NOT", "conditions": [LATE]}]},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_match_what_haystack_matches(retriever: LightningDOTRetriever, filters: dict) -> None:
    every = retriever.run("red", top_k=6)["documents"]
    assert len(every) == 6
    expected = {document.id for document in every if document_matches_filter(filters, document)}
    assert {document.id for document in retriever.run("red", filters, top_k=6)["documents"]} == expected


def test_our_filters_are_taken_too_and_those_of_a_call_replace(album: Album) -> None:
    retriever = LightningDOTRetriever(**album.parts, top_k=6, filters={"metadata.album": "a"})
    assert len(retriever.run("red")["documents"]) == 3
    assert len(retriever.run("red", filters={"width": {"$gt": 0}})["documents"]) == 6


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"filters": condition("meta.width", "~", 1)}, FilterError, "unknown operator '~'"),
        ({"filters": {"operator": "XOR", "conditions": []}}, FilterError, "use AND, OR or NOT"),
        ({"filters": {"operator": "AND"}}, FilterError, "no 'conditions'"),
        ({"filters": {"field": "meta.width", "operator": "=="}}, FilterError, "no 'value'"),
        ({"filters": condition("meta.colour", "==", 1)}, FilterError, "colour"),
        ({"top_k": 0}, UsageError, "k is 0"),
        ({"query": ""}, UsageError, "empty"),
    ],
)
def test_mistakes_are_our_errors(
    retriever: LightningDOTRetriever, arguments: dict, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        retriever.run(**{"query": "red", **arguments})
