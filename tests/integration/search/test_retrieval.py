"""Two-stage retrieval over a store that ingestion filled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ldot_milvus import Retriever, open_store
from ldot_milvus.errors import CollectionNotFound, ModelMismatch, UsageError
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.sources import expand
from ldot_milvus.stores import Record
from tests.tolerance import assert_first


@pytest.fixture
def retriever(tiny, tiny_model: str, photo_folder: Callable[[int], Path], tmp_path: Path):
    with open_store(f"faiss:{tmp_path / 'store'}", "photos") as store:
        Ingestor(store, tiny_model).ingest(list(expand([str(photo_folder(12))])))
        texts = [
            Record(f"t{n}", tiny.encode_texts([f"text {n}"])[0], kind="text", caption=f"text {n}") for n in range(3)
        ]
        store.upsert(texts)
        yield Retriever(tiny, store)


def test_without_reranking_the_order_is_the_dot_product(retriever: Retriever, tiny) -> None:
    rows = list(retriever.store.iterate({"kind": "image"}, with_embeddings=True))
    scores = np.stack([row.embedding for row in rows]) @ tiny.encode_texts(["a red square"])[0]
    hits = retriever.search("a red square", k=5, rerank=0)
    assert len(hits) == 5
    assert_first([hit.id for hit in hits], dict(zip((row.id for row in rows), scores.tolist(), strict=True)))
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:5], atol=1e-4)
    assert {hit.rerank_score for hit in hits} == {None}


def test_reranking_orders_the_first_by_cross_attention(retriever: Retriever, tiny, tmp_path: Path) -> None:
    first = retriever.search("a red square", k=12, rerank=0)
    hits = retriever.search("a red square", k=12, rerank=6)
    assert {hit.id for hit in hits[:6]} == {hit.id for hit in first[:6]}
    assert [hit.id for hit in hits[6:]] == [hit.id for hit in first[6:]]
    kept = retriever.region_store.get([hit.id for hit in first])
    expected = {hit.id: tiny.reranker.score(["a red square"], [kept[hit.id]])[0] for hit in first[:6]}
    for hit in hits[:6]:
        assert hit.rerank_score == pytest.approx(expected[hit.id], abs=1e-4)
    scores = [hit.rerank_score for hit in hits[:6]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] - scores[-1] > 0.01  # the scores differ, so the order means something
    # The stored regions give what the photo itself would give: half precision is all that is lost.
    (photo,) = tiny.reranker.keep(tiny.image_features([hits[0].source]))
    assert tiny.reranker.score(["a red square"], [photo])[0] == pytest.approx(hits[0].rerank_score, abs=2e-2)


def test_a_query_opens_no_image(retriever: Retriever, tmp_path: Path) -> None:
    before = retriever.search("a red square", k=5, rerank=10)
    for photo in (tmp_path / "photos").iterdir():
        photo.unlink()
    assert retriever.search("a red square", k=5, rerank=10) == before


def test_a_photo_finds_itself_and_sentences(retriever: Retriever, tmp_path: Path) -> None:
    photo = tmp_path / "photos" / "0003.jpg"
    row = next(row for row in retriever.store.iterate({"kind": "image"}) if row.source == str(photo))
    own = next(hit for hit in retriever.search(image=photo, k=12) if hit.id == row.id)
    vector = retriever.store.get([row.id], with_embeddings=True)[0].embedding
    assert own.score == pytest.approx(float(vector @ vector), rel=1e-4)
    sentences = retriever.search(image=photo, kind="text", k=3)
    assert {hit.kind for hit in sentences} == {"text"}
    assert all(hit.rerank_score is not None for hit in sentences)


def test_a_stored_vector_finds_what_its_photo_finds(retriever: Retriever, tmp_path: Path) -> None:
    photo = tmp_path / "photos" / "0003.jpg"
    row = next(row for row in retriever.store.iterate(with_embeddings=True) if row.source == str(photo))
    hits = retriever.nearest(row.embedding, k=12)
    by_photo = {hit.id: hit.score for hit in retriever.search(image=photo, k=12)}
    assert {hit.id: hit.score for hit in hits} == pytest.approx(by_photo, rel=1e-4, abs=1e-4)
    assert {(hit.rerank_score, hit.probability) for hit in hits} == {(None, None)}
    with pytest.raises(ModelMismatch):
        retriever.nearest(row.embedding[:3])
    with pytest.raises(UsageError, match="k is 0"):
        retriever.nearest(row.embedding, k=0)


def test_given_photos_are_reranked_as_those_of_a_search(retriever: Retriever) -> None:
    hits = {hit.id: hit for hit in retriever.search("a red square", k=12, rerank=12)}
    ids = sorted(hits)
    given = [(id, None) for id in (*ids, "t0", "nowhere", ids[0])]
    again = retriever.rerank("a red square", given)
    assert sorted(index for index, _ in again) == list(range(len(given)))
    assert [index for index, hit in again if hit is None] == [12, 13]  # the text and the unknown id, which come last
    assert again[-2:] == [(12, None), (13, None)]
    ranked = [hit for index, hit in again if hit is not None and index != 14]
    assert_first([hit.id for hit in ranked], {id: hit.rerank_score for id, hit in hits.items()})
    for hit in ranked:
        before = hits[hit.id]
        assert (hit.score, hit.rerank_score) == pytest.approx((before.score, before.rerank_score), abs=1e-4)
    by_source = retriever.rerank("a red square", [(None, hits[id].source) for id in ids])
    assert [hit.id for _, hit in by_source] == [hit.id for hit in ranked]
    retriever.region_store.delete([ids[0]])
    _, last = retriever.rerank("a red square", given[:12])[-1]
    assert (last.id, last.rerank_score) == (ids[0], None)


def test_reranking_what_cannot_be_is_refused(retriever: Retriever, tiny) -> None:
    with pytest.raises(UsageError, match="empty"):
        retriever.rerank(" ", [("t0", None)])
    with pytest.raises(UsageError, match="LDOT_RERANKER"):
        Retriever(tiny, retriever.store, reranker="none").rerank("blue", [("t0", None)])


def test_lost_region_data_is_ranked_last_and_told(retriever: Retriever, caplog: pytest.LogCaptureFixture) -> None:
    first = retriever.search("blue", k=4, rerank=0)
    retriever.region_store.delete([first[0].id])
    hits = retriever.search("blue", k=4, rerank=4)
    assert hits[-1].id == first[0].id
    assert hits[-1].rerank_score is None
    assert "ingest them again" in caplog.text


def test_filters_hold_before_reranking(retriever: Retriever) -> None:
    row = next(iter(retriever.store.iterate({"kind": "image"})))
    assert [hit.id for hit in retriever.search("blue", k=5, filter={"id": row.id})] == [row.id]
    assert retriever.search("blue", filter={"width": {"$gt": 9999}}) == []


async def test_async_is_the_same_and_runs_side_by_side(retriever: Retriever) -> None:
    texts = [f"colour {n}" for n in range(8)]
    together = await asyncio.gather(*(retriever.asearch(text, k=3) for text in texts))
    assert together == [retriever.search(text, k=3) for text in texts]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": ""}, "empty"),
        ({"text": " \n"}, "empty"),
        ({}, "exactly one of them"),
        ({"text": "a", "image": b"x"}, "exactly one of them"),
        ({"text": "a", "k": 0}, "k is 0"),
        ({"text": "a", "k": -1}, "k is -1"),
        ({"text": "a", "k": 2.5}, "k is 2.5"),
        ({"text": "a", "rerank": -1}, "rerank is -1"),
        ({"text": "a", "kind": "text", "rerank": 5}, "rerank=0"),
        ({"text": "a", "filter": {"colour": "red"}}, "colour"),
    ],
)
def test_bad_queries_are_refused(retriever: Retriever, arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        retriever.search(**arguments)


@pytest.mark.parametrize("text", ["word " * 10_000, "🐕🐕🐕", "\x00\x01\x02", "犬 と 雪", "a" * 5000])
def test_odd_texts_are_answered(retriever: Retriever, text: str) -> None:
    assert len(retriever.search(text, k=3)) == 3


def test_another_models_collection_is_refused(retriever: Retriever, other_model: str) -> None:
    from ldot_milvus import LightningDOTEmbedder

    with pytest.raises(ModelMismatch):
        Retriever(LightningDOTEmbedder(other_model, device="cpu"), retriever.store).search("blue")


def test_searching_writes_nothing(tiny, tmp_path: Path) -> None:
    """A collection without a model stays without one, and one that does not exist is not made."""
    with open_store(f"faiss:{tmp_path / 'store'}", "bare") as store:
        store.upsert([Record("a", np.ones(tiny.dim, np.float32))])
        assert len(Retriever(tiny, store).search("a red square", rerank=0)) == 1
        assert store.model is None
    with open_store(f"faiss:{tmp_path / 'store'}", "missing") as store:
        with pytest.raises(CollectionNotFound):
            Retriever(tiny, store).search("a red square")
        assert store.dim is None
    with open_store(f"faiss:{tmp_path / 'store'}", "narrow") as store:
        store.upsert([Record("a", np.ones(tiny.dim + 1, np.float32))])
        with pytest.raises(ModelMismatch, match=f"{tiny.dim + 1} dimensions"):
            Retriever(tiny, store).search("a red square")


def test_the_settings_name_a_retriever(tiny_model: str, photo_folder, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LDOT_MODEL", tiny_model)
    monkeypatch.setenv("LDOT_STORE", f"faiss:{tmp_path / 'store'}")
    monkeypatch.setenv("LDOT_COLLECTION", "named")
    with open_store() as store:
        Ingestor(store, tiny_model).ingest(list(expand([str(photo_folder(3))])))
    hits = Retriever.from_settings().search("a red square")
    assert None not in {hit.rerank_score for hit in hits}
    assert json.loads(json.dumps(hits[0].to_dict()))["id"] == hits[0].id
    monkeypatch.setenv("LDOT_RERANKER", "none")
    assert {hit.rerank_score for hit in Retriever.from_settings().search("a red square")} == {None}
