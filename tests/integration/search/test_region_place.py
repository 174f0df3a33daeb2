"""Processes in different folders, on each kind of store: one place of region data, or one line that says where."""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ldot_milvus import Retriever, open_store
from ldot_milvus.doctor import examine
from ldot_milvus.errors import RegionStoreNotFound
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.ingest.region_data import region_store_to_delete_from
from ldot_milvus.settings import Settings
from ldot_milvus.sources import Source, expand
from ldot_milvus.stores import VectorStore
from ldot_milvus.stores.region_place import RegionRecord

pytestmark = [pytest.mark.xdist_group("milvus"), pytest.mark.servers]

PHOTOS = 4


@dataclass
class Case:
    """A collection that was filled in folder A; the working directory is now folder B, without any setting."""

    store: VectorStore
    sources: list[Source]
    regions: Path


@pytest.fixture(params=["local", "lite", "server"])
def case(
    request: pytest.FixtureRequest,
    tiny_model: str,
    photo_folder: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Case]:
    """For the stores that have a folder of their own, LDOT_REGION_STORE named another one during the ingestion."""
    for name in "AB":
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "A")
    server = request.param == "server"
    if server:
        address = str(request.getfixturevalue("milvus_url"))
    else:
        address = {"local": f"faiss:{tmp_path}/store", "lite": f"{tmp_path}/x.db"}[request.param]
        monkeypatch.setenv("LDOT_REGION_STORE", "./regions")
    sources = list(expand([str(photo_folder(PHOTOS))]))
    with open_store(address, f"m{secrets.token_hex(6)}") as store:
        assert Ingestor(store, tiny_model).ingest(sources).added == PHOTOS
        if not server:
            monkeypatch.delenv("LDOT_REGION_STORE")
        monkeypatch.chdir(tmp_path / "B")
        yield Case(store, sources, tmp_path / "A" / ("ldot-data/regions" if server else "regions"))
        if server:
            store.server.call("drop_collection", f"{store.collection}__1")  # type: ignore[attr-defined]


def test_another_folder_changes_nothing(
    case: Case, tiny, tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = RegionRecord.of(case.store)
    assert record is not None
    assert record.address == str(case.regions)
    hits = Retriever(tiny, case.store).search("a red square")
    assert None not in [hit.rerank_score for hit in hits]
    again = Ingestor(case.store, tiny_model)
    assert again.ingest(case.sources).unchanged == PHOTOS
    assert again._embedder is None
    assert RegionRecord.of(case.store) == record
    assert not list((tmp_path / "B").iterdir())
    assert not caplog.records


def test_a_place_out_of_reach_is_named_with_the_setting(
    case: Case, tiny, tiny_model: str, tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.move(case.regions, tmp_path / "mount")
    retriever = Retriever(tiny, case.store)
    message = rf"{case.regions}, and this machine does not have it there: set LDOT_REGION_STORE to [^\n]*$"
    for _ in range(2):
        with pytest.raises(RegionStoreNotFound, match=message):
            retriever.search("a red square")
    assert len(retriever.search("a red square", rerank=0)) == PHOTOS
    with pytest.raises(RegionStoreNotFound, match=message):
        Ingestor(case.store, tiny_model)
    with caplog.at_level(logging.WARNING):
        assert region_store_to_delete_from(case.store, tiny_model) is None
    assert "region data of deleted photos is not removed" in caplog.text
    settings = Settings(store=case.store.address, collection=case.store.collection, model=tiny_model)
    monkeypatch.setattr("ldot_milvus.doctor._indexes", lambda settings: "")  # which takes seconds
    (finding,) = [finding for finding in examine(settings) if finding.part == "region store"]
    assert not finding.ok
    assert "set LDOT_REGION_STORE" in finding.text

    monkeypatch.setenv("LDOT_REGION_STORE", str(tmp_path / "mount"))
    assert None not in [hit.rerank_score for hit in Retriever(tiny, case.store).search("a red square")]
    again = Ingestor(case.store, tiny_model)
    assert again.ingest(case.sources).unchanged == PHOTOS
    assert again._embedder is None


def test_texts_alone_record_no_place(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDOT_REGION_STORE", str(tmp_path / "regions"))
    with open_store(f"faiss:{tmp_path}/store", "texts") as store:
        assert Ingestor(store, tiny_model).ingest([Source("notes", kind="text", caption="a red square")]).added == 1
        assert RegionRecord.of(store) is None
    assert not (tmp_path / "regions").exists()
