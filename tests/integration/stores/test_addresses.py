"""Addresses: the store that each form opens, the files beside it, and absolute paths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ldot_milvus.errors import UsageError
from ldot_milvus.ingest.journal import Run, open_journal
from ldot_milvus.ingest.target import Target
from ldot_milvus.settings import Settings
from ldot_milvus.stores import Record, open_store
from ldot_milvus.stores.region_place import RegionPlace
from ldot_milvus.stores.regions import RegionStore, absolute_region_address
from ldot_milvus.stores.registry import parse_address

ROWS = [Record("a", np.ones(4, np.float32))]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is both working directory and home directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("address", "store", "regions", "journal"),
    [
        ("faiss:./x", "faiss:HOME/x", "HOME/x/regions", "HOME/x/ingestion.sqlite"),
        ("faiss:~/x", "faiss:HOME/x", "HOME/x/regions", "HOME/x/ingestion.sqlite"),
        ("faiss:a/../x.db", "faiss:HOME/x.db", "HOME/x.db/regions", "HOME/x.db/ingestion.sqlite"),
        ("./x.db", "HOME/x.db", "HOME/x.db-regions", "HOME/x.db-ingestion.sqlite"),
        ("~/x.db", "HOME/x.db", "HOME/x.db-regions", "HOME/x.db-ingestion.sqlite"),
        ("http://localhost:19530", "http://localhost:19530", "HOME/ldot-data/regions", None),
        ("https://host.db", "https://host.db", "HOME/ldot-data/regions", None),
    ],
)
def test_each_form(address: str, store: str, regions: str, journal: str | None, home: Path) -> None:
    """Parsing an address connects to nothing and creates nothing."""
    expected = [text and text.replace("HOME", str(home)) for text in (store, regions, journal)]
    parsed = parse_address(address)
    with open_store(address, "photos") as opened:
        found = [opened.address, absolute_region_address(parsed.region_store), parsed.journal]
    assert found == expected
    assert parse_address(parsed.address).address == parsed.address == opened.address
    assert not list(home.iterdir())


@pytest.mark.parametrize("address", ["", "faiss:", "./folder", "redis://x", "FAISS:x", "s3://bucket/x.db", None, 5])
def test_an_address_of_no_known_form(address: str) -> None:
    forms = r"faiss:PATH \(a local folder\), PATH.db \(Milvus Lite\) or http://HOST:19530 \(a Milvus server\)"
    with pytest.raises(UsageError, match=forms):
        parse_address(address)


@pytest.mark.parametrize("address", ["faiss:./store", "./x.db"])
def test_a_store_stays_where_it_was_opened(address: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "elsewhere").mkdir()
    with open_store(address, "photos") as store:
        monkeypatch.chdir(home / "elsewhere")
        regions = RegionStore(RegionPlace(store).find(), "m")
        regions.put({"a": {"features": np.ones((1, 4), np.float16)}})
        assert store.upsert(ROWS) == store.count() == 1
        with store.successor() as successor:
            assert successor.address == store.address
    assert not list((home / "elsewhere").iterdir())
    assert regions.has(["a"]) == {"a"}
    assert list(home.rglob("*.safetensors"))


def test_region_store_and_journal_stay_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions, journal = RegionStore("./regions", "m"), open_journal("~/journal.sqlite")
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert regions.address == regions.folder.rpartition("/")[0] == f"{home}/regions"
    run = Run.new("ingest", Target("faiss:x", "images", "ldot-mini"), 1)
    journal.start(run)
    assert (home / "journal.sqlite").exists()
    assert RegionStore("memory://regions", "m").folder is None


def test_a_chunk_says_where_it_goes_for_every_working_folder(home: Path) -> None:
    target = Target.of(Settings(store="faiss:~/x", region_store="./regions"))
    assert (target.store, target.region_store) == (f"faiss:{home}/x", f"{home}/regions")
    assert Target.of(Settings(region_store="s3://bucket/regions")).region_store == "s3://bucket/regions"
    assert Target.of(Settings()).region_store is None
