"""``ldot doctor``: every part is checked and reported with ok or the remedy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ldot_milvus.doctor import Finding, examine
from ldot_milvus.settings import Settings
from ldot_milvus.stores import Record, open_store
from tests.servers.ports import free_ports

PARTS = ["settings", "device", "model", "store", "indexes", "recall", "region store", "broker", "journal"]


def findings(**settings: str) -> dict[str, Finding]:
    return {finding.part: finding for finding in examine(Settings(**settings))}


def test_a_laptop_is_well(tmp_path: Path) -> None:
    found = findings(store=f"faiss:{tmp_path}/data")
    assert list(found) == PARTS
    assert all(finding.ok for finding in found.values())
    assert "no collection 'images'" in found["store"].text
    assert found["indexes"].text.startswith("FLAT, HNSW, IVF_FLAT, IVF_SQ8")
    assert not (tmp_path / "data").exists()


def test_what_is_broken_does_not_hide_the_rest(tmp_path: Path) -> None:
    [port] = free_ports(1)
    found = findings(
        store=f"faiss:{tmp_path}", device="cuda:99", model="nope", broker=f"redis://user:secret@127.0.0.1:{port}/0"
    )
    assert [part for part, finding in found.items() if not finding.ok] == ["device", "model", "region store", "broker"]
    assert "try 'cpu'" in found["device"].text
    assert "ldot-mini" in found["model"].text
    assert "unset LDOT_BROKER" in found["broker"].text
    assert "secret" not in found["broker"].text


def test_a_broker_of_no_known_kind() -> None:
    assert "No such transport" in findings(broker="nonsense://x")["broker"].text


def test_a_collection_of_another_model(tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path}", "images") as store:
        store.bind("another", 4)
        store.upsert([Record("a", np.ones(4, np.float32))])
    found = findings(store=f"faiss:{tmp_path}")
    assert not found["store"].ok
    assert "filled with a model other than" in found["store"].text
    assert found["indexes"].ok


def test_the_recall_of_a_local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process builds its own index, so it is measured on request alone."""
    vectors = np.random.default_rng(0).normal(size=(1100, 8)).astype(np.float32)

    def found(index: str, *, recall: bool = False) -> Finding:
        monkeypatch.setenv("LDOT_INDEX", index)
        unneeded = dict.fromkeys(("device", "model", "broker"), "")
        parts = {finding.part: finding for finding in examine(Settings(store=address), unneeded, recall=recall)}
        return parts["recall"]

    address = f"faiss:{tmp_path}"
    assert found("HNSW", recall=True).text == "no index yet"
    with open_store(address, "images") as store:
        store.upsert([Record(f"{n:04d}", row) for n, row in enumerate(vectors)])
    assert found("auto", recall=True).text == "FLAT compares with every row"
    assert found("HNSW").text.startswith("HNSW is not measured: ldot doctor --recall")
    measured = found("HNSW", recall=True)
    assert measured.ok
    assert measured.text.startswith("HNSW has recall@10 ")
    assert found("HNSW") == measured
    wrong = found("IVF_FLAT:nlist=16,nprobe=1", recall=True)
    assert not wrong.ok
    assert "below 0.95" in wrong.text
    assert found("HNSW").text.startswith("HNSW is not measured")  # but another index


@pytest.mark.skipif(sys.platform == "win32", reason="no such folder there")
def test_a_region_store_that_cannot_be_written(tmp_path: Path) -> None:
    found = findings(store=f"faiss:{tmp_path}", region_store="/proc/regions")
    assert not found["region store"].ok
    assert "LDOT_REGION_STORE" in found["region store"].text


@pytest.mark.servers
@pytest.mark.xdist_group("milvus")
def test_a_server_is_asked_which_indexes_it_builds(milvus_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packaged server has no GPU: it refuses some kinds and is silent about others until the limit."""
    monkeypatch.setattr("ldot_milvus.stores.milvus.probing.PROBE_SECONDS", 3.0)
    found = findings(store=milvus_url)
    assert found["store"].ok
    assert found["indexes"].ok
    assert "FLAT, HNSW, IVF_FLAT, IVF_SQ8; none on a GPU" in found["indexes"].text
