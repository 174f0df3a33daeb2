"""Texts and precomputed region features are ingested, found and re-ranked as photos are, each once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ldot_milvus import LightningDOTEmbedder, Retriever, open_store
from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.images import content_id
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.ingest.reindex import reembed
from ldot_milvus.regions import Regions
from ldot_milvus.regions.files import write_lmdb, write_npz
from ldot_milvus.sources import Source, expand, read
from tests.conftest import make_photo
from tests.tolerance import assert_first
from tests.unit.regions.test_region_files import tsv_line
from tests.unit.sources.test_sources import make_tar

SENTENCES = ["a red square", "blue and green", "ein roter Würfel", "words " * 60]


@pytest.fixture
def store(tmp_path: Path):
    with open_store(f"faiss:{tmp_path / 'store'}", "photos") as opened:
        yield opened


def manifest(path: Path, *lines: dict) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_a_photo_finds_its_sentences(store, tiny, tiny_model: str, photo_folder: Callable, tmp_path: Path) -> None:
    """Texts from a manifest are ranked by dot product and re-ranked with the regions of the query photo."""
    texts = manifest(tmp_path / "t.jsonl", *({"text": text, "topic": n} for n, text in enumerate(SENTENCES)))
    folder = photo_folder(2)
    report = Ingestor(store, tiny_model).ingest(list(expand([texts, str(folder)])))
    assert (report.added, report.failed) == (6, [])
    row = store.get([content_id(SENTENCES[2].encode())], with_embeddings=True)[0]
    assert (row.kind, row.caption, row.width, row.height) == ("text", SENTENCES[2], 0, 0)
    assert (row.metadata, row.source) == ({"topic": 2}, f"{texts}:3")
    np.testing.assert_allclose(row.embedding, tiny.encode_texts([SENTENCES[2]])[0], atol=1e-4)

    retriever = Retriever(tiny, store)
    photo = folder / "0001.jpg"
    plain = retriever.search(image=photo, kind="text", rerank=0)
    vector = tiny.encode_images([photo])[0]
    scores = tiny.encode_texts(SENTENCES) @ vector
    assert len(plain) == len(SENTENCES)
    assert_first([hit.caption for hit in plain], dict(zip(SENTENCES, scores.tolist(), strict=True)))
    hits = retriever.search(image=photo, kind="text")
    (regions,) = tiny.reranker.keep(tiny.image_features([photo]))
    for hit in hits:
        assert hit.rerank_score == pytest.approx(tiny.reranker.score([hit.caption], [regions])[0], abs=1e-3)
    ranked = [hit.rerank_score for hit in hits]
    assert ranked == sorted(ranked, reverse=True)
    assert {hit.kind for hit in retriever.search("a red square", k=10, rerank=0)} == {"image"}


def test_texts_again_change_nothing_and_load_no_model(store, tiny_model: str, tmp_path: Path) -> None:
    lines = [{"text": "one"}, {"text": "two", "id": "mine"}, {"text": "one"}]
    sources = list(expand([manifest(tmp_path / "t.jsonl", *lines)]))
    assert Ingestor(store, tiny_model).ingest(sources).added == 2
    again = Ingestor(store, tiny_model)
    assert again.ingest(sources).unchanged == 3
    changed = manifest(tmp_path / "u.jsonl", {"text": "one", "topic": "x"})
    assert again.ingest(list(expand([changed]))).updated == 1
    assert "embedder" not in vars(again)
    other = manifest(tmp_path / "v.jsonl", {"text": "three", "id": "mine"})
    assert again.ingest(list(expand([other]))).added == 1
    assert [row.caption for row in store.get(["mine"])] == ["three"]


def made(seed: int, dim: int = 32) -> Regions:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((12, 2, 2), np.float32), axis=1).reshape(12, 4).astype(np.float16)
    x1, y1, x2, y2 = corners.T
    boxes = np.stack([x1, y1, x2, y2, x2 - x1, y2 - y1], axis=1).astype(np.float16).astype(np.float32)
    boxes = np.concatenate([boxes, boxes[:, 4:5] * boxes[:, 5:6]], axis=1)
    features = rng.random((12, dim), np.float32).astype(np.float16).astype(np.float32)
    return Regions(features, boxes, np.ones(12, np.float32))


@pytest.mark.parametrize("form", ["lmdb", "npz", "one npz", "tsv"])
def test_ready_regions_are_encoded_as_they_are(form: str, store, tiny, tiny_model: str, tmp_path: Path) -> None:
    photos = {f"photo_{n}.npz": made(n) for n in range(3)}
    path = tmp_path / "feat_th0.2_max100_min10"
    if form == "tsv":
        path = tmp_path / "x.tsv"
        sizes = np.array([100, 50, 100, 50], np.float32)
        path.write_text("".join(
            tsv_line(name.removesuffix(".npz"), one.boxes[:, :4] * sizes, one.features, 100, 50)
            for name, one in photos.items()
        ))  # fmt: skip
    elif form == "lmdb":
        write_lmdb(path, photos.items())
    else:
        write_npz(path, photos.items())
        path = path / "*_?.npz" if form == "one npz" else path
    ingestor = Ingestor(store, tiny_model)
    sources = [Source.from_dict(json.loads(json.dumps(source.to_dict()))) for source in expand([str(path)])]
    report = ingestor.ingest(sources)
    assert (report.added, report.failed) == (3, [])
    row = store.get(["photo_1"], with_embeddings=True)[0]
    features = tiny.image_features([photos["photo_1.npz"]])
    vectors, kept = tiny.encode_features(features), tiny.reranker.keep(features)
    np.testing.assert_allclose(row.embedding, vectors[0], atol=2e-3)
    stored = ingestor.region_store.get(["photo_1"])["photo_1"]
    np.testing.assert_allclose(stored["features"], kept[0]["features"], atol=0.02)
    assert (row.width, row.height) == ((100, 50) if form == "tsv" else (0, 0))
    assert row.kind == "image"
    assert "photo_1" in row.source
    again = Ingestor(store, tiny_model)
    assert again.ingest(sources).unchanged == 3
    assert "embedder" not in vars(again)


def test_bad_regions_fail_one_by_one(store, tiny_model: str, tmp_path: Path) -> None:
    good, nan = made(1), made(2)
    nan.features[0, 0] = np.nan
    large = made(3)
    large.boxes[0, 0] = np.inf
    folder = tmp_path / "features"
    write_npz(folder, [("good", good), ("nan", nan), ("large", large), ("narrow", made(4, dim=8))])
    (folder / "torn.npz").write_bytes((folder / "good.npz").read_bytes()[:100])
    (folder / "text.npz").write_text("no zip")
    report = Ingestor(store, tiny_model).ingest(list(expand([str(folder)])))
    assert report.added == store.count() == 1
    reasons = {Path(failure.source).name: failure.reason for failure in report.failed}
    assert reasons.keys() == {"nan.npz", "large.npz", "narrow.npz", "torn.npz", "text.npz"}
    assert "not finite" in reasons["nan.npz"]
    assert "not finite" in reasons["large.npz"]
    assert "another extractor" in reasons["narrow.npz"]
    assert "not region features" in reasons["torn.npz"]


def test_files_that_hold_no_region_features(tmp_path: Path) -> None:
    line = tsv_line("one", made(1).boxes[:, :4], made(1).features, 10, 10)
    for text, words in (("a\tb\n", "2 columns"), ("", "1 columns"), (line + line, "one: twice")):
        (tmp_path / "x.tsv").write_text(text)
        with pytest.raises(UsageError, match=words):
            expand([str(tmp_path / "x.tsv")])
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb/data.mdb").write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match="cannot be read as an LMDB"):
        expand([str(tmp_path / "lmdb")])
    write_lmdb(tmp_path / "other", [("a.npz", made(1))])
    source = Source(str(tmp_path / "other"), member="gone.npz", kind="regions")
    with pytest.raises(InputError, match=r"gone\.npz: no such record"):
        read(source)
    with pytest.raises(InputError, match="cannot be read as an LMDB"):
        read(replace(source, path=str(tmp_path / "lmdb")))


def test_sizes_of_ready_regions_come_from_the_metadata(store, tiny_model: str, tmp_path: Path) -> None:
    write_npz(tmp_path / "features", [("a", made(1))])
    line = {"path": "features/a.npz", "width": 640, "height": 480, "caption": "a dog", "id": "own"}
    Ingestor(store, tiny_model).ingest(list(expand([manifest(tmp_path / "m.jsonl", line)])))
    (row,) = store.get(["own"])
    assert (row.width, row.height, row.caption) == (640, 480, "a dog")


def test_all_kinds_under_another_model(
    store, tiny_model: str, other_model: str, photo_folder: Callable, tmp_path: Path
) -> None:
    """Each row is built again from its source: a photo, a photo in a tar file, a record, a text."""
    write_lmdb(tmp_path / "lmdb", [("a.npz", made(1))])
    write_npz(tmp_path / "features", [("b", made(2))])
    (tmp_path / "c.tsv").write_text(tsv_line("c", made(3).boxes[:, :4] * 100, made(3).features, 100, 100))
    shard = make_tar(tmp_path / "s.tar", {f"{n}.jpg": make_photo(n + 20) for n in range(3)})
    texts = manifest(tmp_path / "t.jsonl", {"text": "one", "topic": 1}, {"text": "two", "id": "mine"})
    paths = [tmp_path / "lmdb", tmp_path / "features", tmp_path / "c.tsv", photo_folder(2), shard, texts]
    assert Ingestor(store, tiny_model).ingest(list(expand(list(map(str, paths))))).added == 10
    before = {row.id: row for row in store.iterate()}
    assert reembed(store, other_model).added == 10
    after = {row.id: row for row in store.iterate(with_embeddings=True)}
    assert {id: replace(row, embedding=None) for id, row in after.items()} == before
    other = LightningDOTEmbedder(other_model, device="cpu")
    np.testing.assert_allclose(after["mine"].embedding, other.encode_texts(["two"])[0], atol=1e-4)
    np.testing.assert_allclose(after["a"].embedding, other.encode_images([made(1)])[0], atol=2e-3)


def test_what_no_store_can_keep_fails_alone(store, tiny_model: str, photo_folder: Callable) -> None:
    """A field that a store refuses must not make the whole chunk fail."""
    folder = photo_folder(4)
    sources = list(expand([str(folder)]))
    odd = [
        {"caption": "nul \0"}, {"metadata": {"n": 2**70}}, {"metadata": {"long": "x" * 70_000}},
    ]  # fmt: skip
    mixed = [sources[0], *(source.described_by(fields) for source, fields in zip(sources[1:], odd, strict=True))]
    report = Ingestor(store, tiny_model).ingest(mixed)
    assert report.added == store.count() == 1
    assert [failure.source for failure in report.failed] == [source.name for source in sources[1:]]
    for failure, words in zip(report.failed, ("NUL", "64 bits", "at most 65536"), strict=True):
        assert words in failure.reason
