"""Eight-bit region data: half the bytes, bounded rounding, and files of both forms in one folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ldot_milvus.stores.region_place import region_store_at
from ldot_milvus.stores.region_precision import from_int8, to_int8
from ldot_milvus.stores.regions import RegionStore, region_stores

FINGERPRINT = "0123456789abcdef"


def tokens(count: int = 64, width: int = 384) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, width)) * rng.lognormal(0, 2, (count, 1))
    return {"tokens": rows.astype(np.float16), "boxes": rng.random((count, 7), dtype=np.float32)}


def test_a_value_changes_by_at_most_half_a_step_of_its_row() -> None:
    arrays = tokens()
    arrays["tokens"][3] = 0
    again = from_int8(to_int8(arrays))
    assert again.keys() == arrays.keys()
    exact, rounded = arrays["tokens"].astype(np.float32), again["tokens"].astype(np.float32)
    step = np.abs(exact).max(1, keepdims=True) / 127
    # Half precision rounds the result once more, by at most 2**-11 of it.
    assert (np.abs(exact - rounded) <= 0.5 * step * (1 + 1e-3) + np.abs(exact) * 2**-11 + 1e-7).all()
    assert again["tokens"].dtype == np.float16
    np.testing.assert_array_equal(again["boxes"], arrays["boxes"])


def test_other_arrays_are_unchanged() -> None:
    arrays = {"counts": np.arange(3), "confidence": np.ones(4, np.float16), "none": np.zeros((0, 5), np.float16)}
    again = from_int8(to_int8(arrays))
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)


def test_both_forms_are_read_from_one_folder(tmp_path: Path) -> None:
    half, eight = RegionStore(str(tmp_path), FINGERPRINT), RegionStore(str(tmp_path), FINGERPRINT, dtype="int8")
    half.put({"a": tokens()})
    eight.put({"b": tokens()})
    sizes = {path.stem: path.stat().st_size for path in tmp_path.rglob("*.safetensors")}
    assert 64 * 384 < sizes["b"] - 64 * 7 * 4 < 64 * 384 + 64 * 4 + 400
    assert 64 * 384 * 2 < sizes["a"] - 64 * 7 * 4 < 64 * 384 * 2 + 400
    for store in (half, eight):
        found = store.get(["a", "b"])
        np.testing.assert_array_equal(found["a"]["tokens"], tokens()["tokens"])
        scale = np.abs(tokens()["tokens"].astype(np.float32)).max()
        np.testing.assert_allclose(found["b"]["tokens"], tokens()["tokens"], atol=scale / 127)


def test_a_damaged_file_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from safetensors.numpy import save_file

    store = RegionStore(str(tmp_path), FINGERPRINT, dtype="int8")
    store.put({"a": tokens()})
    (path,) = tmp_path.rglob("*.safetensors")
    save_file({"tokens": np.zeros((3, 4), np.int8), "tokens.int8_scale": np.zeros(2, np.float32)}, path)
    assert store.get(["a"]) == {}
    assert "tokens has shape (3, 4), and its scale (2,)" in caplog.text
    save_file({"x.int8_scale": np.zeros(2, np.float32)}, path)
    assert store.get(["a"]) == {}


def test_the_setting_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDOT_REGION_DTYPE", "int8")
    kept_by = SimpleNamespace(fingerprint=FINGERPRINT, former_fingerprints=())
    region_store_at(str(tmp_path), kept_by).put({"a": tokens()})
    (path,) = tmp_path.rglob("*.safetensors")
    assert path.stat().st_size < 64 * 384 * 1.2
    ((source, target),) = region_stores(str(tmp_path), str(tmp_path / "copy"))
    target.put(source.get(["a"]))
    (copied,) = (tmp_path / "copy").rglob("*.safetensors")
    assert copied.stat().st_size == path.stat().st_size
