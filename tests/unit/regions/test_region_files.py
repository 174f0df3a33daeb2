"""Region features in the authors' formats, compared with the authors' readers, and written and read again."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import lmdb
import numpy as np
import pytest

from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.regions import Regions, open_regions
from ldot_milvus.regions.files import adaptive_count, iterate, write_lmdb, write_npz

AUTHORS = Path(__file__).parents[2] / "golden" / "authors_data"
FOLDERS = {"adaptive": "feat_th0.2_max100_min10", "compressed": "feat_th0.2_max100_min10_compressed",
           "fixed20": "feat_numbb20"}  # fmt: skip


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(AUTHORS / "expected.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize("variant", FOLDERS)
def test_what_the_authors_readers_read(variant: str, expected: dict[str, np.ndarray]) -> None:
    file = open_regions(AUTHORS / "coco_val2014" / FOLDERS[variant])
    names = {key.split("/")[1] for key in expected if key.startswith(f"{variant}/") and key.endswith("/boxes")}
    assert set(file.names) == names
    for name in names:
        regions = file.read(name)
        np.testing.assert_array_equal(regions.boxes, expected[f"{variant}/{name}/boxes"])
        features = expected[f"{variant}/{name}/features"]
        if variant == "adaptive":
            np.testing.assert_array_equal(regions.features, features.astype(np.float32))
        else:
            assert len(regions) == features[0]
            assert float(regions.features.sum(dtype=np.float64)) == pytest.approx(features[1], rel=1e-6)


def test_soft_labels_are_read(expected: dict[str, np.ndarray]) -> None:
    file = open_regions(AUTHORS / "coco_val2014" / FOLDERS["compressed"])
    wanted = expected["compressed/soft_labels_of_second"].astype(np.float32)
    found = [file.read(name).soft_labels for name in file.names]
    assert sum(labels is not None and np.array_equal(labels, wanted) for labels in found) == 1


def made(seed: int, count: int, labels: bool = True) -> Regions:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((count, 2, 2), np.float32), axis=1).reshape(count, 4).astype(np.float16)
    x1, y1, x2, y2 = corners.T
    boxes = np.stack([x1, y1, x2, y2, x2 - x1, y2 - y1], axis=1).astype(np.float16).astype(np.float32)
    return Regions(
        rng.random((count, 8), np.float32).astype(np.float16).astype(np.float32),
        np.concatenate([boxes, boxes[:, 4:5] * boxes[:, 5:6]], axis=1),
        np.sort(rng.random(count, np.float32))[::-1].astype(np.float16).astype(np.float32),
        rng.random((count, 5), np.float32).astype(np.float16).astype(np.float32) if labels else None,
    )


@pytest.mark.parametrize("form", ["lmdb", "lmdb compressed", "npz"])
def test_written_and_read_again(form: str, tmp_path: Path) -> None:
    photos = {f"photo {n}.npz": made(n, 12 + n, labels=n % 2 == 0) for n in range(5)}
    folder = tmp_path / "feat_th0.2_max100_min10"
    if form == "npz":
        assert write_npz(folder, photos.items()) == 5
    else:
        assert write_lmdb(folder, photos.items(), compressed="compressed" in form) == 5
    again = dict(iterate(open_regions(folder)))
    assert list(again) == list(photos)
    for name, regions in photos.items():
        if form == "npz":  # whole files are cut when they are read
            regions = regions.first(adaptive_count(regions))
        for field in ("features", "boxes", "confidence", "soft_labels"):
            np.testing.assert_array_equal(getattr(again[name], field), getattr(regions, field))


def test_the_folders_name_says_how_many(tmp_path: Path) -> None:
    regions = made(0, 30)
    confidence = np.array([0.9] * 13 + [0.2] * 17, np.float32)  # 0.2 itself is not confident
    regions = Regions(regions.features, regions.boxes, confidence)
    for folder, count in (("feat_numbb7", 7), ("feat_numbb99", 30), ("all", 13), ("feat_th0.2_max100_min10", 30)):
        write_lmdb(tmp_path / folder, [("a.npz", regions)])
        assert len(open_regions(tmp_path / folder).read("a.npz")) == count
    (tmp_path / "nbb_th0.2_max100_min10.json").write_text(json.dumps({"a.npz": 11}))
    assert len(open_regions(tmp_path / "feat_th0.2_max100_min10").read("a.npz")) == 11


def tsv_line(name: str, boxes: np.ndarray, features: np.ndarray, width: int, height: int) -> str:
    def packed(array: np.ndarray) -> str:
        return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()

    count = len(boxes)
    ids, ones = np.zeros(count, np.int64), np.linspace(1, 0.5, count).astype(np.float32)
    cells = (name, height, width, packed(ids), packed(ones), packed(ids), packed(ones), count, packed(boxes),
             packed(features))  # fmt: skip
    return "\t".join(map(str, cells)) + "\n"


def test_the_public_tsv(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 50, 100], [100, 50, 200, 100]], np.float32)
    features = np.random.default_rng(0).random((2, 2048), np.float32)
    path = tmp_path / "x_obj36.tsv"
    path.write_text(tsv_line("one", boxes, features, 200, 100) + tsv_line("two", boxes[:1], features[:1], 50, 100))
    file = open_regions(path)
    assert file.names == ["one", "two"]
    regions = file.read("one")
    np.testing.assert_allclose(regions.boxes[1], [0.5, 0.5, 1, 1, 0.5, 0.5, 0.25])
    np.testing.assert_array_equal(regions.features, features)
    np.testing.assert_allclose(regions.confidence, [1, 0.5])
    np.testing.assert_allclose(file.read("two").boxes[0], [0, 0, 1, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "not region features"),
        (b"PK\x03\x04 torn", "not region features"),
        (b"\x81\xa1a\x01", "not region features"),
        (b"\x80", "no conf, features, norm_bb"),
    ],
)
def test_a_record_of_another_layout_is_named(value: bytes, message: str, tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "x")) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"photo.npz", value)
    file = open_regions(tmp_path / "x")
    assert file.names == ["photo.npz"]
    with pytest.raises(InputError, match=rf"photo\.npz: {message}"):
        file.read("photo.npz")
    with pytest.raises(InputError, match="gone: no such record"):
        file.read("gone")


def test_paths_without_regions_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone", tmp_path / "x.tsv"):
        with pytest.raises(UsageError, match="has no region features"):
            open_regions(path)
    (tmp_path / "data.mdb").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot be read as an LMDB"):
        open_regions(tmp_path)
    (tmp_path / "y.tsv").write_text("one\t2\n")
    with pytest.raises(InputError, match="one: 2 columns"):
        open_regions(tmp_path / "y.tsv").read("one")


def test_a_duplicate_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.npz: twice"):
        write_lmdb(tmp_path / "x", [("a.npz", made(0, 3)), ("a.npz", made(1, 3))])
    (tmp_path / "x.tsv").write_text("one\t1\none\t2\n")
    with pytest.raises(InputError, match="one: twice"):
        open_regions(tmp_path / "x.tsv")
