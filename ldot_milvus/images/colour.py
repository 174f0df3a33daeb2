"""Apply colour profiles: photos of phones (Display P3), cameras (Adobe RGB) and presses (CMYK) become sRGB.

The networks were trained on sRGB, without profiles. With the perceptual intent a profile of colours only (a matrix and
curves, as all displays and cameras write) is applied exactly, and one with tables is compressed into sRGB's gamut.

Processor time (littlecms 2.19, one core of 2.5 GHz): 4 ms to read a profile, once; 3.4 ms for a photo of 448 x 336
pixels, the size at which ldot-mini decodes, and 0.3 s for 12 megapixels; twice that for CMYK. A photo without a
profile, or with one that is sRGB, costs nothing.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

PROFILE = "icc_profile"
"""Key of the profile in ``Image.info``."""

NEAR = 2
"""Steps of 255: a profile that moves no colour of a lattice by more is sRGB. Many names and versions of it are used."""

_LATTICE = 9
_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}


def from_rgb(image: Image, profile: object) -> Image:
    """Convert an RGB image to sRGB. Without a usable profile of RGB colours the image is returned as it is."""
    return _applied(image, profile) or image


def from_grey(image: Image, profile: object) -> Image:
    """Convert an RGB image whose channels are equal to sRGB, by a profile of grey values or of RGB colours."""
    return _applied(image.getchannel(0), profile) or from_rgb(image, profile)


def from_cmyk(image: Image, profile: object) -> Image:
    """Convert a CMYK image to sRGB; without a usable profile by Pillow's formula."""
    return _applied(image, profile) or image.convert("RGB")


def _applied(image: Image, profile: object) -> Image | None:
    transform = _transform(profile, image.mode) if isinstance(profile, bytes) and profile else None
    return None if transform is None else transform.apply(image)


@lru_cache(maxsize=32)  # the photos of one camera have one profile
def _transform(profile: bytes, mode: str) -> Any:
    """Return the transform of a profile; None if it is damaged, of other colours than the image's, or sRGB."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            source, _srgb(), mode, "RGB",
            renderingIntent=ImageCms.Intent.PERCEPTUAL,
            flags=ImageCms.Flags.NOCACHE,  # several threads use it
        )  # fmt: skip
        return None if mode == "RGB" and _is_near(transform) else transform
    except (
        ImageCms.PyCMSError,
        OSError,
        ValueError,
        TypeError,
    ):  # a damaged profile: the colours are usable without it
        return None


def _is_near(transform: Any) -> bool:
    import numpy as np
    import PIL.Image

    steps = np.linspace(0, 255, _LATTICE).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(_LATTICE, -1, 3)
    moved = np.asarray(transform.apply(PIL.Image.fromarray(colours)))
    return bool(np.abs(moved.astype(int) - colours).max() <= NEAR)


@lru_cache(maxsize=1)
def _srgb() -> Any:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
