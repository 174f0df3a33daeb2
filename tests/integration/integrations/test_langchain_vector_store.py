"""The LangChain vector store and the document compressor."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document

from ldot_milvus import LightningDOTEmbedder, Retriever, open_store
from ldot_milvus.errors import CollectionNotFound, InputError, UsageError
from ldot_milvus.images import content_id
from ldot_milvus.integrations.langchain import (
    LightningDOTCompressor,
    LightningDOTEmbeddings,
    LightningDOTRetriever,
    LightningDOTVectorStore,
)
from tests.conftest import make_photo
from tests.integration.integrations.conftest import Photos

QUERY = "a red square"


@pytest.fixture
def store(tmp_path: Path, tiny_model: str) -> LightningDOTVectorStore:
    return LightningDOTVectorStore(store=f"faiss:{tmp_path / 'store'}", collection="mine", model=tiny_model)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{seed}.jpg" for seed in range(3)]
    for seed, path in enumerate(paths):
        path.write_bytes(make_photo(seed))
    return [str(path) for path in paths]


def test_photos_are_added_found_and_deleted(store: LightningDOTVectorStore, files: list[str]) -> None:
    ids = store.add_images(files, [{"n": 0}, {"n": 1}, {"n": 2}], captions=["zero", "", "two"], ids=[None, None, "c"])
    assert ids == [content_id(Path(files[0]).read_bytes()), content_id(Path(files[1]).read_bytes()), "c"]
    found = store.similarity_search_with_score(QUERY, k=5)
    assert {document.id for document, _ in found} == set(ids)
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    for document, score in found:
        assert document.metadata["score"] == score
        number = document.metadata["metadata"]["n"]
        assert document.metadata["source"] == files[number]
        assert document.page_content == (["zero", files[1], "two"][number])
    assert [one.metadata["metadata"]["n"] for one in store.similarity_search(QUERY, filter={"metadata.n": 1})] == [1]
    assert store.similarity_search(Path(files[2]), k=1)[0].id == "c"
    assert [document.id for document in store.get_by_ids(["c", "none", ids[0]])] == ["c", ids[0]]
    assert "score" not in store.get_by_ids(["c"])[0].metadata
    assert store.delete(["c", "none"])
    assert store.delete(filter={"metadata.n": 1})
    assert store.delete([])
    assert [document.id for document in store.similarity_search(QUERY)] == ids[:1]


def test_photos_can_be_reranked(store: LightningDOTVectorStore, files: list[str]) -> None:
    """Region data is stored with the photos, and deleted with them."""
    ids = store.add_images(files)
    fields = {"store": store.store, "collection": "mine", "model": store.model}
    found = LightningDOTRetriever(**fields, rerank=3).invoke(QUERY)
    assert all(document.metadata["rerank_score"] is not None for document in found)
    regions = store.retriever.region_store
    assert regions is not None
    assert regions.has(ids) == set(ids)
    store.delete(ids[:1])
    assert regions.has(ids) == set(ids[1:])


def test_texts_come_back_as_they_were_added(store: LightningDOTVectorStore) -> None:
    own = [{"source": "a.txt", "score": 1}, {"list": [1, {"x": None}]}, {}]
    ids = store.add_texts(["one", "two", "two"], own, ids=["1", None, None])
    assert ids == ["1", content_id(b"two"), content_id(b"two")]
    assert store.similarity_search("one") == []  # of photos
    assert {one.id: one.metadata for one in store.similarity_search("one", kind="text")} == {"1": own[0], ids[1]: {}}
    store.add_texts(["changed"], [{"new": True}], ids=["1"])
    assert store.get_by_ids(["1"]) == [Document(id="1", page_content="changed", metadata={"new": True})]
    by_text = LightningDOTRetriever(store=store.store, collection="mine", model=store.model, kind="text")
    store.add_texts(["labelled"], [{"source": "b.txt"}])
    assert "b.txt" in {document.metadata["source"] for document in by_text.invoke("one")}


def test_vectors(store: LightningDOTVectorStore, files: list[str], tiny: LightningDOTEmbedder) -> None:
    store.add_images(files)
    vector = store.embeddings.embed_query(QUERY)
    assert store.similarity_search_by_vector(vector, k=2) == store.similarity_search(QUERY, k=2)
    with pytest.raises(UsageError, match="k is 0"):
        store.similarity_search_by_vector(vector, k=0)
    with pytest.raises(UsageError, match="no calibration"):
        store.similarity_search_with_relevance_scores(QUERY)


def test_relevance_is_the_calibrated_probability(photos: Photos) -> None:
    from ldot_milvus.ingest.ingestor import Ingestor
    from ldot_milvus.sources import expand

    address = f"faiss:{photos.folder / 'mini'}"
    with open_store(address, "photos") as opened:
        Ingestor(opened).ingest(list(expand([str(photos.folder / "*.jpg")])))
    store = LightningDOTVectorStore(store=address, collection="photos")
    scored = store.similarity_search_with_relevance_scores(QUERY, k=6)
    assert [score for _, score in scored] == [document.metadata["probability"] for document, _ in scored]
    assert all(0 <= score <= 1 for _, score in scored)
    middle = (scored[2][1] + scored[3][1]) / 2
    likely = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": middle, "k": 6}
    )
    assert [document.id for document in likely.invoke(QUERY)] == [document.id for document, _ in scored[:3]]


async def test_async_forms_give_the_same(store: LightningDOTVectorStore, files: list[str]) -> None:
    ids = await store.aadd_images(files[:2], captions=["a", "b"])
    ids += await store.aadd_texts(["text"])
    assert await store.aget_by_ids(ids) == store.get_by_ids(ids)
    assert await store.asimilarity_search(QUERY) == store.similarity_search(QUERY)
    assert await store.asimilarity_search_with_score(QUERY) == store.similarity_search_with_score(QUERY)
    vector = await store.embeddings.aembed_query(QUERY)
    assert await store.asimilarity_search_by_vector(vector) == store.similarity_search(QUERY)
    assert await store.as_retriever(search_kwargs={"k": 1}).ainvoke(QUERY) == store.similarity_search(QUERY, k=1)
    await store.adelete(ids)
    assert store.get_by_ids(ids) == []


def test_tenants_neither_see_nor_delete_each_others_rows(store: LightningDOTVectorStore, files: list[str]) -> None:
    anna, bob = (store.model_copy(update={"namespace": name}) for name in ("anna", "bob"))
    (of_anna,), (of_bob,) = anna.add_images(files[:1]), bob.add_images(files[:1])
    assert of_anna != of_bob
    assert [document.id for document in anna.similarity_search(QUERY)] == [of_anna]
    assert anna.get_by_ids([of_bob]) == []
    anna.delete([of_bob])
    anna.delete(filter={"kind": "image"})
    assert [document.id for document in store.similarity_search(QUERY)] == [of_bob]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda store: store.similarity_search(QUERY, filters={}), "'filters': did you mean 'filter'"),
        (lambda store: store.similarity_search(QUERY, top_k=2), "'top_k': did you mean 'k'"),
        (lambda store: store.similarity_search_with_score(QUERY, expr="x"), "'expr': did you mean 'filter'"),
        (lambda store: store.as_retriever(search_kwargs={"filters": {}}).invoke(QUERY), "'filters'"),
        (lambda store: store.delete(), "delete needs ids or a filter"),
        (lambda store: store.delete(filter={}), "an empty filter would delete every row"),
        (lambda store: store.add_texts(["a", "b"], [{}]), "2 items have 1 metadatas"),
        (lambda store: store.add_images(["a"], ids=["1", "2"]), "1 items have 2 ids"),
        (lambda store: store.add_texts([3]), "3 is no text"),
        (lambda store: store.add_texts(["\ud800"]), "is no text that can be stored"),
        (lambda store: store.add_texts(["a"], namespaces=["x"]), "takes no argument 'namespaces'"),
        (lambda store: type(store)(collection_name="x"), "did you mean 'collection'"),
        (lambda store: store.model_copy(update={"colection": "x"}), "did you mean 'collection'"),
    ],
)  # fmt: skip
def test_what_is_refused(store: LightningDOTVectorStore, call: Any, message: str) -> None:
    store.add_texts([])
    with pytest.raises(UsageError, match=message) as caught:
        call(store)
    assert "\n" not in str(caught.value)


def test_photos_that_cannot_be_read_are_told_and_the_others_added(
    store: LightningDOTVectorStore, files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "no.jpg").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"2 of 3 were not added, as .*no such file"):
        store.add_images([str(tmp_path / "lost.jpg"), files[0], str(tmp_path / "no.jpg")])
    assert len(store.similarity_search(QUERY)) == 1
    with pytest.raises(InputError, match="bytes"):
        store.add_texts(["x" * 9000])


def test_a_collection_is_made_by_adding_and_not_by_searching(store: LightningDOTVectorStore) -> None:
    with pytest.raises(CollectionNotFound, match="mine"):
        store.similarity_search(QUERY)
    store.add_texts([])
    assert store.similarity_search(QUERY) == []


def test_copies_and_pickles(store: LightningDOTVectorStore, files: list[str], tiny: LightningDOTEmbedder) -> None:
    store.add_images(files)
    opened = LightningDOTVectorStore(store=open_store(str(store.store), "mine"), model=tiny)
    for one in (store, opened):
        expected = one.similarity_search(QUERY)
        for same in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            assert [document.id for document in same.similarity_search(QUERY)] == [one.id for one in expected]
            retriever = pickle.loads(pickle.dumps(same.as_retriever(search_kwargs={"k": 1})))
            assert [document.id for document in retriever.invoke(QUERY)] == [expected[0].id]


def test_from_texts_and_documents(tmp_path: Path, tiny_model: str) -> None:
    fields = {"store": f"faiss:{tmp_path}", "collection": "texts"}
    embeddings = LightningDOTEmbeddings(tiny_model)
    store = LightningDOTVectorStore.from_texts(["one"], embeddings, [{"n": 1}], **fields)
    assert store.similarity_search("one")[0].metadata == {"n": 1}
    assert store.embeddings == embeddings
    documents = [Document("two", metadata={"n": 2})]
    assert len(LightningDOTVectorStore.from_documents(documents, embeddings, **fields).similarity_search("x")) == 2
    from langchain_core.embeddings import DeterministicFakeEmbedding

    with pytest.raises(UsageError, match="give LightningDOTEmbeddings, not DeterministicFakeEmbedding"):
        LightningDOTVectorStore.from_texts(["one"], DeterministicFakeEmbedding(size=4), **fields)


# The compressor


def _documents(photos: Photos, *, ids: bool) -> list[Document]:
    """The photos as another retriever may return them, in an order of its own."""
    rows = {row.source: row for row in open_store(photos.address, "photos").iterate()}
    return [
        Document(f"found {source}", id=row.id if ids else "foreign", metadata={} if ids else {"source": source})
        for source, row in sorted(rows.items(), reverse=True)
    ]


@pytest.mark.parametrize("ids", [True, False])
def test_documents_of_others_are_ranked_as_a_search_ranks_them(photos: Photos, ids: bool) -> None:
    hits = LightningDOTRetriever(**photos.fields, k=6, rerank=6).invoke(QUERY)
    documents = _documents(photos, ids=ids)
    before = [document.model_copy(deep=True) for document in documents]
    ranked = LightningDOTCompressor(**photos.fields, k=6).compress_documents(documents, QUERY)
    assert [one.page_content for one in ranked] == [f"found {hit.metadata['source']}" for hit in hits]
    assert [one.metadata["rerank_score"] for one in ranked] == pytest.approx(
        [hit.metadata["rerank_score"] for hit in hits], rel=1e-4
    )
    assert documents == before
    assert len(LightningDOTCompressor(**photos.fields, k=2).compress_documents(documents, QUERY)) == 2


async def test_documents_without_a_photo_come_last_in_their_order(photos: Photos) -> None:
    strangers = [Document("a", id="x"), Document("b", metadata={"source": "nowhere.jpg"}), Document("c")]
    documents = [strangers[0], *_documents(photos, ids=True), *strangers[1:]]
    compressor = LightningDOTCompressor(**photos.fields, k=9)
    ranked = compressor.compress_documents(documents, QUERY)
    assert ranked[-3:] == strangers
    assert await compressor.acompress_documents(documents, QUERY) == ranked
    assert compressor.compress_documents([], QUERY) == []
    anna = LightningDOTCompressor(**photos.fields, k=9, namespace="anna").compress_documents(documents, QUERY)
    assert sum("rerank_score" in document.metadata for document in anna) == 3


def test_the_same_photo_twice_keeps_both_documents(photos: Photos) -> None:
    first = _documents(photos, ids=True)[0]
    ranked = LightningDOTCompressor(**photos.fields).compress_documents([first, first], QUERY)
    assert [document.id for document in ranked] == [first.id] * 2


def test_a_compressor_needs_a_reranker_and_known_fields(photos: Photos) -> None:
    with pytest.raises(UsageError, match="no re-ranker"):
        LightningDOTCompressor(**photos.fields, reranker="none").compress_documents([Document("a")], QUERY)
    with pytest.raises(UsageError, match="'top_n': did you mean 'k'"):
        LightningDOTCompressor(**photos.fields, top_n=3)
    same = pickle.loads(pickle.dumps(LightningDOTCompressor(**photos.fields)))
    assert same == LightningDOTCompressor(**photos.fields)


def test_photos_without_region_data_come_after_those_with_it(photos: Photos, tiny_model: str, tmp_path: Path) -> None:
    store = LightningDOTVectorStore(store=f"faiss:{tmp_path}", model=tiny_model)
    paths = [str(photos.folder / f"{seed}.jpg") for seed in range(3)]
    ids = store.add_images(paths)
    regions = store.retriever.region_store
    assert regions is not None
    regions.delete([ids[0]])
    retriever: Retriever = store.retriever
    found = retriever.rerank(QUERY, [("none", None), (ids[0], None), (ids[1], None), (None, paths[2])])
    assert [index for index, _ in found][2:] == [1, 0]
    assert found[2][1] is not None
    assert found[2][1].rerank_score is None
    assert found[3][1] is None
