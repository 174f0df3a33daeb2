"""The place of region data: given, recorded or default, and how a process notices that it has another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ldot_milvus.errors import RegionStoreNotFound
from ldot_milvus.stores import Record, VectorStore, open_store
from ldot_milvus.stores.region_place import RECORD, RegionPlace, RegionRecord, keep_record, open_region_store
from ldot_milvus.stores.regions import RegionStore
from ldot_milvus.stores.registry import StoreAddress
from tests.integration.stores.toy_store import ToyAddress, ToyStore

FINGERPRINT = "f" * 32
PHOTO = Record("photo", np.ones(4, np.float32))
ARRAYS = {"features": np.ones((1, 4), np.float16)}


class RemoteAddress(ToyAddress):
    """As a server's: nothing lies beside the store."""

    scheme = "remote"
    region_store = StoreAddress.region_store
    journal = None

    def open(self, collection, index, *, token=None, index_fallback=True):
        return ToyStore(self, collection, index)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory ``A`` of two, and the form of address ``remote:PATH``."""
    forms = [f"{__name__}:RemoteAddress", "ldot_milvus.stores.local.address:FaissAddress"]
    monkeypatch.setattr("ldot_milvus.stores.registry._REGISTERED", forms)
    for name in "AB":
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "A")
    return tmp_path


def collection(home: Path, form: str = "remote") -> VectorStore:
    store = open_store(f"{form}:{home}/store", "photos")
    store.bind("model", 4)
    return store


def ingest(store: VectorStore, address: str | None = None) -> str:
    """Do what an ingestion does: claim a place, write region data, then the row."""
    place = RegionPlace(store, address).claim()
    RegionStore(place, FINGERPRINT).put({"photo": ARRAYS})
    store.upsert([PHOTO])
    return place


@pytest.mark.parametrize(
    ("form", "given", "place", "recorded"),
    [
        ("faiss", None, "store/regions", False),
        ("faiss", "store/regions", "store/regions", False),  # the default, so the folder can be moved with its store
        ("faiss", "elsewhere", "elsewhere", True),
        ("remote", None, "A/ldot-data/regions", True),
        ("remote", "elsewhere", "elsewhere", True),
    ],
)
def test_every_process_finds_the_place_of_the_first_one(
    form: str, given: str | None, place: str, recorded: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collection(home, form) as store:
        assert ingest(store, given and f"{home}/{given}") == f"{home}/{place}"
        assert (RegionRecord.of(store) is not None) == recorded
        assert recorded == bool(list((home / place).glob("ldot-*.txt")))
        monkeypatch.chdir(home / "B")
        before = store.properties
        assert RegionPlace(store).find() == RegionPlace(store).claim() == f"{home}/{place}"
        assert store.properties == before
    assert not list((home / "B").iterdir())


def test_a_collection_that_does_not_exist_has_its_default(home: Path) -> None:
    with open_store(f"remote:{home}/store", "none") as store:
        place = RegionPlace(store)
        assert place.find() == f"{home}/A/ldot-data/regions"
        assert not place.settled
    assert not list((home / "A").iterdir())


def test_the_setting_is_an_address_of_the_recorded_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same place under another path is accepted, another place is not, whatever it contains."""
    with collection(home) as store:
        recorded = ingest(store)
        (home / "mount").symlink_to(recorded)
        monkeypatch.setenv("LDOT_REGION_STORE", str(home / "mount"))
        assert RegionPlace(store).find() == RegionPlace(store).claim() == f"{home}/mount"
        assert RegionRecord.of(store) == RegionRecord(recorded, json.loads(store.properties[RECORD])["id"])

        RegionStore(f"{home}/other", FINGERPRINT).put({"photo": ARRAYS})
        RegionStore(f"{home}/other", "").mark("0" * 16, "another collection")
        for other in ("other", "empty"):
            monkeypatch.setenv("LDOT_REGION_STORE", str(home / other))
            message = (
                rf"'photos' in remote:.* in {recorded}, and {home}/{other} is another place: set LDOT_REGION_STORE"
            )
            with pytest.raises(RegionStoreNotFound, match=message):
                RegionPlace(store).find()
        monkeypatch.delenv("LDOT_REGION_STORE")
        assert RegionPlace(store).find() == recorded


