"""Region stores return what was written, on any file system, with any ids, and with damaged files."""

import errno
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldot_milvus.errors import StoreError
from ldot_milvus.stores.regions import Arrays, RegionStore, region_stores

FINGERPRINT = "0123456789abcdef-and-more"


def regions(n: int = 49, d: int = 384, seed: int = 0) -> Arrays:
    """Region data as a LightningDOT re-ranker stores it."""
    rng = np.random.default_rng(seed)
    return {
        "features": rng.normal(size=(n, d)).astype(np.float16),
        "boxes": rng.random((n, 7), dtype=np.float32),
        "confidence": np.ones(n, np.float16),
    }


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=["local", "file", "memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    kinds = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{tmp_path}"}
    return kinds[request.param]


def test_round_trip(address: str) -> None:
    store = RegionStore(address, FINGERPRINT)
    ids = ["ab" * 32, "cd" * 32]
    assert store.get(ids) == {}
    assert store.has(ids) == set()
    assert store.get([]) == {}
    store.put({id: regions(seed=n) for n, id in enumerate(ids)})
    found = RegionStore(address, FINGERPRINT).get([*ids, "gone", ids[0]])
    assert list(found) == ids
    for n, id in enumerate(ids):
        expected, got = regions(seed=n), found[id]
        assert {name: got[name].dtype for name in got} == {name: expected[name].dtype for name in expected}
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)
    assert store.has([*ids, "gone"]) == set(ids)
    assert RegionStore(address, "another model").has(ids) == set()
    store.put({ids[0]: regions(seed=5)})
    assert store.get(ids[:1])[ids[0]]["features"][0, 0] == regions(seed=5)["features"][0, 0]
    store.delete([ids[0], "gone"])
    assert store.has(ids) == {ids[1]}


def test_place_and_size(tmp_path: Path) -> None:
    id = "ab" * 32
    RegionStore(str(tmp_path), FINGERPRINT).put({id: regions()})
    (file,) = files(tmp_path)
    assert file == tmp_path / "0123456789abcdef" / "ab" / f"{id}.safetensors"
    assert file.stat().st_size < 40_000


ODD_IDS = [
    ".", "..", "../../up", "/etc/passwd", "a/b", "a\\b", "*", "[a]", "?", "a b", "%2E", "=x", "\n", "\0",
    "é" * 64, "写" * 64, "🐕" * 64, "A" * 64,
]  # fmt: skip


def test_any_id_stays_inside_and_apart(address: str, tmp_path: Path) -> None:
    store = RegionStore(address, FINGERPRINT)
    store.put({id: regions(2, 4, seed) for seed, id in enumerate(ODD_IDS)})
    found = store.get(ODD_IDS)
    assert list(found) == ODD_IDS
    assert store.has(ODD_IDS) == set(ODD_IDS)
    for seed, id in enumerate(ODD_IDS):
        np.testing.assert_array_equal(found[id]["boxes"], regions(2, 4, seed)["boxes"])
    if not address.startswith("memory"):
        assert len(files(tmp_path / "0123456789abcdef")) == len(files(tmp_path)) == len(ODD_IDS)
    store.delete(ODD_IDS)
    assert store.has(ODD_IDS) == set()


def test_twenty_reads_are_fast(tmp_path: Path) -> None:
    store = RegionStore(str(tmp_path), FINGERPRINT)
    ids = [f"{n:064x}" for n in range(20)]
    store.put({id: regions() for id in ids})
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        assert len(store.get(ids)) == 20
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.01


