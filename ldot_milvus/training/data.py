"""Photos with captions as a run reads them: regions by a photo's row, extracted once where they come from pixels."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.evaluation.datasets import Caption, Pair
from ldot_milvus.images import decode
from ldot_milvus.regions import RegionExtractor, Regions
from ldot_milvus.regions.files import LmdbRegions, write_lmdb

log = logging.getLogger(__name__)

SHARD = 256
"""Photos in one file of extracted regions; a run that is killed repeats at most that many."""

Scale = tuple[NDArray[np.float32], NDArray[np.float32]]
Reader = Callable[[int], Regions]
"""Regions of the photo in a row."""


@dataclass(frozen=True)
class CaptionedPhotos:
    """N photos with their captions.

    Attributes:
        views: readers of regions: the photo itself first, then augmented ones.
        width: of a region's feature.
        scale: mean and standard deviation (width,) that training takes out of the features.
    """

    names: list[str]
    captions: list[Sequence[Caption]]
    views: list[Reader]
    width: int
    scale: Scale | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def owner(self) -> NDArray[np.int64]:
        """Row of the photo that each caption describes, captions in order of photo."""
        return np.repeat(np.arange(len(self)), [len(captions) for captions in self.captions])

    def regions(self, row: int, view: int = 0) -> Regions:
        """Regions of a photo, at mean 0 and variance 1 a channel where ``scale`` is set.

        Raises:
            InputError: features of another width, naming the photo.
        """
        found = self.views[view](row)
        if found.features.shape[1] != self.width:
            raise InputError(
                f"{self.names[row]}: its regions have {found.features.shape[1]} features, the model reads {self.width}"
            )
        if self.scale is None:
            return found
        features = (found.features - self.scale[0]) / self.scale[1]
        return Regions(features, found.boxes, found.confidence, found.soft_labels)

    def measured(self, sample: int = 1000) -> Scale:
        """Mean and standard deviation of every channel, over some photos."""
        rows = np.linspace(0, len(self) - 1, min(sample, len(self))).astype(int)
        values = np.concatenate([self.views[0](row).features for row in rows])
        return values.mean(0), values.std(0) + np.float32(1e-3)


def photos_of(
    pairs: Sequence[Pair], extractor: RegionExtractor | None, folder: Path, *, width: int, views: int = 1
) -> CaptionedPhotos:
    """Pairs as a run reads them: their own region features, or those that ``extractor`` finds, kept in ``folder``.

    Raises:
        UsageError: an empty caption, pixels without an extractor or with one of another width, or views of photos that
            come as regions.
        InputError: a photo that cannot be read.
    """
    names, captions = [pair.name for pair in pairs], [pair.captions for pair in pairs]
    for name, texts in zip(names, captions, strict=True):
        if not all(text if isinstance(text, list) else text.strip() for text in texts):
            raise UsageError(f"{name}: a caption is empty")
    if isinstance(pairs[0].load(), Regions):
        if views > 1:
            raise UsageError(f"views is {views}: photos that come as regions have one view")
        return CaptionedPhotos(names, captions, [_Given(pairs)], width)
    if extractor is None:
        raise UsageError("the model has no region extractor: give region features of the photos with --regions")
    if extractor.dim != width:
        raise UsageError(f"the region extractor gives {extractor.dim} features, the model reads {width}")
    return CaptionedPhotos(
        names, captions, [extracted(pairs, extractor, folder, view=view) for view in range(views)], width
    )


def cache_name(pairs: Sequence[Pair], extractor: str) -> str:
    """A folder's name for the regions of these photos by this extractor, and no others."""
    listed = json.dumps([extractor, [pair.name for pair in pairs]])
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def extracted(pairs: Sequence[Pair], extractor: RegionExtractor, folder: Path, *, view: int = 0) -> Reader:
    """Regions of all photos, in LMDBs of the authors' format; what an earlier call left is not computed again.

    View 0 is the photo; later ones are random crops (45 to 100 % of the area), the first and every second mirrored.
    """
    folder = folder / f"view-{view}"
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(pairs), SHARD)
    shards = [folder / f"{start:08}" for start in starts]
    for start, shard in zip(starts, shards, strict=True):
        if shard.is_dir():
            continue
        log.info("regions, view %d: %d of %d photos", view, start, len(pairs))
        rows = range(start, min(start + SHARD, len(pairs)))
        unfinished = shard.with_suffix(".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_lmdb(unfinished, zip(map(_key, rows), _extract(pairs, rows, extractor, view), strict=True))
        unfinished.rename(shard)
    return _Extracted(shards)


class _Given:
    """Regions that the pairs bring."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs

    def __call__(self, row: int) -> Regions:
        loaded = self._pairs[row].load()
        assert isinstance(loaded, Regions)
        return loaded


class _Extracted:
    def __init__(self, shards: Sequence[Path]) -> None:
        self._shards = [LmdbRegions(shard) for shard in shards]

    def __call__(self, row: int) -> Regions:
        return self._shards[row // SHARD].read(_key(row))


def _key(row: int) -> str:
    return f"{row:08}.npz"


def _extract(pairs: Sequence[Pair], rows: range, extractor: RegionExtractor, view: int) -> list[Regions]:
    found: list[Regions] = []
    for start in range(rows.start, rows.stop, 32):
        images = []
        for row in range(start, min(start + 32, rows.stop)):
            loaded = pairs[row].load()
            if isinstance(loaded, Regions):
                raise InputError(f"{pairs[row].name} comes as regions, others as photos")
            image = decode(loaded, name=pairs[row].name).image
            images.append(_augment(image, np.random.default_rng((view, row)), mirror=view % 2 == 1) if view else image)
        found += extractor(images)
    return found


def _augment(image: Image.Image, rng: np.random.Generator, *, mirror: bool) -> Image.Image:
    side = np.sqrt(rng.uniform(0.45, 1.0))
    width, height = (max(1, min(n, int(n * side * rng.uniform(0.9, 1.1)))) for n in image.size)
    x, y = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    crop = image.crop((int(x), int(y), int(x) + width, int(y) + height))
    return ImageOps.mirror(crop) if mirror else crop
