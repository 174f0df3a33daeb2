"""Read the captions of published data sets, whose files name photos that are stored elsewhere.

- Karpathy's JSON: ``dataset_flickr8k.json``, ``dataset_flickr30k.json``, ``dataset_coco.json``;
- text LMDBs of LightningDOT and UNITER: ``itm_flickr30k_test_base-cased.db``;
- Multi30K: a task's folder of github multi30k/dataset, ``data/task1`` (translations) or ``data/task2`` (five
  descriptions a photo in each language), with ``image_splits/`` and ``raw/``;
- a file of ``PHOTO#n<tab>caption`` with lists of names for the splits: Flickr8k (``Flickr8k_text``), Flickr30k
  (``results_20130124.token`` with the lists of Flickr30k Entities), COCO-CN (``coco-cn-version1805v1.1``).
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ldot_milvus.errors import UsageError
from ldot_milvus.evaluation.photos import Caption, Pair, PhotoFinder
from ldot_milvus.regions.files import open_lmdb

Splits = tuple[str, bool]
"""A split's name, and True to read all other splits instead."""


class Contents(NamedTuple):
    """The photos and captions of a path.

    Attributes:
        name: data set and split, by which published figures are found; empty if the files do not name them.
        pairs: the photos with their captions, read on iteration.
        vocabulary: size of the vocabulary if captions are token ids; None if they are texts.
    """

    name: str
    pairs: Iterator[Pair]
    vocabulary: int | None = None


Read = Callable[[PhotoFinder], Contents]


def published_layout(path: Path, splits: Splits, language: str) -> Read | None:
    """Return the function that reads a path; None if the path has no published layout."""
    if path.suffix == ".json":
        return partial(_karpathy, path, splits)
    if (path / "data.mdb").is_file():
        return partial(_authors, path)
    if (path / "image_splits").is_dir() and (path / "raw").is_dir():
        return partial(_multi30k, path, splits, language)
    for layout in CAPTION_FILES:
        if (path / layout.captions).is_file():
            return partial(_caption_file, path, splits, layout)
    return None


def _karpathy(path: Path, splits: Splits, photos: PhotoFinder) -> Contents:
    split, others = splits
    names = {"train": {"train", "restval"}}.get(split, {split})
    try:
        content = json.loads(path.read_text())
        images: list[dict[str, Any]] = content["images"]
        of_split = [image for image in images if (image["split"] in names) != others]
        described = [(image["filename"], [str(s["raw"]) for s in image["sentences"]]) for image in of_split]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not Karpathy's JSON of images with split and sentences ({error!r})") from error
    if not of_split:
        raise _empty(path, splits, sorted({image["split"] for image in images}))
    pairs = (Pair(name, photos.of(name, path), captions) for name, captions in described)
    return Contents(_name(content.get("dataset"), splits), pairs)


def _authors(path: Path, photos: PhotoFinder) -> Contents:
    """Read the authors' own token ids, so that figures are comparable to theirs."""
    if not photos.has_regions:
        raise UsageError(f"{path} contains captions only: give its region features with --regions")
    try:
        meta = json.loads((path / "meta.json").read_text())
        by_photo: dict[str, list[str]] = json.loads((path / "img2txts.json").read_text())
        cls, sep = int(meta["CLS"]), int(meta["SEP"])
        vocabulary = int(meta["v_range"][1])  # the end of the ids from which masking draws: all but the special ones
        listed = list(by_photo.items())
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not a text LMDB of LightningDOT: meta.json and img2txts.json ({error})") from error
    if not listed:
        raise UsageError(f"{path}: img2txts.json names no photo: give another split")
    data_set = re.search(r"dataset_(\w+)\.json", str(meta.get("annotation")))
    pairs = _authors_pairs(path, listed, cls, sep, photos)
    return Contents(_name(data_set and data_set[1], (str(meta.get("split")), False)), pairs, vocabulary)


def _authors_pairs(
    path: Path, listed: list[tuple[str, list[str]]], cls: int, sep: int, photos: PhotoFinder
) -> Iterator[Pair]:  # fmt: skip
    owner: dict[str, str] = {}
    with open_lmdb(path).begin() as transaction:
        import lz4.frame
        import msgpack

        for name, texts in listed:
            captions: list[Caption] = []
            for text in texts:
                if text in owner:
                    raise UsageError(f"{path}: text {text} occurs twice, for {owner[text]} and for {name}")
                owner[text] = name
                value = transaction.get(text.encode())
                if value is None:
                    raise UsageError(f"{path}: text {text} of {name} is missing: copy the complete LMDB")
                try:
                    record = msgpack.unpackb(lz4.frame.decompress(value), raw=False, strict_map_key=False)
                    captions.append([cls, *map(int, record["input_ids"]), sep])
                except (RuntimeError, ValueError, KeyError, TypeError) as error:
                    raise UsageError(
                        f"{path}: text {text} of {name} is not in the authors' layout, lz4-framed msgpack with "
                        f"input_ids ({error!r})"
                    ) from error
            yield Pair(name, photos.of(name, path), captions)


