"""Photos with 16 bits a channel in colour, of which Pillow reads the upper 8.

A camera or scanner that has 10, 12 or 14 bits may store them in the lower ones of the 16, and the upper 8 are then
nearly black. Pillow decodes either half of the 16 bits: the raw mode with the other byte order is the lower half.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

from ldot_milvus.images.levels import to_8_bits

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

_OTHER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
_MODES = ("RGB;16", "RGBA;16", "RGBX;16")


def raw_mode(image: ImageFile) -> str | None:
    """Return Pillow's name of the 16-bit colour data of an image that is not loaded yet; None for other data."""
    if not image.tile:
        return None
    arguments = image.tile[0].args
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw if isinstance(raw, str) and raw[:-1] in _MODES else None


def is_used(image: Image) -> bool:
    """Return whether the colours of a loaded image use more than the lower 14 of the 16 bits."""
    return max(cast("int", image.getchannel(band).getextrema()[1]) for band in _colours(image)) >= 2**6


def scaled(high: ImageFile, low: ImageFile, raw: str) -> Image:
    """Return a photo with its colours scaled by their largest value.

    Args:
        high, low: the photo, opened twice and not loaded.
        raw: its :func:`raw_mode`.

    Returns:
        An image of 8 bits, with the mode of ``high``. Alpha is scaled by 16 bits.
    """
    import numpy as np
    import PIL.Image

    low.tile = [tile._replace(args=_swapped(tile.args, raw)) for tile in low.tile]
    values = np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)
    colours = len(_colours(high))
    channels = [to_8_bits(values[..., :colours]), (values[..., colours:] >> 8).astype(np.uint8)]
    return PIL.Image.fromarray(np.concatenate(channels, axis=-1), high.mode)


def _swapped(arguments: Any, raw: str) -> Any:
    other = raw[:-1] + _OTHER[raw[-1]]
    return other if isinstance(arguments, str) else (other, *arguments[1:])


def _colours(image: Image) -> tuple[str, ...]:
    return tuple(band for band in image.getbands() if band != "A")
