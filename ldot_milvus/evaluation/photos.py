"""Photos with their captions, and where the photos are that a file of captions only names."""

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
"""Gives a photo's bytes, undecoded, or its regions."""


@dataclass(frozen=True)
class Pair:
    """One photo and the captions that describe it."""

    name: str
    load: Load
    captions: Sequence[Caption]


class PhotoFinder:
    """Photos by the names that data sets give them.

    Args:
        regions: region features, instead of pixels (see :func:`~ldot_milvus.regions.files.open_regions`); several
            where a data set has several, as COCO has (train2014, val2014).
        folder: of photos; COCO's may lie in ``train2014`` and ``val2014`` in it, as they are published.
    """

    def __init__(self, regions: Sequence[str | Path] = (), folder: str | Path | None = None) -> None:
        self._records: dict[str, RegionFile] = {}
        for path in regions:
            file = open_regions(path)
            self._records |= dict.fromkeys(file.names, file)
        self.has_regions = bool(regions)
        self._where = " or ".join(map(str, regions))
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None and not self._folder.is_dir():
            raise UsageError(f"{folder}: no such folder of photos")

    def of(self, name: str, captions: Path) -> Load:
        """Reads the photo that ``captions`` name.

        Raises:
            UsageError: it is not there, or nobody said where photos are.
        """
        if self.has_regions:
            for candidate in _spellings(name):
                if candidate in self._records:
                    return partial(self._records[candidate].read, candidate)
            raise UsageError(f"there are no region features of {name} in {self._where} (looked for "
                             f"{', '.join(_spellings(name))})")  # fmt: skip
        if self._folder is None:
            raise UsageError(f"{captions} names photos: say where they are with --photos DIR, or give --regions")
        published = re.match(r"COCO_(\w+)_\d+\.jpg", name)
        for file in (self._folder / name, self._folder / (published[1] if published else "") / name):
            if file.is_file():
                return file.read_bytes
        raise UsageError(f"{captions}: {name} is not in {self._folder}")


def _spellings(name: str) -> Iterator[str]:
    """COCO_val2014_000000000042.jpg is stored as coco_val2014_000000000042.npz, 36979.jpg as flickr30k_...npz."""
    stem = name.rpartition(".")[0] or name
    spelled = [name, stem, f"{stem}.npz", f"{stem.lower()}.npz"]
    if stem.isdigit():
        spelled.append(f"flickr30k_{int(stem):012}.npz")
    yield from dict.fromkeys(spelled)
