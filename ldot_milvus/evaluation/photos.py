"""Pairs of a photo and its captions, and a finder of photos that a file of captions names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ldot_milvus.errors import UsageError
from ldot_milvus.regions import Regions
from ldot_milvus.regions.files import RegionFile, open_regions

Caption = str | list[int]
"""A text, or its WordPiece ids with [CLS] and [SEP]."""

Load = Callable[[], bytes | Regions]
"""Reads a photo's encoded bytes, or its regions."""


@dataclass(frozen=True)
class Pair:
    """A photo and its captions.

    Attributes:
        name: of the photo, unique in a data set.
        load: reads the photo.
        captions: of the photo, at least one.
    """

    name: str
    load: Load
    captions: Sequence[Caption]


class PhotoFinder:
    """Finds photos by their names in a data set.

    Args:
        regions: region features, used instead of pixels (see :func:`~ldot_milvus.regions.files.open_regions`). A data
            set may have several, such as COCO (train2014, val2014).
        folder: of the photos. COCO's may be in its subfolders ``train2014`` and ``val2014``, as published.

    Attributes:
        has_regions: True if the finder returns regions.

    Raises:
        UsageError: a path contains no region features, or the folder does not exist.
    """

    def __init__(self, regions: Sequence[str | Path] = (), folder: str | Path | None = None) -> None:
        self._records: dict[str, RegionFile] = {}
        for path in regions:
            file = open_regions(path)
            self._records |= dict.fromkeys(file.names, file)
        self.has_regions = bool(regions)
        self._where = " or ".join(map(str, regions))
        self._folder = None if folder is None else Path(folder).expanduser()
        if self._folder is not None and not self._folder.is_dir():
            raise UsageError(f"{folder}: no such folder of photos")

    def of(self, name: str, captions: Path) -> Load:
        """Return a function that reads a photo.

        Args:
            name: of the photo.
            captions: the file that names it, for messages.

        Raises:
            UsageError: the photo is missing, or neither ``regions`` nor ``folder`` was given.
        """
        if self.has_regions:
            for candidate in _spellings(name):
                if candidate in self._records:
                    return partial(self._records[candidate].read, candidate)
            raise UsageError(
                f"{self._where}: no region features of {name} (tried the names {', '.join(_spellings(name))})"
            )
        if self._folder is None:
            raise UsageError(f"{captions} names photos: give their folder with --photos DIR, or --regions")
        published = re.match(r"COCO_(\w+)_\d+\.jpg", name)
        for file in (self._folder / name, self._folder / (published[1] if published else "") / name):
            if file.is_file():
                return file.read_bytes
        raise UsageError(f"{captions}: photo {name} is not in {self._folder}")


def _spellings(name: str) -> Iterator[str]:
    """Yield the names under which region files store a photo.

    Published ones store COCO_val2014_000000000042.jpg as coco_val2014_000000000042.npz, and 36979.jpg of Flickr30K as
    flickr30k_000000036979.npz.
    """
    stem = name.rpartition(".")[0] or name
    names = [name, stem, f"{stem}.npz", f"{stem.lower()}.npz"]
    if stem.isdigit():
        names.append(f"flickr30k_{int(stem):012}.npz")
    yield from dict.fromkeys(names)
