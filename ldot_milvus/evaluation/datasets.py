"""Photos with captions, in the forms in which the field shares them.

- tars or folders of ``NAME.jpg`` and ``NAME.json`` (``{"captions": [...]}``);
- Karpathy's JSON (``dataset_flickr30k.json``, ``dataset_coco.json``), with a folder of photos or region features;
- the authors' text LMDBs, with region features.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..regions import Regions
from ..regions.files import open_lmdb, open_regions

Caption = str | list[int]
"""A text, or its WordPiece ids with [CLS] and [SEP]."""


@dataclass(frozen=True)
class Pair:
    """One photo and the captions that describe it.

    Attributes:
        load: gives the photo's bytes, undecoded, or its regions.
    """

    name: str
    load: Callable[[], bytes | Regions]
    captions: Sequence[Caption]


def read_pairs(
    paths: Sequence[str | Path], *, regions: str | Path | None = None, photos: str | Path | None = None,
    split: str = "test",
) -> list[Pair]:  # fmt: skip
    """The pairs of some files, whatever form each has.

    Args:
        regions: region features of the photos, instead of pixels (see :func:`~ldot_milvus.regions.open_regions`).
        photos: the folder of the photos that a Karpathy JSON names.
        split: of a Karpathy JSON; "train" takes its "restval" too.

    Raises:
        UsageError: a file of no known form, a photo without captions, captions without a photo, a name twice, no
            photo at all; the record is named.
    """
    features = None if regions is None else _Features(regions)
    pairs: list[Pair] = []
    for path in map(Path, paths):
        if path.suffix == ".json":
            found = _karpathy(path, split, features, None if photos is None else Path(photos))
        elif (path / "data.mdb").is_file():
            found = _authors(path, features)
        else:
            found = _members(path, features)
        listed = list(found)
        if not listed:
            raise UsageError(f"{path}: holds no photo with captions")
        pairs += listed
    seen: set[str] = set()
    for pair in pairs:
        if pair.name in seen:
            raise UsageError(f"{pair.name} is there twice among {', '.join(map(str, paths))}")
        seen.add(pair.name)
        if not pair.captions:
            raise UsageError(f"{pair.name} has no captions")
    return pairs


def _members(path: Path, features: _Features | None) -> Iterator[Pair]:
    """``NAME.jpg`` with ``NAME.json`` in a tar or a folder, in order of name."""
    photos: dict[str, Callable[[], bytes | Regions]] = {}
    captions: dict[str, list[Caption]] = {}
    try:
        for name, load in _files(path):
            stem, _, suffix = name.rpartition(".")
            if suffix == "jpg":
                photos[stem] = load
            elif suffix == "json":
                captions[stem] = json.loads(load())["captions"]
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a tar or folder of NAME.jpg and NAME.json with captions ({error})") from error
    for name in sorted(photos.keys() | captions.keys()):
        if name not in photos and features is None:
            raise UsageError(f"{path}: {name}.json has captions of a photo that is not there ({name}.jpg)")
        if not captions.get(name):
            raise UsageError(f"{path}: {name}.jpg has no captions ({name}.json)")
        yield Pair(name, photos[name] if features is None else features.of(name), captions[name])


def _files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if path.is_dir():
        for file in sorted(path.iterdir()):
            yield file.name, file.read_bytes
        return
    with tarfile.open(path) as tar:
        for member in tar:
            opened = tar.extractfile(member) if member.name.endswith((".jpg", ".json")) else None
            if opened is not None:
                yield member.name, partial(bytes, opened.read())


def _karpathy(path: Path, split: str, features: _Features | None, photos: Path | None) -> Iterator[Pair]:
    if features is None and photos is None:
        raise UsageError(f"{path} names photos: say where they are with --photos DIR, or give --regions")
    splits = {"train": {"train", "restval"}}.get(split, {split})
    try:
        images: list[dict[str, Any]] = json.loads(path.read_text())["images"]
        chosen = [image for image in images if image["split"] in splits]
        described = [(image["filename"], [str(s["raw"]) for s in image["sentences"]]) for image in chosen]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not Karpathy's JSON of images with split and sentences ({error!r})") from error
    if not chosen:
        there = ", ".join(sorted({image["split"] for image in images})) or "none"
        raise UsageError(f"{path}: split {split!r} is empty (there are: {there})")
    for filename, captions in described:
        if features is not None:
            yield Pair(filename, features.of(filename), captions)
            continue
        assert photos is not None
        file = photos / filename
        if not file.is_file():
            raise UsageError(f"{path}: {filename} is not in {photos}")
        yield Pair(filename, file.read_bytes, captions)


def _authors(path: Path, features: _Features | None) -> Iterator[Pair]:
    """A text LMDB: token ids as the authors' WordPiece gave them, so that figures are comparable to theirs."""
    if features is None:
        raise UsageError(f"{path} has captions only: give its region features with --regions")
    import lz4.frame
    import msgpack

    try:
        meta = json.loads((path / "meta.json").read_text())
        by_image: dict[str, list[str]] = json.loads((path / "img2txts.json").read_text())
        cls, sep = int(meta["CLS"]), int(meta["SEP"])
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: not a text LMDB of LightningDOT: meta.json and img2txts.json ({error})") from error
    with open_lmdb(path).begin() as transaction:
        for name, texts in by_image.items():
            captions: list[Caption] = []
            for text in texts:
                value = transaction.get(text.encode())
                try:
                    record = msgpack.unpackb(lz4.frame.decompress(value), raw=False, strict_map_key=False)
                    captions.append([cls, *map(int, record["input_ids"]), sep])
                except (RuntimeError, ValueError, KeyError, TypeError) as error:
                    raise UsageError(f"{path}: text {text} of {name} cannot be read ({error})") from error
            yield Pair(name, features.of(name), captions)


class _Features:
    """Region features of photos under whichever of the usual names they are stored."""

    def __init__(self, path: str | Path) -> None:
        self._file = open_regions(path)
        self._names = set(self._file.names)

    def of(self, name: str) -> Callable[[], Regions]:
        """Reads the regions of a photo.

        Raises:
            UsageError: there are none.
        """
        for candidate in _spellings(name):
            if candidate in self._names:
                return partial(self._file.read, candidate)
        raise UsageError(f"there are no region features of {name} (looked for {', '.join(_spellings(name))})")


def _spellings(name: str) -> Iterator[str]:
    """COCO_val2014_000000000042.jpg is stored as coco_val2014_000000000042.npz, 36979.jpg as flickr30k_...npz."""
    stem = name.rpartition(".")[0] or name
    yield from dict.fromkeys((name, stem, f"{stem}.npz", f"{stem.lower()}.npz"))
    if stem.isdigit():
        yield f"flickr30k_{int(stem):012}.npz"
