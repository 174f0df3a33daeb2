"""Photos with captions in tars, folders and the authors' files; errors name the record."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldot_milvus.errors import UsageError
from ldot_milvus.evaluation.datasets import read_pairs
from tests.conftest import make_photo
from tests.tolerance import assert_recall, both_bounds

AUTHORS = Path(__file__).parents[2] / "golden" / "authors_data"
TEXT = AUTHORS / "itm_coco_val_base-cased.db"
VARIANTS = AUTHORS / "coco_val2014"
REGIONS = VARIANTS / "feat_th0.2_max100_min10"


def described(*captions: str) -> bytes:
    return json.dumps({"captions": captions}).encode()


FILES = {"a.jpg": make_photo(1), "a.json": described("one", "two"), "b.jpg": make_photo(2), "b.json": described("x")}


def folder_of(files: dict[str, bytes], place: Path) -> Path:
    place.mkdir()
    for name, data in files.items():
        (place / name).write_bytes(data)
    return place


def tar_of(files: dict[str, bytes], place: Path) -> Path:
    place = place.with_suffix(".tar")
    with tarfile.open(place, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return place


@pytest.mark.parametrize("make", [folder_of, tar_of])
def test_tars_and_folders(make: Callable, tmp_path: Path) -> None:
    pairs = read_pairs([make(FILES, tmp_path / "set")])
    assert [(pair.name, pair.captions) for pair in pairs] == [("a", ["one", "two"]), ("b", ["x"])]
    assert pairs[1].load() == FILES["b.jpg"]


def test_the_authors_files() -> None:
    pairs = read_pairs([TEXT], regions=[REGIONS])
    assert len(pairs) == 6
    assert all(len(pair.captions) == 5 for pair in pairs)
    with np.load(AUTHORS / "expected.npz") as expected:
        for pair in pairs:
            np.testing.assert_array_equal(pair.load().features, expected[f"adaptive/{pair.name}/features"])
        wanted = {tuple(expected[key].tolist()) for key in expected.files if key.startswith("text/")}
    assert {tuple(caption) for pair in pairs for caption in pair.captions} == wanted


@pytest.mark.parametrize("variant", ["feat_th0.2_max100_min10", "feat_th0.2_max100_min10_compressed", "feat_numbb20"])
def test_the_authors_files_evaluated_end_to_end(variant: str, tmp_path: Path) -> None:
    """A dual encoder and a UNITER of the published layout, small and of random weights, on the authors' own files."""
    import torch

    from ldot_milvus import LightningDOTEmbedder
    from ldot_milvus.evaluation.evaluate import evaluate
    from ldot_milvus.model import CrossAttentionReranker, LightningDOT, LightningDOTConfig, RerankerConfig
    from tests.conftest import build_tiny_model

    body = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    folder = build_tiny_model(tmp_path / "model")
    torch.manual_seed(0)
    LightningDOT(LightningDOTConfig(text_config=body, image_config=body, projection_dim=16)).save_pretrained(folder)
    CrossAttentionReranker(RerankerConfig(bert_config=body)).save_pretrained(folder / "reranker")
    embedder = LightningDOTEmbedder(str(folder), device="cpu")
    pairs = read_pairs([TEXT], regions=[VARIANTS / variant])
    figures = evaluate(embedder, pairs, rerank=3)
    assert (figures["images"], figures["captions"], figures["reranked"]["M"]) == (6, 30, 3)
    vectors = embedder.encode_images([pair.load() for pair in pairs])
    scores = embedder.encode_texts([caption for pair in pairs for caption in pair.captions]) @ vectors.T
    assert_recall(figures, both_bounds(scores, np.repeat(np.arange(6), 5)))


def change(**files: bytes | None) -> dict[str, bytes]:
    changed = FILES | {name.replace("_", "."): data for name, data in files.items()}
    return {name: data for name, data in changed.items() if data is not None}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (change(b_jpg=None), r"b\.json has captions, but its photo b\.jpg is missing"),
        (change(b_json=None), r"b\.jpg has no captions"),
        (change(b_json=described()), r"b has no captions"),
        (change(b_json=described("x", " ")), r"b has an empty caption"),
        (change(b_json=b"[]"), r"b\.json: not JSON of the form"),
        (change(b_json=b"{"), r"b\.json: not JSON of the form"),
        (change(b_json=b'{"captions": "x"}'), r"b\.json: \"captions\" is not a list of texts"),
        ({}, "contains no photo"),
    ],
)
@pytest.mark.parametrize("make", [folder_of, tar_of])
def test_the_invalid_record_is_named(make: Callable, files: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_pairs([make(files, tmp_path / "set")])


def test_a_duplicate_name_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    one = folder_of(FILES, tmp_path / "one")
    with pytest.raises(UsageError, match="a occurs twice"):
        read_pairs([one, one])
    with pytest.raises(UsageError, match=r"gone\.tar: not a folder or an uncompressed tar"):
        read_pairs([tmp_path / "gone.tar"])


def test_a_duplicate_name_in_a_tar_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "set.tar"
    with tarfile.open(place, "w") as tar:
        for name, data in [*FILES.items(), ("b.jpg", make_photo(3))]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(UsageError, match=r"b\.jpg occurs twice"):
        read_pairs([place])


def test_one_name_with_two_suffixes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"b\.png occurs twice"):
        read_pairs([folder_of({**FILES, "b.png": make_photo(3, format="PNG")}, tmp_path / "set")])


def test_other_formats_are_read_and_other_files_ignored(tmp_path: Path) -> None:
    files = {
        "c.PNG": make_photo(3, format="PNG"),
        "c.json": described("x"),
        "notes.txt": b"-",
        "README": b"-",
        "._c.jpg": b"-",
    }
    (pair,) = read_pairs([folder_of(files, tmp_path / "set")])
    assert (pair.name, pair.load()) == ("c", files["c.PNG"])
