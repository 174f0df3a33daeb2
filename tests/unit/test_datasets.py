"""Photos with captions in every form, and what is wrong with them told by the record's name."""

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
from ldot_milvus.regions import Regions
from ldot_milvus.regions.files import write_npz
from tests.conftest import make_photo

AUTHORS = Path(__file__).parents[1] / "golden" / "authors_data"
TEXT = AUTHORS / "itm_coco_val_base-cased.db"
REGIONS = AUTHORS / "coco_val2014" / "feat_th0.2_max100_min10"


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


def regions(seed: int) -> Regions:
    rng = np.random.default_rng(seed)
    return Regions(rng.random((3, 4), np.float32), rng.random((3, 7), np.float32), np.ones(3, np.float32))


def karpathy(place: Path, *images: tuple[str, str, list[str]]) -> Path:
    listed = [{"filename": name, "split": split, "sentences": [{"raw": text} for text in texts]}
              for name, split, texts in images]  # fmt: skip
    place.write_text(json.dumps({"images": listed}))
    return place


def test_karpathys_json_with_photos_or_regions(tmp_path: Path) -> None:
    file = karpathy(tmp_path / "dataset.json", ("36979.jpg", "test", ["one"]), ("7.jpg", "val", ["two"]),
                    ("8.jpg", "restval", ["three"]), ("9.jpg", "train", ["four"]))  # fmt: skip
    photos = folder_of({f"{n}.jpg": make_photo(n) for n in (36979, 7, 8, 9)}, tmp_path / "photos")
    (pair,) = read_pairs([file], photos=photos)
    assert (pair.name, pair.captions, pair.load()) == ("36979.jpg", ["one"], make_photo(36979))
    assert [pair.name for pair in read_pairs([file], photos=photos, split="train")] == ["8.jpg", "9.jpg"]
    write_npz(tmp_path / "regions", [("flickr30k_000000036979.npz", regions(0))])
    (pair,) = read_pairs([file], regions=tmp_path / "regions")
    assert isinstance(pair.load(), Regions)


def test_the_authors_files() -> None:
    pairs = read_pairs([TEXT], regions=REGIONS)
    assert len(pairs) == 6
    assert all(len(pair.captions) == 5 for pair in pairs)
    with np.load(AUTHORS / "expected.npz") as expected:
        for pair in pairs:
            np.testing.assert_array_equal(pair.load().features, expected[f"adaptive/{pair.name}/features"])
        wanted = {tuple(expected[key].tolist()) for key in expected.files if key.startswith("text/")}
    assert {tuple(caption) for pair in pairs for caption in pair.captions} == wanted


def test_the_authors_files_evaluated_end_to_end(tmp_path: Path) -> None:
    """A dual encoder and a UNITER of the published layout, small and of random weights, on the authors' own files."""
    import torch

    from ldot_milvus import LightningDOTEmbedder
    from ldot_milvus.evaluation.evaluate import evaluate
    from ldot_milvus.model import CrossAttentionReranker, LightningDOT, LightningDOTConfig, RerankerConfig
    from tests.conftest import build_tiny_model

    torch.manual_seed(0)
    body = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    folder = build_tiny_model(tmp_path / "model")
    LightningDOT(LightningDOTConfig(text_config=body, image_config=body, projection_dim=16)).save_pretrained(folder)
    CrossAttentionReranker(RerankerConfig(bert_config=body)).save_pretrained(folder / "reranker")
    embedder = LightningDOTEmbedder(str(folder), device="cpu")
    pairs = read_pairs([TEXT], regions=REGIONS)
    figures = evaluate(embedder, pairs, rerank=3)
    assert (figures["images"], figures["captions"], figures["reranked"]["M"]) == (6, 30, 3)
    vectors = embedder.encode_images([pair.load() for pair in pairs])
    scores = embedder.encode_texts([caption for pair in pairs for caption in pair.captions]) @ vectors.T
    first = (scores.argmax(1) == np.repeat(np.arange(6), 5)).mean()
    assert figures["text_to_image"]["R@1"] == pytest.approx(100 * first, abs=0.01)


def change(**files: bytes | None) -> dict[str, bytes]:
    changed = FILES | {name.replace("_", "."): data for name, data in files.items()}
    return {name: data for name, data in changed.items() if data is not None}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (change(b_jpg=None), r"b\.json has captions of a photo that is not there"),
        (change(b_json=None), r"b\.jpg has no captions"),
        (change(b_json=described()), r"b has no captions"),
        (change(b_json=described("x", " ")), r"b has an empty caption"),
        (change(b_json=b"[]"), r"b\.json: not JSON of the form"),
        (change(b_json=b"{"), r"b\.json: not JSON of the form"),
        (change(b_json=b'{"captions": "x"}'), r"b\.json: its captions are not a list of texts"),
        ({}, "holds no photo"),
    ],
)
@pytest.mark.parametrize("make", [folder_of, tar_of])
def test_the_record_that_is_wrong_is_named(make: Callable, files: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_pairs([make(files, tmp_path / "set")])


def test_a_name_twice_an_empty_split_a_missing_record(tmp_path: Path) -> None:
    one = folder_of(FILES, tmp_path / "one")
    with pytest.raises(UsageError, match="a is there twice"):
        read_pairs([one, one])
    file = karpathy(tmp_path / "d.json", ("1.jpg", "test", ["x"]), ("2.jpg", "val", []))
    with pytest.raises(UsageError, match=r"split 'dev' is empty \(there are: test, val\)"):
        read_pairs([file], photos=one, split="dev")
    with pytest.raises(UsageError, match=r"1\.jpg is not in"):
        read_pairs([file], photos=one)
    with pytest.raises(UsageError, match="--photos DIR"):
        read_pairs([file])
    with pytest.raises(UsageError, match=r"no region features of 1\.jpg"):
        read_pairs([file], regions=REGIONS)
    (one / "2.jpg").write_bytes(make_photo(3))
    with pytest.raises(UsageError, match=r"2\.jpg has no captions"):
        read_pairs([file], photos=one, split="val")
    (tmp_path / "e.json").write_text('{"annotations": []}')
    with pytest.raises(UsageError, match="not Karpathy's JSON"):
        read_pairs([tmp_path / "e.json"], photos=one)
    with pytest.raises(UsageError, match=r"gone\.tar: not a folder or an uncompressed tar"):
        read_pairs([tmp_path / "gone.tar"])
    with pytest.raises(UsageError, match="give its region features"):
        read_pairs([TEXT])
    with pytest.raises(UsageError, match="not a text LMDB"):
        read_pairs([REGIONS], regions=REGIONS)
