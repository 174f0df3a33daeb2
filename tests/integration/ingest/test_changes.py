"""Deletion of rows and their region data by id, source and filter, and pruning."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ldot_milvus import open_store
from ldot_milvus.errors import FilterError, UsageError
from ldot_milvus.ingest.changes import RowChange, change_rows, prune, rows_to_delete
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.ingest.region_data import region_store_to_delete_from
from ldot_milvus.sources import expand
from ldot_milvus.sources.tars import find_member
from ldot_milvus.stores import VectorStore
from tests.conftest import make_photo

Folder = Callable[[int], Path]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_folder: Folder) -> Path:
    """The working directory: ``photos/`` with six photos, and a tar file with three."""
    photo_folder(6)
    monkeypatch.chdir(tmp_path)
    with tarfile.open("photos/shard.tar", "w") as tar:
        for seed in range(100, 103):
            Path(f"{seed}.jpg").write_bytes(make_photo(seed))
            tar.add(f"{seed}.jpg")
            Path(f"{seed}.jpg").unlink()
    return tmp_path


@pytest.fixture
def store(folder: Path, tiny_model: str):
    with open_store("faiss:./store", "images") as opened:
        Ingestor(opened, tiny_model).ingest(list(expand(["photos", "photos/shard.tar"])))
        assert opened.count() == 9
        yield opened


def found(store: VectorStore, **what) -> set[str]:
    return {here(row.source) for row in rows_to_delete(store, **what)}


def here(source: str) -> str:
    """An absolute source, relative to the working directory."""
    assert os.path.isabs(source)
    return os.path.relpath(source)


def test_what_is_meant(store: VectorStore) -> None:
    (first, second, *_) = store.iterate()
    assert found(store, ids=[first.id, "none", first.id]) == {here(first.source)}
    for name in ("photos/0003.jpg", "./photos/../photos//0003.jpg", os.path.abspath("photos/0003.jpg")):
        assert found(store, sources=[name, "none"]) == {"photos/0003.jpg"}
    assert found(store, filter={"id": second.id}) == {here(second.source)}
    for nothing in ({}, {"filter": {}}):
        with pytest.raises(UsageError):
            found(store, **nothing)
    with pytest.raises(FilterError):
        found(store, filter={"colour": 1})


def test_a_deleted_row_leaves_nothing_behind(store: VectorStore, tiny_model: str) -> None:
    doomed, kept, *_ = store.iterate()
    regions = region_store_to_delete_from(store, tiny_model)
    assert regions is not None
    assert regions.has([doomed.id, kept.id]) == {doomed.id, kept.id}
    report = change_rows(store, [RowChange(doomed.id), RowChange("none")], regions)
    assert (report.deleted, report.unchanged, report.total) == (1, 1, 2)
    assert store.count() == 8
    assert regions.has([doomed.id, kept.id]) == {kept.id}
    assert change_rows(store, [RowChange(doomed.id)], regions).deleted == 0


def test_a_worker_without_the_model_deletes_rows_and_says_what_stays(
    store: VectorStore, caplog: pytest.LogCaptureFixture
) -> None:
    assert region_store_to_delete_from(store, "no-such-model") is None
    assert "region data of deleted photos is not removed" in caplog.text


def test_prune_finds_what_is_gone_and_what_has_moved(store: VectorStore) -> None:
    Path("photos/0000.jpg").unlink()
    Path("photos/0001.jpg").rename("photos/renamed.jpg")
    shutil.copy("photos/0002.jpg", "photos/copy.jpg")
    Path("photos/new.jpg").write_bytes(make_photo(55))
    Path("photos/0003.jpg").rename("photos/.hidden.jpg")
    result = prune(store, ["photos"], expand(["photos"]))
    assert {here(row.source) for row in result.gone} == {"photos/0000.jpg", "photos/0003.jpg"}
    assert [(here(row.source), here(to)) for row, to in result.moved] == [("photos/0001.jpg", "photos/renamed.jpg")]
    report = change_rows(store, result.changes())
    assert (report.deleted, report.updated) == (2, 1)
    again = prune(store, ["./photos/"], expand(["./photos/"]))
    assert again.changes() == []
    assert "photos/renamed.jpg" in {here(row.source) for row in store.iterate()}


def test_prune_leaves_alone_what_it_does_not_list(store: VectorStore, tiny_model: str) -> None:
    """Pruning ignores tar files and LMDBs below the folder, photos without a suffix, and other folders."""
    Path("photos/features").mkdir()
    Path("photos/features/data.mdb").touch()
    (row, *_) = store.iterate(with_embeddings=True)
    store.upsert([replace(row, id="record", source="photos/features/record", embedding=row.embedding)])
    Path("photos/nameless").write_bytes(make_photo(70))
    Path("other").mkdir()
    Path("other/a.jpg").write_bytes(make_photo(71))
    Ingestor(store, tiny_model).ingest(list(expand(["photos/nameless", "other"])))
    Path("other/a.jpg").unlink()
    assert prune(store, ["photos"], expand(["photos"])).changes() == []


def test_prune_of_a_tar(store: VectorStore) -> None:
    with tarfile.open("photos/new.tar", "w") as tar, tarfile.open("photos/shard.tar") as old:
        for name in ("100.jpg", "102.jpg"):
            tar.addfile(old.getmember(name), old.extractfile(name))
    Path("photos/new.tar").replace("photos/shard.tar")
    result = prune(store, ["photos/shard.tar"], expand(["photos/shard.tar"]))
    assert [here(row.source) for row in result.gone] == ["photos/shard.tar/101.jpg"]
    Path("photos/shard.tar").unlink()
    assert {here(row.source) for row in prune(store, ["photos"], expand(["photos"])).gone} == {
        f"photos/shard.tar/{n}.jpg" for n in (100, 101, 102)
    }


def test_prune_is_refused_where_not_all_can_be_seen(store: VectorStore) -> None:
    with pytest.raises(UsageError, match="neither"):
        prune(store, ["photos/0000.jpg"], expand(["photos/0000.jpg"]))
    whole = Path("photos/shard.tar").read_bytes()
    Path("photos/shard.tar").write_bytes(whole[:2000])
    with pytest.raises(UsageError, match="nothing is pruned"):
        prune(store, ["photos/shard.tar"], expand(["photos/shard.tar"]))


def test_own_ids_are_told_by_their_content(folder: Path, tiny_model: str) -> None:
    with open_store("faiss:./own", "images") as store:
        (source,) = expand(["photos/0000.jpg"])
        Ingestor(store, tiny_model).ingest([replace(source, id="mine")])
        Path("photos/0000.jpg").rename("photos/elsewhere.jpg")
        result = prune(store, ["photos"], expand(["photos"]))
        assert [(row.id, here(to)) for row, to in result.moved] == [("mine", "photos/elsewhere.jpg")]


def test_a_row_of_a_member_that_is_left_out_today_stays(store: VectorStore, tiny_model: str) -> None:
    """An earlier version ingested what is now taken for a system folder: its photo exists."""
    with tarfile.open("old.tar", "w") as tar:
        for name, seed in (("__MACOSX/a.jpg", 200), ("b.jpg", 201)):
            Path("member.jpg").write_bytes(make_photo(seed))
            tar.add("member.jpg", name)
    members = [find_member(os.path.abspath("old.tar"), name) for name in ("__MACOSX/a.jpg", "b.jpg")]
    assert Ingestor(store, tiny_model).ingest(members).added == 2
    assert prune(store, ["old.tar"], expand(["old.tar"])).changes() == []
