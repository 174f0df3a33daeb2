"""Photos with captions, as region features computed once and kept on disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..evaluation.datasets import Pair, read_pairs
from ..images import decode
from ..regions import RegionExtractor

log = logging.getLogger(__name__)

Features = NDArray[np.float16]
Scale = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class CachedPhotos:
    """N photos: ``views`` are arrays (N, R, d) of float16 features, the photo itself first, then augmented ones.

    ``scale`` is the mean and the standard deviation (d,) that training takes out of the features.
    """

    names: list[str]
    captions: list[list[str]]
    views: list[Features]
    scale: Scale | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def owner(self) -> NDArray[np.int64]:
        """Row of the photo that each caption describes, captions in order of photo."""
        return np.repeat(np.arange(len(self)), [len(captions) for captions in self.captions])

    def measured(self, sample: int = 1000) -> Scale:
        """Mean and standard deviation of every channel, over some photos."""
        rows = np.linspace(0, len(self) - 1, min(sample, len(self))).astype(int)
        values = self.views[0][rows].astype(np.float32).reshape(-1, self.views[0].shape[-1])
        return values.mean(0), values.std(0) + 1e-3

    def standardised(self, features: NDArray[np.float16]) -> NDArray[np.float32]:
        """Features as float32, at mean 0 and variance 1 a channel where ``scale`` is set."""
        values = features.astype(np.float32)
        if self.scale is not None:
            values -= self.scale[0]
            values /= self.scale[1]
        return values


def cache_photos(
    tars: Sequence[str | Path], extractors: Sequence[RegionExtractor], folder: str | Path, *, seed: int = 0
) -> CachedPhotos:
    """Region features of all photos, one view for each extractor, read from ``folder`` where an earlier run left them.

    View 0 is the photo; later ones are random crops (45 to 100 % of the area), the first and every second mirrored.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pairs = read_pairs(tars)
    names = [pair.name for pair in pairs]
    arrays: list[Features] = []
    for view, extractor in enumerate(extractors):
        path, done = folder / f"view-{view}.npy", folder / f"view-{view}.json"
        if not (done.exists() and json.loads(done.read_text()) == names):
            _extract_view(pairs, extractor, path, view, np.random.default_rng((seed, view)))
            done.write_text(json.dumps(names))
        arrays.append(np.load(path, mmap_mode="r"))
    return CachedPhotos(names, [[str(caption) for caption in pair.captions] for pair in pairs], arrays)


def _extract_view(
    pairs: Sequence[Pair],
    extractor: RegionExtractor,
    path: Path,
    view: int,
    rng: np.random.Generator,
    batch_size: int = 32,
) -> None:
    array: Any = None
    for start in range(0, len(pairs), batch_size):
        images = [decode(_photo(pair), name=pair.name).image for pair in pairs[start : start + batch_size]]
        if view:
            images = [_augment(image, rng, mirror=view % 2 == 1) for image in images]
        features = np.stack([regions.features for regions in extractor(images)]).astype(np.float16)
        if array is None:
            shape = (len(pairs), *features.shape[1:])
            array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        array[start : start + len(images)] = features
        if start // batch_size % 20 == 0:
            log.info("regions, view %d: %d of %d photos", view, start, len(pairs))
    array.flush()


def _photo(pair: Pair) -> bytes:
    loaded = pair.load()
    assert isinstance(loaded, bytes)
    return loaded


def _augment(image: Image.Image, rng: np.random.Generator, *, mirror: bool) -> Image.Image:
    side = np.sqrt(rng.uniform(0.45, 1.0))
    width, height = (max(1, min(n, int(n * side * rng.uniform(0.9, 1.1)))) for n in image.size)
    x, y = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    crop = image.crop((int(x), int(y), int(x) + width, int(y) + height))
    return ImageOps.mirror(crop) if mirror else crop
