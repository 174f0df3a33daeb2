"""Captions in the published layouts, written here in the same form."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import lmdb
import lz4.frame
import msgpack
import numpy as np
import pytest

from ldot_milvus.errors import UsageError
from ldot_milvus.evaluation.datasets import DataSet, read_data_set
from ldot_milvus.regions import Regions
from ldot_milvus.regions.files import write_lmdb, write_npz
from tests.conftest import make_photo


def photos_of(place: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(make_photo(seed))
    return place


def regions(seed: int = 0) -> Regions:
    rng = np.random.default_rng(seed)
    return Regions(rng.random((3, 4), np.float32), rng.random((3, 7), np.float32), np.ones(3, np.float32))


def captions_of(data: DataSet) -> dict[str, Any]:
    return {pair.name: list(pair.captions) for pair in data.pairs}


# Multi30K: github multi30k/dataset, data/task1 and data/task2


def lines(place: Path, *texts: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(f"{text}\n" for text in texts).encode()
    place.write_bytes(gzip.compress(data) if place.suffix == ".gz" else data)


@pytest.fixture
def multi30k(tmp_path: Path) -> Path:
    task1, task2 = tmp_path / "data" / "task1", tmp_path / "data" / "task2"
    lines(task1 / "image_splits" / "train.txt", "1000092795.jpg")
    lines(task1 / "image_splits" / "val.txt", "1018148011.jpg")
    lines(task1 / "image_splits" / "test_2016_flickr.txt", "1007129816.jpg", "1009434119.jpg")
    lines(task1 / "image_splits" / "test_2017_mscoco.txt", "COCO_val2014_000000398076.jpg#657409")
    for language, first, second in (("en", "The man with pierced ears.", "A black and white dog."),
                                    ("de", "Der Mann mit Ohrringen.", "Ein schwarz-weißer Hund."),
                                    ("cs", "Muž s náušnicemi.", "Černobílý pes.")):  # fmt: skip
        lines(task1 / "raw" / f"test_2016_flickr.{language}.gz", first, second)
        lines(task1 / "raw" / f"test_2017_mscoco.{language}.gz", f"{language} only")
        lines(task1 / "raw" / f"train.{language}.gz", "train")
        lines(task1 / "raw" / f"val.{language}.gz", "val")
    lines(task2 / "image_splits" / "test_2016_images.txt", "1007129816.jpg", "1009434119.jpg")
    for number in range(1, 6):
        for language in ("en", "de"):
            lines(task2 / "raw" / f"test_2016.{number}.{language}.gz", f"{language} {number}", f"{language} {number}!")
    return tmp_path / "data"


@pytest.fixture
def flickr30k(tmp_path: Path) -> Path:
    return photos_of(tmp_path / "flickr30k-images", "1007129816.jpg", "1009434119.jpg", "1000092795.jpg",
                     "1018148011.jpg")  # fmt: skip


def test_multi30k_translations(multi30k: Path, flickr30k: Path) -> None:
    data = read_data_set([multi30k / "task1"], photos=flickr30k, language="cs")
    assert captions_of(data) == {"1007129816.jpg": ["Muž s náušnicemi."], "1009434119.jpg": ["Černobílý pes."]}
    assert data.name == "multi30k test_2016_flickr cs"
    assert data.pairs[1].load() == make_photo(1)
    validation = read_data_set([multi30k / "task1"], photos=flickr30k, split="val", language="de")
    assert captions_of(validation) == {"1018148011.jpg": ["val"]}


def test_multi30k_descriptions(multi30k: Path, flickr30k: Path) -> None:
    data = read_data_set([multi30k / "task2"], photos=flickr30k, language="de")
    assert captions_of(data) == {
        "1007129816.jpg": [f"de {n}" for n in range(1, 6)], "1009434119.jpg": [f"de {n}!" for n in range(1, 6)],
    }  # fmt: skip


def test_multi30k_on_coco_photos_and_on_regions(multi30k: Path, tmp_path: Path) -> None:
    """COCO's photos lie in a folder of their own; its list names the caption too."""
    photos = photos_of(tmp_path / "coco", "val2014/COCO_val2014_000000398076.jpg")
    data = read_data_set([multi30k / "task1"], photos=photos, split="test_2017_mscoco", language="de")
    assert captions_of(data) == {"COCO_val2014_000000398076.jpg": ["de only"]}
    write_npz(tmp_path / "coco-regions", [("coco_val2014_000000398076.npz", regions())])
    write_lmdb(tmp_path / "flickr-regions", [(f"flickr30k_00{n}.npz", regions()) for n in (1007129816, 1009434119)])
    both = [tmp_path / "coco-regions", tmp_path / "flickr-regions"]
    assert len(read_data_set([multi30k / "task1"], regions=both).pairs) == 2
    (pair,) = read_data_set([multi30k / "task1"], regions=both, split="test_2017_mscoco").pairs
    assert isinstance(pair.load(), Regions)


