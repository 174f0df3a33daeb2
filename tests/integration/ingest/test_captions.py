"""Captions: all that any form of input gives, in order, whatever the chunks; a rerun changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ldot_milvus import open_store
from ldot_milvus.batches import batched
from ldot_milvus.ingest.changes import change_rows, prune
from ldot_milvus.ingest.ingestor import Ingestor, Report
from ldot_milvus.sources import expand, join_descriptions
from ldot_milvus.sources.metadata import load_metadata
from ldot_milvus.stores import VectorStore
from tests.conftest import make_photo
from tests.faulty import QuickModel
from tests.integration.ingest.test_reconciliation import write_tar

PHOTO, OTHER = make_photo(1, (20, 20)), make_photo(2, (20, 20))
Caption = list[str]
Write = Callable[[Path, Caption], tuple[list[str], str | None]]
"""Writes the photos with the captions of PHOTO, and returns the PATH arguments and the metadata file."""


def lines(path: Path, *values: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def manifest_lines(root: Path, captions: Caption) -> tuple[list[str], str | None]:
    described = [{"path": "a.jpg", "caption": caption} for caption in captions]
    other = {"path": "b.jpg", "caption": "other"}
    return [lines(root / "m.jsonl", *described[:1], other, *described[1:])], None


def manifest_list(root: Path, captions: Caption) -> tuple[list[str], str | None]:
    return [lines(root / "m.jsonl", {"path": "a.jpg", "captions": captions}, {"path": "b.jpg"})], None


def two_manifests(root: Path, captions: Caption) -> tuple[list[str], str | None]:
    first = lines(root / "m.jsonl", {"path": "b.jpg"}, {"path": "a.jpg", "caption": captions[0]})
    return [first, lines(root / "n.jsonl", *({"path": "./a.jpg", "caption": one} for one in captions[1:]))], None


def copies(root: Path, captions: Caption) -> tuple[list[str], str | None]:
    """One copy of the photo for each caption, as in a dataset that was downloaded without deduplication."""
    names = [f"copy{number}.jpg" for number in range(len(captions))]
    for name in names:
        (root / name).write_bytes(PHOTO)
    described = [{"path": name, "caption": caption} for name, caption in zip(names, captions, strict=True)]
    return [lines(root / "m.jsonl", *described, {"path": "b.jpg"})], None


def metadata_lines(root: Path, captions: Caption) -> tuple[list[str], str | None]:
    described = [{"file": "a.jpg", "caption": caption} for caption in captions]
    return [str(root)], lines(root / "m.jsonl", *described)


def tar(root: Path, captions: Caption) -> tuple[list[str], str | None]:
    text = "\n".join(captions[:2]).encode()
    write_tar(root / "s.tar", [
        ("k.jpg", PHOTO), ("k.txt", text), ("k.json", json.dumps({"captions": captions[2:]}).encode()), ("b.jpg", OTHER)
    ])  # fmt: skip
    return [str(root / "s.tar")], None


def tar_members(root: Path, captions: Caption) -> tuple[list[str], str | None]:
    members = [(f"{n}.jpg", PHOTO) for n in range(len(captions))]
    texts = [(f"{n}.txt", caption.encode()) for n, caption in enumerate(captions)]
    write_tar(
        root / "s.tar", [*(pair for pairs in zip(members, texts, strict=True) for pair in pairs), ("b.jpg", OTHER)]
    )
    return [str(root / "s.tar")], None


FORMS = [manifest_lines, manifest_list, two_manifests, copies, metadata_lines, tar, tar_members]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(PHOTO)
    (photos / "b.jpg").write_bytes(OTHER)
    return photos


@pytest.fixture
def store(tmp_path: Path):
    with open_store(f"faiss:{tmp_path}/store", "photos") as opened:
        yield opened


@pytest.fixture
def enqueue(store: VectorStore, root: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch):
    """Ingests what a form of input writes, in chunks, and returns the report."""
    monkeypatch.setattr(Ingestor, "embedder", QuickModel())

    def run(form: Write, captions: Caption, chunk: int = 64) -> Report:
        paths, metadata = form(root, captions)
        described = load_metadata(metadata) if metadata else None
        total = Report()
        for sources in batched(join_descriptions(expand(paths, metadata=described)), chunk):
            total.add(Ingestor(store, tiny_model).ingest(sources))
        assert total.failed == []
        return total

    return run


def caption(store: VectorStore) -> str:
    (found,) = {row.caption for row in store.iterate()} - {"", "other"}
    return found


@pytest.mark.parametrize("chunk", [1, 2, 64])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_all_captions_in_order(enqueue, store: VectorStore, form: Write, chunk: int) -> None:
    given = ["a red bus", "a bus in the street", "a red bus", "public transport"]
    enqueue(form, given, chunk)
    assert caption(store) == "a red bus\na bus in the street\npublic transport"
    rerun = enqueue(form, given, chunk)
    assert (rerun.added, rerun.updated) == (0, 0)
    assert store.count() == 2


@pytest.mark.parametrize("chunk", [1, 64])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_photo_that_loses_or_gains_a_caption_is_not_encoded(
    enqueue, store: VectorStore, root: Path, form: Write, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue(form, ["one", "two", "three"], chunk)
    monkeypatch.setattr(Ingestor, "embedder", None)
    for given in (["one", "two", "three", "four"], ["one", "three"], ["three", "new"]):
        shutil.rmtree(root)
        root.mkdir()
        (root / "a.jpg").write_bytes(PHOTO)
        (root / "b.jpg").write_bytes(OTHER)
        report = enqueue(form, given, chunk)
        assert report.added == 0
        if form not in (copies, tar_members):  # what a copy that is gone has said, is said until prune notices
            assert report.updated == 1
            assert caption(store) == "\n".join(given)
        assert set(given) <= set(caption(store).split("\n"))


def test_a_photo_that_moves_takes_its_captions_along(enqueue, store: VectorStore, root: Path) -> None:
    """The new place may say something else; the old one's captions are gone with it."""
    enqueue(manifest_lines, ["one", "two"])
    (root / "a.jpg").rename(root / "moved.jpg")
    assert enqueue(lambda root, _: ([str(root / "moved.jpg")], None), []).updated == 1
    assert caption(store) == "one\ntwo"
    (root / "moved.jpg").rename(root / "again.jpg")
    enqueue(lambda root, _: ([lines(root / "m.jsonl", {"path": "again.jpg", "caption": "new"})], None), [])
    assert caption(store) == "new"