def _multi30k(path: Path, splits: Splits, language: str, photos: PhotoFinder) -> Contents:
    """Read Multi30K: line i of every file of captions describes the photo in line i of the split's list."""
    lists = {file.stem.removesuffix("_images"): file for file in sorted((path / "image_splits").glob("*.txt"))}
    split, others = splits
    if split == "test":  # the test split of the papers
        split = next((name for name in lists if name.startswith("test_2016")), split)
    described: dict[str, list[Caption]] = {}
    for name in (name for name in lists if (name == split) != others):
        names = [line.partition("#")[0] for line in _lines(lists[name])]
        for file in _raw_files(path / "raw", name, language):
            captions = _lines(file)
            if len(captions) != len(names):
                raise UsageError(f"{file}: {len(captions)} captions for the {len(names)} photos in {lists[name]}")
            for number, (photo, caption) in enumerate(zip(names, captions, strict=True), 1):
                if not caption:
                    raise UsageError(f"{file}:{number}: the caption of {photo} is empty")
                described.setdefault(photo, []).append(caption)
    if not described:
        raise _empty(path, splits, list(lists))
    pairs = (Pair(name, photos.of(name, path), captions) for name, captions in described.items())
    return Contents(_name("multi30k", (split, others), language), pairs)


def _raw_files(folder: Path, split: str, language: str) -> list[Path]:
    """Find ``test_2016_flickr.de.gz`` of task 1, or ``test_2016.1.de.gz`` to ``test_2016.5.de.gz`` of task 2."""
    name = re.compile(rf"{re.escape(split)}(\.\d)?\.(\w+?)(\.gz)?")
    languages = {file: match[2] for file in sorted(folder.iterdir()) if (match := name.fullmatch(file.name))}
    files = [file for file, its_language in languages.items() if its_language == language]
    if not files:
        known = ", ".join(sorted(set(languages.values()))) or "none"
        raise UsageError(f"{folder}: no captions of {split} in language {language!r} (languages: {known})")
    return files


@dataclass(frozen=True)
class CaptionFile:
    """A layout with one file of ``PHOTO#n<tab>caption`` for all splits.

    Attributes:
        name: of the data set.
        captions: name of the file of captions.
        split: pattern of the name of a split's list of photos.
        other_names: maps alternative names of splits to the data set's own.
    """

    name: str
    captions: str
    split: str
    other_names: dict[str, str]


CAPTION_FILES = (
    CaptionFile("flickr8k", "Flickr8k.token.txt", "Flickr_8k.{}Images.txt", {"val": "dev"}),
    CaptionFile("flickr30k", "results_20130124.token", "{}.txt", {"dev": "val"}),
    CaptionFile("coco-cn", "imageid.human-written-caption.txt", "coco-cn_{}.txt", {"dev": "val"}),
)


def _caption_file(
    path: Path, splits: Splits, layout: CaptionFile, photos: PhotoFinder
) -> Contents:  # fmt: skip
    split, others = splits
    split = layout.other_names.get(split, split)
    lists = {name: file for name in ("train", "val", "dev", "test")
             if (file := path / layout.split.format(name)).is_file()}  # fmt: skip
    selected = [name for name in lists if (name == split) != others]
    names = [_photo(line) for name in selected for line in _lines(lists[name]) if line]
    if not names:
        raise _empty(path, splits, list(lists))
    described: dict[str, dict[str, Caption]] = {}
    file = path / layout.captions
    for number, line in enumerate(_lines(file), 1):
        key, tab, caption = line.partition("\t")
        photo, sharp, nth = key.partition("#")
        if not line:
            continue
        if not (tab and sharp):
            raise UsageError(f"{file}:{number}: not of the form PHOTO#n<tab>caption")
        captions = described.setdefault(_photo(photo), {})
        if nth in captions:
            raise UsageError(f"{file}:{number}: {key} occurs twice")
        captions[nth] = caption.strip()
    pairs = (Pair(name, photos.of(name, path), list(described.get(name, {}).values())) for name in names)
    return Contents(_name(layout.name, (split, others)), pairs)


def _photo(name: str) -> str:
    """Add the suffix .jpg, which some lists omit."""
    return name if name.endswith(".jpg") else f"{name}.jpg"


def _lines(path: Path) -> list[str]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return [line.strip(" \r") for line in data.decode("utf-8-sig").removesuffix("\n").split("\n")]
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as lines of UTF-8 ({error})") from error


def _name(data_set: object, splits: Splits, *more: str) -> str:
    """Return the name by which published figures are found; empty if the file does not name its data set."""
    split, others = splits
    return " ".join([str(data_set), split, *more]) if data_set and not others else ""


def _empty(path: Path, splits: Splits, known: list[str]) -> UsageError:
    problem = f"no split but {splits[0]!r}" if splits[1] else f"split {splits[0]!r} is empty"
    return UsageError(f"{path}: {problem} (splits: {', '.join(known) or 'none'})")