def test_invalid_multi30k_is_refused(multi30k: Path, flickr30k: Path) -> None:
    task1 = multi30k / "task1"
    with pytest.raises(UsageError, match=r"no captions of test_2016_flickr in language 'fr' \(languages: cs, de, en\)"):
        read_data_set([task1], photos=flickr30k, language="fr")
    with pytest.raises(UsageError, match="split 'dev' is empty"):
        read_data_set([task1], photos=flickr30k, split="dev")
    lines(task1 / "raw" / "test_2016_flickr.de.gz", "eins")
    with pytest.raises(UsageError, match=r"test_2016_flickr\.de\.gz: 1 captions for the 2 photos"):
        read_data_set([task1], photos=flickr30k, language="de")
    lines(task1 / "raw" / "test_2016_flickr.de.gz", "eins", "")
    with pytest.raises(UsageError, match=r"test_2016_flickr\.de\.gz:2: the caption of 1009434119\.jpg is empty"):
        read_data_set([task1], photos=flickr30k, language="de")
    (task1 / "raw" / "test_2016_flickr.de.gz").write_bytes(b"\x1f\x8b torn")
    with pytest.raises(UsageError, match=r"de\.gz: cannot be read as lines of UTF-8"):
        read_data_set([task1], photos=flickr30k, language="de")
    (flickr30k / "1009434119.jpg").unlink()
    with pytest.raises(UsageError, match=r"1009434119\.jpg is not in"):
        read_data_set([task1], photos=flickr30k)


# One file of PHOTO#n<tab>caption: COCO-CN, Flickr8k, Flickr30k


@pytest.fixture
def coco_cn(tmp_path: Path) -> Path:
    folder = tmp_path / "coco-cn-version1805v1.1"
    lines(folder / "coco-cn_train.txt", "COCO_val2014_000000000003")
    lines(folder / "coco-cn_val.txt", "COCO_val2014_000000000004")
    lines(folder / "coco-cn_test.txt", "COCO_train2014_000000000001", "COCO_val2014_000000000002")
    lines(
        folder / "imageid.human-written-caption.txt",
        "COCO_val2014_000000000002#0\t一只黑白相间的狗", "COCO_train2014_000000000001#0\t一个人在滑雪",
        "COCO_train2014_000000000001#1\t雪山上的滑雪者", "COCO_val2014_000000000003#0\t海滩",
        "COCO_val2014_000000000004#0\t城市夜景",
    )  # fmt: skip
    return folder


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return photos_of(tmp_path / "coco", "train2014/COCO_train2014_000000000001.jpg",
                     *(f"val2014/COCO_val2014_00000000000{n}.jpg" for n in (2, 3, 4)))  # fmt: skip


