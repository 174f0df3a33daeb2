"""Prepare photos for a vision transformer as transformers' ``...Pil`` image processors do, with Pillow and numpy alone.

The image processors that transformers 5 chooses by itself need torchvision. Parameters are those of
``preprocessor_config.json``: resize, crop the middle, scale to 0..1, subtract the mean and divide by the deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ldot_milvus.errors import InputError
from ldot_milvus.images import open_image
from ldot_milvus.models.base import Array, ImageInput
from ldot_milvus.regions.base import Regions

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Means and deviations of the colours in CLIP's training set (openai/CLIP, clip/clip.py); BLIP's are the same."""

BICUBIC = 3  # Pillow's number of the filter, which configurations contain

THREADS = 4
"""Photos that are resized at a time; Pillow releases the interpreter's lock."""


@dataclass(frozen=True)
class Preparation:
    """Converts a photo to a network's input.

    Attributes:
        size: height and width to which the photo is squashed; None resizes by ``short_side``.
        short_side: length of the short side after resizing, with the aspect ratio kept; None with ``size``.
        crop: height and width of the middle that is cropped; None crops nothing.
        resample: Pillow's number of the resampling filter.
        factor: by which the pixels (0 to 255) are multiplied.
        mean, std: of each channel, in the unit of the multiplied pixels.
    """

    size: tuple[int, int] | None
    short_side: int | None
    crop: tuple[int, int] | None
    resample: int
    factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of every prepared photo."""
        output = self.crop or self.size
        assert output is not None
        return output

    def __call__(self, image: Image) -> Array:
        """Prepare an RGB image of 8 bits: float32 (3, height, width)."""
        pixels = np.asarray(self._cropped(self._resized(image)), np.float32)
        scale = np.float32(self.factor) / np.asarray(self.std, np.float32)
        offset = np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray((pixels * scale - offset).transpose(2, 0, 1))

    def _resized(self, image: Image) -> Image:
        if self.size is not None:
            height, width = self.size
        else:
            assert self.short_side is not None
            short, long = sorted(image.size)
            long = int(self.short_side * long / short)
            width, height = (self.short_side, long) if image.width <= image.height else (long, self.short_side)
        return image.resize((width, height), self.resample)

    def _cropped(self, image: Image) -> Image:
        if self.crop is None:
            return image
        # Pillow fills what lies outside of a smaller image with black, as the processors do.
        height, width = self.crop
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


def read_preparation(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Preparation:
    """Read the parameters of an image processor.

    Args:
        config: the content of ``preprocessor_config.json``.
        defaults: the family's values of keys that the configuration omits.

    Raises:
        ValueError: a value is missing or not supported. The message names the key.
    """
    values = {**defaults, **{key: value for key, value in config.items() if value is not None}}
    if values.get("do_pad") or not values.get("do_resize", True):
        raise ValueError("photos that are padded, or not resized, are not supported (do_pad, do_resize)")
    size = values["size"]
    if isinstance(size, int):
        size = {"shortest_edge": size} if "shortest_edge" in defaults["size"] else {"height": size, "width": size}
    squashed = (int(size["height"]), int(size["width"])) if {"height", "width"} <= size.keys() else None
    if squashed is None and set(size) != {"shortest_edge"}:
        raise ValueError(f"size is {size}: give height and width, or shortest_edge")
    crop = None
    if values.get("do_center_crop"):
        sides = values["crop_size"]
        crop = (sides, sides) if isinstance(sides, int) else (int(sides["height"]), int(sides["width"]))
    if squashed is None and crop is None:
        raise ValueError("photos of different sizes are not supported: set do_center_crop")
    normalize = values.get("do_normalize", True)
    return Preparation(
        size=squashed,
        short_side=None if squashed else int(size["shortest_edge"]),
        crop=crop,
        resample=int(values.get("resample", BICUBIC)),
        factor=float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0,
        mean=_three(values["image_mean"]) if normalize else (0.0, 0.0, 0.0),
        std=_three(values["image_std"]) if normalize else (1.0, 1.0, 1.0),
    )


def prepare_photos(name: str, preparation: Preparation, images: Sequence[ImageInput]) -> Array:
    """Open and prepare photos.

    Args:
        name: the model's name, for the message.
        preparation: the model's.
        images: n paths, encoded bytes or PIL images.

    Returns:
        float32 (n, 3, height, width).

    Raises:
        InputError: an image cannot be read, or is given as region features.
    """
    if any(isinstance(image, Regions) for image in images):
        raise InputError(f"model {name!r} reads photos, and these are region features: give the photos")

    def prepared(image: Any) -> Array:
        return preparation(open_image(image).image)

    if len(images) < 2:
        arrays = [prepared(image) for image in images]
    else:
        with ThreadPoolExecutor(min(THREADS, len(images))) as threads:
            arrays = list(threads.map(prepared, images))
    return np.stack(arrays) if arrays else np.zeros((0, 3, *preparation.output), np.float32)


def _three(values: float | Sequence[float]) -> tuple[float, float, float]:
    first, second, third = [values] * 3 if isinstance(values, (int, float)) else values
    return float(first), float(second), float(third)