@pytest.mark.parametrize("mount", ["missing", "empty", "another"])
def test_a_place_that_this_machine_does_not_have(mount: str, home: Path) -> None:
    with collection(home) as store:
        recorded = ingest(store)
        shutil.move(recorded, home / "moved")
        if mount != "missing":
            Path(recorded).mkdir()
        if mount == "another":
            RegionStore(recorded, "").mark("0" * 16, "another collection")
        for access in (RegionPlace(store).find, RegionPlace(store).claim):
            with pytest.raises(RegionStoreNotFound, match="does not have it there: set LDOT_REGION_STORE") as refused:
                access()
            assert "\n" not in str(refused.value)
        assert RegionPlace(store, f"{home}/moved").find() == f"{home}/moved"


def test_remote_storage_is_marked_too(home: Path) -> None:
    with collection(home) as store:
        address = f"memory://{home}/regions"
        assert ingest(store, address) == RegionPlace(store).find() == address
        with pytest.raises(RegionStoreNotFound, match="is another place"):
            RegionPlace(store, f"memory://{home}/others").find()


class TestEarlierVersions:
    """Rows without a record."""

    @pytest.fixture
    def store(self, home: Path):
        with collection(home) as store:
            store.upsert([PHOTO])
            yield store

    def test_their_region_data_is_adopted(self, store: VectorStore) -> None:
        address = RegionPlace(store).find()
        RegionStore(address, "e" * 32).put({"photo": ARRAYS})
        assert RegionPlace(store).claim() == address
        record = RegionRecord.of(store)
        assert record is not None
        assert record.address == address

    def test_a_default_without_it_is_refused_for_writing(self, store: VectorStore, home: Path) -> None:
        RegionStore(RegionPlace(store).find(), FINGERPRINT).put({"of another collection": ARRAYS})
        place = RegionPlace(store)
        for access in (place.claim, lambda: place.find(to_write=True)):
            with pytest.raises(RegionStoreNotFound, match=r"'photos'.*has no region data of them.*LDOT_REGION_STORE"):
                access()
        assert place.find() == f"{home}/A/ldot-data/regions"
        assert RegionRecord.of(store) is None

    def test_a_given_place_is_trusted(self, store: VectorStore, home: Path) -> None:
        assert RegionPlace(store, f"{home}/new").claim() == f"{home}/new"
        assert RegionPlace(store).find() == f"{home}/new"


def test_of_two_processes_that_record_at_once_one_place_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collection(home) as store:
        ours, theirs = RegionPlace(store, f"{home}/ours"), RegionPlace(store, None)
        assert ours.find() == f"{home}/ours"
        assert theirs.find() == f"{home}/A/ldot-data/regions"  # neither has recorded anything so far
        assert ours.claim() == f"{home}/ours"
        assert theirs.claim() == f"{home}/ours"

        # The other one reads before we record, and records after us: our next call notices.
        record = RegionRecord(f"{home}/third", "0" * 16)
        late = RegionPlace(store)
        monkeypatch.setattr(RegionRecord, "of", classmethod(lambda cls, store: None))
        assert late.claim() == f"{home}/A/ldot-data/regions"
        monkeypatch.undo()
        monkeypatch.setattr("ldot_milvus.stores.registry._REGISTERED", [f"{__name__}:RemoteAddress"])
        RegionStore(record.address, "").mark(record.id, "another process")
        record.write(store)
        assert late.claim() == record.address
        assert late.settled


def test_a_successor_keeps_the_record(home: Path) -> None:
    with collection(home) as store, open_store(f"remote:{home}/store", "next") as successor:
        keep_record(store, successor)
        ingest(store)
        keep_record(store, successor)  # which does not exist
        assert successor.dim is None
        successor.bind("model", 4)
        keep_record(store, successor)
        assert RegionRecord.of(successor) == RegionRecord.of(store) is not None
        own = RegionRecord("elsewhere", "1")
        own.write(successor)
        keep_record(store, successor)
        assert RegionRecord.of(successor) == own


def test_former_fingerprints_are_computed_only_for_other_folders(home: Path) -> None:
    """Hashing the weights for them takes time at every start."""

    class Files:
        fingerprint, asked = FINGERPRINT, 0

        @property
        def former_fingerprints(self) -> tuple[str, ...]:
            self.asked += 1
            return ("e" * 32,)

    with collection(home) as store:
        address, files = ingest(store), Files()
        regions = open_region_store(store, files)
        assert regions.has(["photo", "new"]) == regions.get(["photo", "new"]).keys() == {"photo"}
        assert files.asked == 0
        RegionStore(address, "e" * 32).put({"old": ARRAYS})
        regions = open_region_store(store, files)
        assert regions.has(["photo"]) == {"photo"}
        assert files.asked == 0
        assert regions.has(["photo", "old"]) == {"photo", "old"}
        assert regions.has(["new"]) == set()
        assert files.asked == 1