def test_coco_cn(coco_cn: Path, coco: Path) -> None:
    data = read_data_set([coco_cn], photos=coco)
    assert captions_of(data) == {
        "COCO_train2014_000000000001.jpg": ["一个人在滑雪", "雪山上的滑雪者"],
        "COCO_val2014_000000000002.jpg": ["一只黑白相间的狗"],
    }
    assert data.name == "coco-cn test"
    others = read_data_set([coco_cn], photos=coco, others=True)
    assert list(captions_of(others)) == ["COCO_val2014_000000000003.jpg", "COCO_val2014_000000000004.jpg"]
    assert others.name == ""


def test_an_invalid_file_of_captions_is_refused(coco_cn: Path, coco: Path) -> None:
    file = coco_cn / "imageid.human-written-caption.txt"
    whole = file.read_text()
    file.write_text(whole + "COCO_val2014_000000000002#0\t又来了\n")
    with pytest.raises(UsageError, match=r"caption\.txt:6: COCO_val2014_000000000002#0 occurs twice"):
        read_data_set([coco_cn], photos=coco)
    file.write_text(whole.replace("COCO_val2014_000000000002#0\t", "COCO_val2014_000000000009#0\t"))
    with pytest.raises(UsageError, match=r"COCO_val2014_000000000002\.jpg has no captions"):
        read_data_set([coco_cn], photos=coco)
    file.write_text(whole.replace("一只黑白相间的狗", " "))
    with pytest.raises(UsageError, match=r"COCO_val2014_000000000002\.jpg has an empty caption"):
        read_data_set([coco_cn], photos=coco)
    file.write_text(whole.replace("\t", " "))
    with pytest.raises(UsageError, match=r"caption\.txt:1: not of the form"):
        read_data_set([coco_cn], photos=coco)
    file.write_text(whole)
    lines(coco_cn / "coco-cn_test.txt", *["COCO_val2014_000000000002"] * 2)
    with pytest.raises(UsageError, match=r"COCO_val2014_000000000002\.jpg occurs twice"):
        read_data_set([coco_cn], photos=coco)
    lines(coco_cn / "coco-cn_test.txt")
    with pytest.raises(UsageError, match=r"split 'test' is empty \(splits: train, val, test\)"):
        read_data_set([coco_cn], photos=coco)


@pytest.mark.parametrize("split", ["dev", "val"])
def test_flickr8k(split: str, tmp_path: Path) -> None:
    folder = tmp_path / "Flickr8k_text"
    lines(folder / "Flickr_8k.devImages.txt", "1000268201_693b08cb0e.jpg")
    lines(folder / "Flickr_8k.testImages.txt", "1001773457_577c3a7d70.jpg")
    lines(folder / "Flickr8k.token.txt", "1000268201_693b08cb0e.jpg#0\tA child in a pink dress .",
          "1000268201_693b08cb0e.jpg#1\tA girl going into a building .", "1001773457_577c3a7d70.jpg#0\tTwo dogs .",
          "2258277193_586949ec62.jpg.1#0\tNo such photo is published .")  # fmt: skip
    photos = photos_of(tmp_path / "Flicker8k_Dataset", "1000268201_693b08cb0e.jpg", "1001773457_577c3a7d70.jpg")
    data = read_data_set([folder], photos=photos, split=split)
    assert captions_of(data) == {
        "1000268201_693b08cb0e.jpg": ["A child in a pink dress .", "A girl going into a building ."]
    }


def test_flickr30k_with_the_lists_of_its_entities(tmp_path: Path) -> None:
    lines(tmp_path / "text" / "test.txt", "1007129816")
    lines(tmp_path / "text" / "results_20130124.token", "1007129816.jpg#0\tA man .", "1007129816.jpg#1\tA hat .",
          "1000092795.jpg#0\tTwo young guys .")  # fmt: skip
    data = read_data_set([tmp_path / "text"], photos=photos_of(tmp_path / "images", "1007129816.jpg"))
    assert (data.name, captions_of(data)) == ("flickr30k test", {"1007129816.jpg": ["A man .", "A hat ."]})


