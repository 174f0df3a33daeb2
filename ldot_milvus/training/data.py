"""Photos with captions as training reads them. Regions are extracted from pixels once and stored."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
"""Number of photos in a file of extracted regions, and the maximum that a killed run has to repeat."""

Scale = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Mean and standard deviation of every feature channel, (width,) each."""
Reader = Callable[[int], Regions]
"""Reads the regions of a photo, given its index."""


@dataclass(frozen=True)
class CaptionedPhotos:
    """N photos with their captions.

    Attributes:
        names: of the photos.
        captions: of each photo.
        views: readers of regions: of the photo first, then of its augmentations.
        width: of a region's feature vector.
        scale: by which training standardises the features; None leaves them unchanged.
        labels: number of the model's label names, whose probabilities every photo needs; 0 for a model without them.
    """

    names: list[str]
    captions: list[Sequence[Caption]]
    views: list[Reader]
    width: int
    scale: Scale | None = None
    labels: int = 0

    def __len__(self) -> int:
        return len(self.names)

    @property
    def owner(self) -> NDArray[np.int64]:
        """Index of each caption's photo, (captions,), in order of photo."""
        return np.repeat(np.arange(len(self)), [len(captions) for captions in self.captions])

    def regions(self, row: int, view: int = 0) -> Regions:
        """Read the regions of a photo, standardised to mean 0 and variance 1 in each channel if ``scale`` is set.

        Raises:
            InputError: the features have another width, or label probabilities are missing. The message names the
                photo.
        """
        regions = self.views[view](row)
        if regions.features.shape[1] != self.width:
            raise InputError(
                f"{self.names[row]}: its regions have {regions.features.shape[1]} features, "
                f"the model reads {self.width}: extract them with the model's extractor"
            )
        given = regions.label_probabilities
        if self.labels and (given is None or given.shape[1] != self.labels):
            raise InputError(
                f"{self.names[row]}: its regions lack the probabilities of the model's {self.labels} labels: "
                "give photos instead of region features"
            )
        if self.scale is None:
            return regions
        return replace(regions, features=(regions.features - self.scale[0]) / self.scale[1])

    def measured(self, sample: int = 1000) -> Scale:
        """Measure mean and standard deviation of every channel over ``sample`` photos, evenly spaced."""
        rows = evenly(len(self), sample)
        values = np.concatenate([self.views[0](row).features for row in rows])
        return values.mean(0), values.std(0) + np.float32(1e-3)


def evenly(total: int, count: int) -> list[int]:
    """Return ``count`` of the indices below ``total`` at even distances; all of them if there are fewer."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()


def photos_of(
    pairs: Sequence[Pair], extractor: RegionExtractor | None, folder: Path, *, width: int, views: int = 1,
    labels: int = 0,
) -> CaptionedPhotos:  # fmt: skip
    """Prepare pairs for training, extracting the regions of photos unless the pairs have region features.

    Args:
        pairs: the photos with their captions.
        extractor: extracts regions; None if the pairs have region features.
        folder: where extracted regions are stored.
        width: of the features that the model reads.
        views: number of views of a photo; see :func:`extracted`.
        labels: number of the model's label names.

    Raises:
        UsageError: a caption is empty, photos have no extractor or one of another width, or several views of
            precomputed regions are requested.
        InputError: a photo cannot be read.
    """
    names, captions = [pair.name for pair in pairs], [pair.captions for pair in pairs]
    for name, texts in zip(names, captions, strict=True):
        if not all(text if isinstance(text, list) else text.strip() for text in texts):
            raise UsageError(f"{name}: a caption is empty: fill it in, or remove it")
    if isinstance(pairs[0].load(), Regions):
        if views > 1:
            raise UsageError(f"views is {views}, but precomputed regions have one view: set data.views to 1")
        return CaptionedPhotos(names, captions, [_PrecomputedReader(pairs)], width, labels=labels)
    if extractor is None:
        raise UsageError("the model has no region extractor: give region features of the photos with --regions")
    if extractor.dim != width:
        raise UsageError(
            f"the region extractor returns {extractor.dim} features, the model reads {width}: change data.extraction"
        )
    readers = [extracted(pairs, extractor, folder, view=view) for view in range(views)]
    return CaptionedPhotos(names, captions, readers, width, labels=labels)


def cache_name(pairs: Sequence[Pair], extractor: str) -> str:
    """Return the name of the folder for the regions of these photos by this extractor, a hash of both."""
    listed = json.dumps([extractor, [pair.name for pair in pairs]])
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def extracted(pairs: Sequence[Pair], extractor: RegionExtractor, folder: Path, *, view: int = 0) -> Reader:
    """Extract the regions of all photos to LMDBs in the authors' format. Files of an earlier call are reused.

    Args:
        pairs: the photos.
        extractor: extracts the regions.
        folder: of the LMDBs.
        view: 0 is the photo. Others are random crops (45 to 100 % of the area), mirrored for odd numbers.
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
    return _ExtractedReader(shards)


class _PrecomputedReader:
    """Reads region features of the pairs."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs

    def __call__(self, row: int) -> Regions:
        loaded = self._pairs[row].load()
        assert isinstance(loaded, Regions)
        return loaded


class _ExtractedReader:
    """Reads extracted regions."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self._shards = [LmdbRegions(shard) for shard in shards]

    def __call__(self, row: int) -> Regions:
        return self._shards[row // SHARD].read(_key(row))


def _key(row: int) -> str:
    return f"{row:08}.npz"


def _extract(pairs: Sequence[Pair], rows: range, extractor: RegionExtractor, view: int) -> list[Regions]:
    regions: list[Regions] = []
    for start in range(rows.start, rows.stop, 32):
        images = []
        for row in range(start, min(start + 32, rows.stop)):
            loaded = pairs[row].load()
            if isinstance(loaded, Regions):
                raise InputError(f"{pairs[row].name} is given as regions, others as photos: give all in one form")
            image = decode(loaded, name=pairs[row].name).image
            images.append(_augment(image, np.random.default_rng((view, row)), mirror=view % 2 == 1) if view else image)
        regions += extractor(images)
    return regions


def _augment(image: Image.Image, rng: np.random.Generator, *, mirror: bool) -> Image.Image:
    side = np.sqrt(rng.uniform(0.45, 1.0))
    width, height = (max(1, min(n, int(n * side * rng.uniform(0.9, 1.1)))) for n in image.size)
    x, y = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    crop = image.crop((int(x), int(y), int(x) + width, int(y) + height))
    return ImageOps.mirror(crop) if mirror else crop
