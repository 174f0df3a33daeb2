"""Searches that run together have the answers that they have alone, and an error concerns its search only."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldot_milvus import Hit, LdotError, Retriever, open_store
from ldot_milvus.errors import FilterError, InputError, RowNotFound, UsageError
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.search.query import RowId
from ldot_milvus.search.query_vectors import QueryVectors
from ldot_milvus.search.requests import SearchRequest
from ldot_milvus.sources import Source
from tests.conftest import make_photo

TEXTS = ("a red square", "blue", "two dogs in the snow and a very long red bus in the background", "a", "green grass")


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory, tiny):
    folder = tmp_path_factory.mktemp("many")
    sources = []
    for seed in range(14):
        path = folder / f"{seed:04}.jpg"
        path.write_bytes(make_photo(seed))
        sources.append(Source(str(path), namespace=("a", "b")[seed % 2], metadata={"n": seed}))
    sources += [Source(f"t{n}", kind="text", caption=text) for n, text in enumerate(TEXTS)]
    with open_store(f"faiss:{folder / 'ldot-data'}", "images") as store:
        Ingestor(store, tiny).ingest(sources)
        yield Retriever(tiny, store, query_vectors=QueryVectors(3))


def drawn(draw: random.Random, ids: list[str]) -> tuple[SearchRequest, type[LdotError] | None]:
    """A search, and the error that it has."""
    options: dict[str, Any] = {"k": draw.choice((1, 3, 20)), "offset": draw.choice((0, 0, 2))}
    if draw.random() < 0.3:
        options["filter"] = draw.choice(({"metadata.n": {"$gte": 5}}, {"metadata.n": {"$lt": 0}}, {}))
    if draw.random() < 0.3:
        options["namespace"] = draw.choice(("a", "b", "none"))
    kind = draw.random()
    if kind < 0.1:
        bad = draw.choice((
            ({"text": "  "}, UsageError), ({"text": "a", "k": 0}, UsageError), ({"id": "nowhere"}, RowNotFound),
            ({"text": "a", "filter": {"nowhere": 1}}, FilterError), ({"text": [(1, "a"), (-1, "a")]}, UsageError),
            ({"image": b"no photo"}, InputError), ({"text": "a", "id": ids[0]}, UsageError), ({}, UsageError),
        ))  # fmt: skip
        return SearchRequest(**{**options, **bad[0]}), bad[1]
    if kind < 0.25:
        return SearchRequest(id=draw.choice(ids), kind=draw.choice(("image", "text")), **options), None
    if kind < 0.35:
        rerank = draw.choice((None, 0))
        return SearchRequest(image=make_photo(draw.randrange(20)), kind="text", rerank=rerank, **options), None
    if kind < 0.55:
        parts = [(1.0, draw.choice(TEXTS)), (draw.choice((-0.5, 0.3)), RowId(draw.choice(ids))), (0.2, "other")]
        return SearchRequest(parts, **options), None
    return SearchRequest(draw.choice(TEXTS), rerank=draw.choice((None, 0, 4, 30)), **options), None


def same(hits: list[Hit], others: list[Hit]) -> None:
    """Compare answers: scores within float tolerance, and rows wherever scores are not equal within it."""
    assert len(hits) == len(others)
    for hit, other in zip(hits, others, strict=True):
        assert hit.score == pytest.approx(other.score, rel=1e-3, abs=1e-3) or hit.rerank_score is not None
        assert (hit.rerank_score is None) == (other.rerank_score is None)
        if hit.rerank_score is not None:
            assert hit.rerank_score == pytest.approx(other.rerank_score, rel=1e-3, abs=1e-3)
        if hit.id == other.id:
            assert hit.score == pytest.approx(other.score, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_together_as_alone(retriever: Retriever, seed: int) -> None:
    draw = random.Random(seed)
    ids = [row.id for row in retriever.store.iterate()]
    requests = [drawn(draw, ids) for _ in range(25)]
    together = retriever.search_many([request for request, _ in requests])
    for answer, (request, error) in zip(together, requests, strict=True):
        alone = retriever.search_many([request])[0]
        if error is not None:
            assert type(answer) is type(alone) is error
            assert str(answer) == str(alone)
        else:
            assert isinstance(answer, list), answer
            same(answer, alone)


def test_a_row_finds_others_and_pages_follow_each_other(retriever: Retriever) -> None:
    row = next(retriever.store.iterate({"kind": "image"}, with_embeddings=True))
    hits = retriever.search(id=row.id, k=100)
    assert len(hits) == 13
    assert row.id not in {hit.id for hit in hits}
    nearest = [hit for hit in retriever.nearest(row.embedding, k=100) if hit.id != row.id]
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in nearest], rel=1e-4)
    for query in ({"id": row.id}, {"text": TEXTS[0]}):
        everything = retriever.search(**query, k=30)
        pages = [hit for page in range(5) for hit in retriever.search(**query, k=4, offset=4 * page)]
        assert [hit.id for hit in pages] == [hit.id for hit in everything]


def test_a_part_may_be_a_row(retriever: Retriever, tiny) -> None:
    row = next(retriever.store.iterate({"kind": "image"}, with_embeddings=True))
    text = tiny.encode_texts(["blue"])[0]
    vector = text / np.linalg.norm(text) - 0.5 * row.embedding / np.linalg.norm(row.embedding)
    hits = retriever.search([(1, "blue"), (-0.5, RowId(row.id))], k=20, rerank=0)
    expected = retriever.nearest(vector.astype(np.float32), k=20)
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-3)


def test_what_the_cache_keeps_is_what_the_model_says(tiny) -> None:
    cache = QueryVectors(2)
    for texts in (["a", "b"], ["b", "c"], ["a"], ["c", "c", "a", "b"]):
        found = cache.encode(tiny, texts)
        assert list(found) == list(dict.fromkeys(texts))
        for text, vector in found.items():
            assert vector == pytest.approx(tiny.encode_texts([text])[0], rel=1e-3, abs=1e-3)
    assert len(cache._vectors) == 2


def test_paths_are_photos_and_no_texts(retriever: Retriever, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(make_photo(3))
    by_path = retriever.search(image=str(tmp_path / "x.jpg"), k=3)
    by_bytes = retriever.search(image=make_photo(3), k=3)
    assert [hit.id for hit in by_path] == [hit.id for hit in by_bytes]