# Karpathy's JSON


def karpathy(place: Path, *images: tuple[str, str, list[str]], dataset: str = "flickr30k") -> Path:
    listed = [{"filename": name, "split": split, "sentences": [{"raw": text} for text in texts]}
              for name, split, texts in images]  # fmt: skip
    place.write_text(json.dumps({"images": listed, "dataset": dataset}))
    return place


def test_karpathys_json_with_photos_or_regions(tmp_path: Path) -> None:
    file = karpathy(tmp_path / "dataset.json", ("36979.jpg", "test", ["one"]), ("7.jpg", "val", ["two"]),
                    ("8.jpg", "restval", ["three"]), ("9.jpg", "train", ["four"]))  # fmt: skip
    photos = photos_of(tmp_path / "photos", *(f"{n}.jpg" for n in (36979, 7, 8, 9)))
    data = read_data_set([file], photos=photos)
    (pair,) = data.pairs
    assert (data.name, pair.name, pair.captions, pair.load()) == (
        "flickr30k test", "36979.jpg", ["one"], make_photo(0)
    )  # fmt: skip
    assert list(captions_of(read_data_set([file], photos=photos, split="train"))) == ["8.jpg", "9.jpg"]
    assert list(captions_of(read_data_set([file], photos=photos, others=True))) == ["7.jpg", "8.jpg", "9.jpg"]
    write_npz(tmp_path / "regions", [("flickr30k_000000036979.npz", regions())])
    (pair,) = read_data_set([file], regions=[tmp_path / "regions"]).pairs
    assert isinstance(pair.load(), Regions)


def test_coco_of_two_folders(tmp_path: Path) -> None:
    names = ["COCO_train2014_000000000001.jpg", "COCO_val2014_000000000042.jpg"]
    file = karpathy(tmp_path / "dataset_coco.json", *((name, "train", ["x"]) for name in names), dataset="coco")
    photos = photos_of(tmp_path / "coco", f"train2014/{names[0]}", f"val2014/{names[1]}")
    assert [pair.load() for pair in read_data_set([file], photos=photos, split="train").pairs] == [
        make_photo(0), make_photo(1),
    ]  # fmt: skip


def test_an_invalid_karpathy_json_is_refused(tmp_path: Path) -> None:
    photos = photos_of(tmp_path / "photos", "2.jpg", "3.jpg")
    file = karpathy(tmp_path / "d.json", ("1.jpg", "test", ["x"]), ("2.jpg", "val", []), ("3.jpg", "train", ["a"]),
                    ("3.jpg", "restval", ["b"]))  # fmt: skip
    with pytest.raises(UsageError, match=r"split 'dev' is empty \(splits: restval, test, train, val\)"):
        read_data_set([file], photos=photos, split="dev")
    with pytest.raises(UsageError, match=r"1\.jpg is not in"):
        read_data_set([file], photos=photos)
    with pytest.raises(UsageError, match=r"2\.jpg has no captions"):
        read_data_set([file], photos=photos, split="val")
    with pytest.raises(UsageError, match=r"3\.jpg occurs twice"):
        read_data_set([file], photos=photos, split="train")
    with pytest.raises(UsageError, match="--photos DIR"):
        read_data_set([file])
    with pytest.raises(UsageError, match="nowhere: no such folder of photos"):
        read_data_set([file], photos=tmp_path / "nowhere")
    (tmp_path / "e.json").write_text('{"annotations": []}')
    with pytest.raises(UsageError, match="not Karpathy's JSON"):
        read_data_set([tmp_path / "e.json"], photos=photos)


# The authors' text LMDBs