@pytest.mark.parametrize("size", [0, 7, 300, 20_000])
def test_a_damaged_file_is_missing_and_named(
    address: str, size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = RegionStore(address, FINGERPRINT)
    store.put({"good": regions(), "bad": regions()})
    if address.startswith("memory"):
        path = next(path for path in store._fs.find(store._root) if "bad" in path)
        store._fs.pipe_file(path, store._fs.cat_file(path)[:size])
    else:
        os.truncate(tmp_path / "0123456789abcdef/ba/bad.safetensors", size)
    with caplog.at_level(logging.WARNING):
        assert set(store.get(["good", "bad"])) == {"good"}
    assert "bad.safetensors is damaged" in caplog.text
    if size == 0:  # as a power cut leaves it: to be ingested again
        assert store.has(["good", "bad"]) == {"good"}
    store.put({"bad": regions()})
    assert set(store.get(["good", "bad"])) == {"good", "bad"}


def test_what_an_earlier_version_kept_is_read_under_its_fingerprint(address: str) -> None:
    """Region data of an earlier version stays readable; new data is written under the new fingerprint."""
    before = RegionStore(address, "former fingerprint")
    before.put({"old": regions(seed=1), "both": regions(seed=1)})
    store = RegionStore(address, FINGERPRINT, lambda: ["former fingerprint"])
    store.put({"both": regions(seed=2), "new": regions(seed=3)})
    found = store.get(["new", "old", "gone", "both"])
    assert list(found) == ["new", "old", "both"]
    for id, seed in {"new": 3, "old": 1, "both": 2}.items():
        np.testing.assert_array_equal(found[id]["boxes"], regions(seed=seed)["boxes"])
    assert store.has(["new", "old", "gone", "both"]) == {"new", "old", "both"}
    assert before.has(["new"]) == set()
    store.delete(["old", "both"])
    assert before.has(["old", "both"]) == store.has(["old", "both"]) == set()


def test_every_fingerprint_at_an_address_is_listed(address: str, tmp_path: Path) -> None:
    assert region_stores(address, "memory://elsewhere") == []
    for name in ("b" * 32, "a" * 32):
        RegionStore(address, name).put({"x": regions(2, 4)})
    pairs = region_stores(address, f"memory://{tmp_path}/elsewhere")
    assert [there.has(["x"]) for there, _ in pairs] == [{"x"}, {"x"}]
    for there, here in pairs:
        here.put(there.get(["x"]))
    assert RegionStore(f"memory://{tmp_path}/elsewhere", "a" * 32).has(["x"]) == {"x"}


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_region_store import FINGERPRINT, regions
from ldot_milvus.stores.regions import Arrays, RegionStore, region_stores
assert "torch" not in sys.modules, "torch is loaded"
store = RegionStore({folder!r}, FINGERPRINT)
for n in range(150):
    store.put({{"same": regions(seed=n % 2)}})
"""


def test_two_processes_write_one_id_while_a_third_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = RegionStore(str(tmp_path), FINGERPRINT)
    store.put({"same": regions()})
    code = WRITER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    writers = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
    whole = [regions(seed=n)["boxes"] for n in (0, 1)]
    while any(writer.poll() is None for writer in writers):
        boxes = store.get(["same"])["same"]["boxes"]
        assert any(np.array_equal(boxes, expected) for expected in whole)
    for writer in writers:
        _, complaint = writer.communicate()
        assert writer.returncode == 0, complaint.decode()
    assert not caplog.records
    assert len(files(tmp_path)) == 1, "a temporary file stayed behind"


def test_threads_may_share_a_store(address: str) -> None:
    store = RegionStore(address, FINGERPRINT)
    failed: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for n in range(10):
                store.put({f"{thread}-{n}": regions(2, 4), f"shared-{n}": regions(2, 4)})
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(store.has([f"{t}-{n}" for t in (0, 1, 2, 3, "shared") for n in range(10)])) == 50


def test_unusable_addresses_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere.*LDOT_REGION_STORE"):
        RegionStore("nowhere://x/y", FINGERPRINT)
    (tmp_path / "file").write_text("x")
    store = RegionStore(str(tmp_path / "file"), FINGERPRINT)
    for call in (lambda: store.put({"a": regions()}), lambda: store.get(["a"]), lambda: store.has(["a"])):
        with pytest.raises(StoreError, match="a file exists where a folder is needed"):
            call()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec  # noqa: F401  (its registry may hold s3fs already)

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(StoreError, match="Install s3fs"):
        RegionStore("s3://bucket/regions", FINGERPRINT)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "no permission"),
        (OSError(errno.EROFS, "Read-only file system"), "no permission"),
        (ConnectionError("refused"), "refused: check that LDOT_REGION_STORE"),
    ],
)
def test_trouble_while_writing(
    address: str, error: OSError, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RegionStore(address, FINGERPRINT)
    store.put({"a": regions(seed=1)})

    def fail(*_: object, **__: object) -> Any:
        raise error

    with monkeypatch.context() as patch:
        if store._fs is None:
            patch.setattr(os, "replace", fail)
        else:
            patch.setattr(type(store._fs), "pipe_file", fail)
        with pytest.raises(StoreError, match=remedy) as caught:
            store.put({"a": regions(seed=2)})
    assert address.removeprefix("file://") in str(caught.value)
    np.testing.assert_array_equal(store.get(["a"])["a"]["boxes"], regions(seed=1)["boxes"])
    assert len(files(tmp_path)) == (0 if address.startswith("memory") else 1)


def test_a_network_that_is_down_is_not_an_empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RegionStore(f"memory://{tmp_path}", FINGERPRINT)
    store.put({"a": regions()})

    def fail(*_: object, **__: object) -> Any:
        raise ConnectionError("unreachable")

    monkeypatch.setattr(type(store._fs), "cat_file", fail)
    with pytest.raises(StoreError, match="unreachable"):
        store.get(["a"])
