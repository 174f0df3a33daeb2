"""The formulas of the sizing guide compared with measurements."""

from __future__ import annotations

import hashlib
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldot_milvus.regions.grid import grid_boxes
from ldot_milvus.stores import Record, open_store
from ldot_milvus.stores.regions import RegionStore
from tests.conftest import ROOT

ROWS = 2000


@pytest.fixture(scope="module")
def sizing() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "sizing.py"))


@pytest.mark.parametrize("dim", [64, 512, 768, 1024, 1500])
def test_a_row_of_the_local_store(sizing: dict[str, Any], tmp_path: Path, dim: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(ROWS, dim)).astype(np.float32)
    with open_store(f"faiss:{tmp_path}", "photos") as store:
        store.upsert(
            [
                Record(hashlib.sha256(b"%d" % n).hexdigest(), vector, source=f"{'x' * 56}.jpg", caption="y" * 60)
                for n, vector in enumerate(vectors)
            ]
        )
    measured = sum(path.stat().st_size for path in tmp_path.iterdir()) / ROWS
    assert measured == pytest.approx(sizing["sqlite_row"](dim), rel=0.15)


@pytest.mark.parametrize(
    ("index_type", "factory"), [("FLAT", "IDMap,Flat"), ("HNSW", "HNSW32"), ("IVF_SQ8", "IVF16,SQ8")]
)
def test_a_row_of_an_index(sizing: dict[str, Any], index_type: str, factory: str) -> None:
    import faiss

    vectors = np.random.default_rng(0).normal(size=(ROWS, 512)).astype(np.float32)
    index = faiss.index_factory(512, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add_with_ids(vectors, np.arange(ROWS)) if index_type == "FLAT" else index.add(vectors)
    measured = len(faiss.serialize_index(index)) / ROWS
    assert measured == pytest.approx(sizing["index_row"](index_type, 512), rel=0.15)


def test_a_photo_in_the_region_store(sizing: dict[str, Any], tmp_path: Path) -> None:
    kept = {"features": np.ones((49, 384), np.float16), "boxes": grid_boxes(7), "confidence": np.ones(49, np.float16)}
    RegionStore(str(tmp_path), "model").put({"a": kept})
    [path] = tmp_path.rglob("*.safetensors")
    assert path.stat().st_blocks * 512 == pytest.approx(sizing["regions"](384), rel=0.1)


def test_the_guide_has_the_table(sizing: dict[str, Any]) -> None:
    assert sizing["table"]() in (ROOT / "docs" / "sizing.md").read_text()
