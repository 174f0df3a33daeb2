"""Ingestion of photos: each once, with any other files in the folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ldot_milvus import open_store
from ldot_milvus.errors import ModelMismatch, StoreError, UsageError
from ldot_milvus.images import content_id
from ldot_milvus.ingest.ingestor import PART_SIZE, Ingestor, Report
from ldot_milvus.sources import Source, expand
from ldot_milvus.sources.metadata import load_metadata
from ldot_milvus.stores.identity import row_id
from tests.conftest import make_photo

Folder = Callable[[int], Path]


@pytest.fixture
def store(tmp_path: Path):
    with open_store(f"faiss:{tmp_path / 'store'}", "photos") as opened:
        yield opened


def test_a_row_is_what_the_design_says(store, tiny_model: str, photo_folder: Folder) -> None:
    folder = photo_folder(3)
    metadata = folder.parent / "m.jsonl"
    metadata.write_text('{"file": "0001.jpg", "captions": ["a", "b"], "namespace": "me", "album": 7}\n')
    ingestor = Ingestor(store, tiny_model)
    report = ingestor.ingest(list(expand([str(folder)], metadata=load_metadata(str(metadata)))))
    assert (report.added, report.updated, report.unchanged, report.failed) == (3, 0, 0, [])
    id = row_id("me", content_id((folder / "0001.jpg").read_bytes()))
    (row,) = store.get([id], with_embeddings=True)
    assert (row.kind, row.namespace, row.caption, row.width, row.height) == ("image", "me", "a\nb", 80, 60)
    assert row.metadata == {"album": 7, "content_id": content_id((folder / "0001.jpg").read_bytes())}
    assert row.source == str(folder / "0001.jpg")
    expected = ingestor.embedder.encode_images([folder / "0001.jpg"])[0]
    np.testing.assert_allclose(row.embedding, expected, atol=1e-4)
    assert set(ingestor.region_store.get([row.id])) == {row.id}


def test_again_changes_nothing_and_loads_no_model(store, tiny_model: str, photo_folder: Folder) -> None:
    sources = list(expand([str(photo_folder(4))]))
    Ingestor(store, tiny_model).ingest(sources)
    again = Ingestor(store, tiny_model)
    report = again.ingest(sources)
    assert (report.added, report.unchanged) == (0, 4)
    assert again._embedder is None


def test_the_same_bytes_twice_are_one_row(store, tiny_model: str, photo_folder: Folder) -> None:
    folder = photo_folder(2)
    shutil.copy(folder / "0000.jpg", folder / "copy.jpg")
    report = Ingestor(store, tiny_model).ingest(list(expand([str(folder)])))
    assert (report.added, report.unchanged, store.count()) == (2, 1, 2)


def test_changed_description_is_updated_without_the_model(store, tiny_model: str, photo_folder: Folder) -> None:
    (source,) = expand([str(photo_folder(1))])
    Ingestor(store, tiny_model).ingest([source])
    before = store.get([store_id(store)], with_embeddings=True)[0]
    again = Ingestor(store, tiny_model)
    report = again.ingest([Source(source.path, caption="new", metadata={"album": "b"})])
    assert (report.added, report.updated) == (0, 1)
    after = store.get([before.id], with_embeddings=True)[0]
    assert (after.caption, after.metadata) == ("new", {"album": "b"})
    assert np.array_equal(after.embedding, before.embedding)
    assert again._embedder is None
    # Fields that the new source leaves out are kept.
    assert again.ingest([source]).unchanged == 1
    assert store.get([before.id])[0].caption == "new"


def store_id(store) -> str:
    (row,) = store.iterate()
    return row.id


def test_own_ids_replace_their_photo(store, tiny_model: str, photo_folder: Folder) -> None:
    folder = photo_folder(2)
    ingestor = Ingestor(store, tiny_model)
    assert ingestor.ingest([Source(str(folder / "0000.jpg"), id="mine")]).added == 1
    assert ingestor.ingest([Source(str(folder / "0000.jpg"), id="mine")]).unchanged == 1
    before = store.get(["mine"], with_embeddings=True)[0]
    assert ingestor.ingest([Source(str(folder / "0001.jpg"), id="mine")]).added == 1
    after = store.get(["mine"], with_embeddings=True)[0]
    assert store.count() == 1
    assert not np.allclose(after.embedding, before.embedding)


def test_lost_region_data_is_made_again(store, tiny_model: str, photo_folder: Folder) -> None:
    sources = list(expand([str(photo_folder(2))]))
    ingestor = Ingestor(store, tiny_model)
    ingestor.ingest(sources)
    lost = store_id_of_first(store)
    ingestor.region_store.delete([lost])
    assert ingestor.ingest(sources).added == 1
    assert ingestor.region_store.has([lost]) == {lost}


def store_id_of_first(store) -> str:
    return next(iter(store.iterate())).id


def test_bad_files_are_reported_and_the_rest_goes_in(store, tiny_model: str, photo_folder: Folder) -> None:
    folder = photo_folder(3)
    whole = make_photo(9)
    (folder / "corrupt.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4)
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "mislabelled.jpg").write_bytes(make_photo(10, format="PNG"))
    (folder / "text.jpg").write_text("this is no photo")
    report = Ingestor(store, tiny_model).ingest(list(expand([str(folder)])))
    assert report.added == store.count() == 3
    reasons = {Path(failure.source).name: failure.reason for failure in report.failed}
    assert reasons.keys() == {"corrupt.jpg", "truncated.jpg", "zero.jpg", "mislabelled.jpg", "text.jpg"}
    assert "empty" in reasons["zero.jpg"]
    assert "truncated" in reasons["truncated.jpg"]
    assert "PNG" in reasons["mislabelled.jpg"]
    assert "not an image" in reasons["text.jpg"]
    assert all(str(folder) not in reason for reason in reasons.values())


def test_what_cannot_be_decoded_loads_no_model(store, tiny_model: str, photo_folder: Folder) -> None:
    """Nor does a rerun over it, and a part of such files before or after a part of photos loads it only there."""
    folder = photo_folder(3)
    for number in range(2 * PART_SIZE):
        (folder / f"a{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes([number]) * 100)
    (folder / "truncated.jpg").write_bytes(make_photo(9)[:400])
    (folder / "features.npz").write_bytes(b"no regions")
    sources = [*expand([str(folder)]), Source(str(folder / "features.npz"), kind="regions")]
    Ingestor(store, tiny_model).ingest(sources[:3])
    again = Ingestor(store, tiny_model)
    report = again.ingest(sources)
    assert (report.added, report.unchanged, len(report.failed)) == (0, 3, 2 * PART_SIZE + 2)
    assert again._embedder is None
    (folder / "zz.jpg").write_bytes(make_photo(10))
    report = again.ingest(list(expand([str(folder)])))
    assert (report.added, report.unchanged, len(report.failed)) == (1, 3, 2 * PART_SIZE + 1)
    assert again._embedder is not None


def test_another_model_is_refused_before_anything_is_read(
    store, tiny_model: str, other_model: str, photo_folder: Folder
) -> None:
    Ingestor(store, tiny_model).ingest(list(expand([str(photo_folder(1))])))
    with pytest.raises(ModelMismatch):
        Ingestor(store, other_model)
    with pytest.raises(UsageError, match="no-such-model"):
        Ingestor(store, "no-such-model")


def test_reports_add_up_and_travel() -> None:
    total = Report()
    total.add(Report(added=2, seconds={"read": 1.0}))
    total.add(Report.from_dict(Report(unchanged=1, seconds={"read": 0.5, "write": 1.0}).to_dict()))
    assert (total.total, total.seconds) == (3, {"read": 1.5, "write": 1.0})


def test_the_same_broken_bytes_twice_are_two_failures(store, tiny_model: str, photo_folder: Folder) -> None:
    folder = photo_folder(1)
    for name in ("b.jpg", "c.jpg"):
        (folder / name).write_bytes(b"\xff\xd8\xff\xe0 not much of a photo")
    report = Ingestor(store, tiny_model).ingest(list(expand([str(folder)])))
    assert (report.added, report.unchanged, report.total) == (1, 0, 3)
    assert {Path(failure.source).name for failure in report.failed} == {"b.jpg", "c.jpg"}


def test_more_than_one_part_with_duplicates_across_them(store, tiny_model: str, photo_folder: Folder) -> None:
    """A chunk of several parts: reading, encoding and writing overlap, and every photo is counted once."""
    folder = photo_folder(2 * PART_SIZE + 5)
    shutil.copy(folder / "0000.jpg", folder / "zz.jpg")
    sources = list(expand([str(folder)]))
    report = Ingestor(store, tiny_model).ingest(sources)
    assert (report.added, report.unchanged, store.count()) == (2 * PART_SIZE + 5, 1, 2 * PART_SIZE + 5)
    assert report.bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert {"read", "decode", "regions", "encode", "write"} <= report.seconds.keys()


def test_a_store_that_fails_behind_the_model_is_an_error(store, tiny_model: str, photo_folder: Folder) -> None:
    sources = list(expand([str(photo_folder(2 * PART_SIZE))]))
    ingestor = Ingestor(store, tiny_model)

    def full(records) -> int:
        raise StoreError("the disk is full")

    ingestor.store.upsert = full
    with pytest.raises(StoreError, match="full"):
        ingestor.ingest(sources)
