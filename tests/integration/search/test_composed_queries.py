"""Queries of several texts and photos with weights: one dot product, re-ranked by the positive texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ldot_milvus import Retriever, open_store
from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.sources import expand
from tests.conftest import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    from tests.conftest import make_photo

    folder = tmp_path_factory.mktemp("composed")
    (folder / "photos").mkdir()
    for seed in range(12):
        (folder / "photos" / f"{seed:04}.jpg").write_bytes(make_photo(seed))
    with open_store(f"faiss:{folder / 'ldot-data'}", "images") as store:
        Ingestor(store, tiny_model).ingest(list(expand([str(folder / "photos")])))
    return folder


@pytest.fixture
def retriever(tiny, folder: Path):
    with open_store(f"faiss:{folder / 'ldot-data'}", "images") as store:
        yield Retriever(tiny, store)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rank_of(hits, name: str) -> int:
    return next(rank for rank, hit in enumerate(hits) if Path(hit.source).name == name)


def test_the_score_is_the_weighted_sum_of_unit_vectors(retriever: Retriever, tiny, folder: Path) -> None:
    photo = folder / "photos" / "0003.jpg"
    parts = [(2, "a red square"), (-0.5, "snow"), (0.7, photo), (-0.3, (folder / "photos" / "0004.jpg").read_bytes())]
    texts = unit(tiny.encode_texts(["a red square", "snow"]))
    photos = unit(tiny.encode_images([photo, folder / "photos" / "0004.jpg"]))
    query = np.array([2, -0.5, 0.7, -0.3]) @ np.concatenate([texts, photos])
    expected = {row.id: float(row.embedding @ query) for row in retriever.store.iterate(with_embeddings=True)}
    hits = retriever.search(parts, k=12, rerank=0)
    assert [hit.score for hit in hits] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-4)
    for hit in hits:
        assert hit.score == pytest.approx(expected[hit.id], abs=1e-4)


def test_a_photo_leads_to_itself_and_a_negative_one_away(retriever: Retriever, folder: Path) -> None:
    photo, name = folder / "photos" / "0005.jpg", "0005.jpg"
    alone = rank_of(retriever.search("a red square", k=12, rerank=0), name)
    near = rank_of(retriever.search([(1, "a red square"), (3, photo)], k=12, rerank=0), name)
    far = rank_of(retriever.search([(1, "a red square"), (-3, photo)], k=12, rerank=0), name)
    assert near <= alone <= far
    assert near < far


@pytest.mark.parametrize("weight", [1, 2.5])
@pytest.mark.parametrize("dot_weight", [0.0, 3.0])
def test_one_text_is_ranked_as_alone(retriever: Retriever, weight: float, dot_weight: float, monkeypatch) -> None:
    monkeypatch.setattr(retriever.reranker, "dot_weight", dot_weight)
    alone = retriever.search("a red square", k=12, rerank=6)
    hits = retriever.search([(weight, "a red square"), (0, "snow")], k=12, rerank=6)
    assert [hit.id for hit in hits] == [hit.id for hit in alone]
    for hit, other in zip(hits[:6], alone[:6], strict=True):
        assert hit.rerank_score == pytest.approx(other.rerank_score, abs=1e-3)


def test_the_positive_texts_rerank_by_weight(retriever: Retriever, tiny, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(retriever.reranker, "dot_weight", 2.0)
    parts = [(3, "a red square"), (1, "blue"), (-1, "snow"), (0.5, folder / "photos" / "0003.jpg")]
    hits = retriever.search(parts, k=12, rerank=6)
    kept = retriever.region_store.get([hit.id for hit in hits])
    lengths = np.linalg.norm(tiny.encode_texts(["a red square", "blue"]), axis=1)
    for hit in hits[:6]:
        scores = tiny.reranker.score(["a red square", "blue"], [kept[hit.id]] * 2)
        expected = scores @ [0.75, 0.25] + 2.0 * hit.score * (lengths @ [0.75, 0.25]) / 4
        assert hit.rerank_score == pytest.approx(expected, abs=1e-3)
    assert [hit.rerank_score for hit in hits[:6]] == sorted((hit.rerank_score for hit in hits[:6]), reverse=True)
    assert {hit.rerank_score for hit in hits[6:]} == {None}


def test_without_a_positive_text_nothing_is_reranked(retriever: Retriever, folder: Path) -> None:
    for parts in ([(1, folder / "photos" / "0003.jpg")], [(-1, "snow")]):
        assert {hit.rerank_score for hit in retriever.search(parts)} == {None}
        with pytest.raises(UsageError, match="positive weights"):
            retriever.search(parts, rerank=5)


async def test_async(retriever: Retriever) -> None:
    parts = [(1, "a red square"), (-0.5, "snow")]
    assert await retriever.asearch(parts, k=3) == retriever.search(parts, k=3)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "no part with a weight"),
        ([(0, "dogs")], "no part with a weight"),
        ([(1, "dogs"), (-1, "dogs")], "cancel each other"),
        ([(1e-300, "dogs")], "cancel each other"),
        (["ab"], "part 1 of the query is no pair"),
        ((0.5, "dogs"), "part 1 of the query is no pair"),
        ([(1, "dogs"), (1, "dogs", 2)], "part 2 of the query is no pair"),
        ([("dogs", 1)], "the weight of part 1 of the query is 'dogs'"),
        ([(True, "dogs")], "the weight of part 1 of the query is True"),
        ([(float("nan"), "dogs")], "the weight of part 1 of the query is nan"),
        ([(float("inf"), "dogs")], "the weight of part 1 of the query is inf"),
        ([(1, "dogs"), (1, " ")], "part 2 of the query is an empty text"),
        (b"bytes", "list of"),
    ],
)
def test_bad_parts_are_refused(retriever: Retriever, parts, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        retriever.search(parts)
    assert "\n" not in str(error.value)


def test_a_part_that_cannot_be_read(retriever: Retriever) -> None:
    with pytest.raises(InputError, match="nowhere"):
        retriever.search([(1, "dogs"), (1, Path("nowhere.jpg"))])


@pytest.mark.slow  # twenty seconds of starting processes; the composition itself is tested above
def test_from_the_shell(run: Run, folder: Path, tiny_model: str) -> None:
    env = {"LDOT_MODEL": tiny_model, "LDOT_DEVICE": "cpu"}
    arguments = ("--add", "0.5", "blue", "--add", "-1", "snow", "--add-image", "0.3", "photos/0003.jpg")
    done = run("ldot", "search", "red", "green", *arguments, "--json", cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert first["query"] == "red + 0.5 x blue - 1 x snow + 0.3 x photos/0003.jpg"
    assert second["parts"] == [
        {"weight": 1.0, "text": "green"}, {"weight": 0.5, "text": "blue"}, {"weight": -1.0, "text": "snow"},
        {"weight": 0.3, "image": "photos/0003.jpg"},
    ]  # fmt: skip
    assert len(first["hits"]) == 5
    assert first["hits"][0]["rerank_score"] is not None
    by_photo = run("ldot", "search", "--image", "photos/0002.jpg", "--add", "-0.2", "snow", cwd=folder, env=env)
    assert by_photo.returncode == 0, by_photo.stderr
    assert "photos/0002.jpg - 0.2 x snow" in by_photo.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--add", "1", "blue"], "give a text"),
        (["red", "--add", "-1", "red"], "cancel each other"),
        (["red", "--add", "nan", "blue"], "the weight of part 2 of the query is nan"),
        (["red", "--add-image", "1", "nowhere.jpg"], "nowhere.jpg"),
    ],
)
def test_a_mistake_is_one_line(run: Run, folder: Path, tiny_model: str, arguments: list[str], word: str) -> None:
    done = run("ldot", "search", *arguments, cwd=folder, env={"LDOT_MODEL": tiny_model, "LDOT_DEVICE": "cpu"})
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert word in line