def text_lmdb(place: Path, by_photo: dict[str, list[str]], values: dict[str, bytes]) -> Path:
    place.mkdir()
    with lmdb.open(str(place), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for name, value in values.items():
            transaction.put(name.encode(), value)
    meta = {"annotation": "dataset_flickr30k.json", "split": "test", "CLS": 101, "SEP": 102, "v_range": [106, 28996]}
    (place / "meta.json").write_text(json.dumps(meta))
    (place / "img2txts.json").write_text(json.dumps(by_photo))
    return place


def record(*ids: int) -> bytes:
    return lz4.frame.compress(msgpack.packb({"input_ids": list(ids)}))


@pytest.fixture
def two_photos(tmp_path: Path) -> Path:
    write_lmdb(tmp_path / "regions", [("flickr30k_1.npz", regions(1)), ("flickr30k_2.npz", regions(2))])
    return tmp_path / "regions"


def test_a_text_lmdb(two_photos: Path, tmp_path: Path) -> None:
    by_photo = {"flickr30k_1.npz": ["5", "6"], "flickr30k_2.npz": ["7"]}
    file = text_lmdb(tmp_path / "text", by_photo, {"5": record(1, 2), "6": record(3), "7": record(4)})
    data = read_data_set([file], regions=[two_photos])
    assert (data.name, data.vocabulary) == ("flickr30k test", 28996)
    assert captions_of(data) == {"flickr30k_1.npz": [[101, 1, 2, 102], [101, 3, 102]],
                                 "flickr30k_2.npz": [[101, 4, 102]]}  # fmt: skip


@pytest.mark.parametrize(
    ("by_photo", "values", "message"),
    [
        ({"flickr30k_3.npz": ["5"]}, {"5": record(1)}, r"no region features of flickr30k_3\.npz"),
        ({"flickr30k_1.npz": []}, {}, r"flickr30k_1\.npz has no captions"),
        ({"flickr30k_1.npz": ["5"]}, {}, r"text 5 of flickr30k_1\.npz is missing"),
        ({"flickr30k_1.npz": ["5"], "flickr30k_2.npz": ["5"]}, {"5": record(1)},
         r"text 5 occurs twice, for flickr30k_1\.npz and for flickr30k_2\.npz"),
        ({}, {}, "names no photo"),
        ([], {}, "not a text LMDB of LightningDOT"),
        ({"flickr30k_1.npz": ["5"]}, {"5": msgpack.packb({"input_ids": [1]})},
         r"text 5 of flickr30k_1\.npz is not in the authors' layout"),
        ({"flickr30k_1.npz": ["5"]}, {"5": lz4.frame.compress(msgpack.packb({"tokens": [1]}))},
         r"text 5 of flickr30k_1\.npz is not in the authors' layout"),
    ],
)  # fmt: skip
def test_an_invalid_text_lmdb_is_refused(
    by_photo: Any, values: dict[str, bytes], message: str, two_photos: Path, tmp_path: Path
) -> None:
    file = text_lmdb(tmp_path / "text", by_photo, values)
    with pytest.raises(UsageError, match=message):
        read_data_set([file], regions=[two_photos])


def test_texts_and_token_ids_do_not_mix(two_photos: Path, tmp_path: Path) -> None:
    file = text_lmdb(tmp_path / "text", {"flickr30k_1.npz": ["5"]}, {"5": record(1)})
    words = karpathy(tmp_path / "dataset_flickr30k.json", ("2.jpg", "test", ["x"]))
    write_npz(tmp_path / "more", [("flickr30k_000000000002.npz", regions())])
    with pytest.raises(UsageError, match="captions as texts, or as token ids of one vocabulary"):
        read_data_set([file, words], regions=[two_photos, tmp_path / "more"])


def test_texts_and_regions_swapped_are_refused(two_photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="regions: not a text LMDB of LightningDOT"):
        read_data_set([two_photos], regions=[two_photos])
    file = text_lmdb(tmp_path / "text", {"flickr30k_1.npz": ["5"]}, {"5": record(1)})
    with pytest.raises(UsageError, match="no region features of flickr30k_1"):
        read_data_set([file], regions=[file])
    with pytest.raises(UsageError, match="give its region features with --regions"):
        read_data_set([file])