def test_prune_gives_the_captions_of_a_lost_copy_to_the_one_that_is_left(
    enqueue, store: VectorStore, root: Path
) -> None:
    enqueue(copies, ["one", "two"])
    for name in ("copy0.jpg", "a.jpg"):
        (root / name).unlink()
    change_rows(store, prune(store, [str(root)], list(expand([str(root)]))).changes())
    assert caption(store) == "two"
    (row,) = (row for row in store.iterate() if row.caption)
    assert row.source == str(root / "copy1.jpg")


def test_more_copies_than_a_row_lists_keep_their_captions(enqueue, store: VectorStore) -> None:
    given = [f"caption {number}" for number in range(14)]
    for chunk in (1, 1, 64, 3):
        report = enqueue(copies, given, chunk)
        assert caption(store).split("\n") == given
    assert (report.added, report.updated) == (0, 0)


@pytest.mark.parametrize("chunk", [1, 64])
def test_fields_of_copies_are_merged_once(enqueue, store: VectorStore, chunk: int) -> None:
    def form(root: Path, _: Caption) -> tuple[list[str], str | None]:
        for name in ("c1.jpg", "c2.jpg"):
            (root / name).write_bytes(PHOTO)
        values = ({"path": "c1.jpg", "album": "x", "n": 1}, {"path": "c2.jpg", "album": "y", "m": 2})
        return [lines(root / "m.jsonl", *values)], None

    enqueue(form, [], chunk)
    (row,) = store.iterate()
    assert {name: row.metadata[name] for name in ("album", "n", "m")} == {"album": "x", "n": 1, "m": 2}
    assert enqueue(form, [], chunk).unchanged == 2


def test_captions_that_are_together_too_long_fail(store: VectorStore, root: Path, tiny_model: str, monkeypatch) -> None:
    monkeypatch.setattr(Ingestor, "embedder", QuickModel())
    long = ["x" * 5000, "y" * 5000]
    for form, chunk in ((copies, 1), (copies, 64), (manifest_lines, 64)):
        paths, _ = form(root, long)
        total = Report()
        sources = join_descriptions(expand(paths))
        for some in batched(sources, chunk):
            total.add(Ingestor(store, tiny_model).ingest(some))
        (failure,) = total.failed
        assert "8192" in failure.reason
        assert total.total == len(sources)
