"""Convert images of any mode of Pillow to 8-bit sRGB."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ldot_milvus.errors import InputError
from ldot_milvus.images import colour
from ldot_milvus.images.levels import to_8_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

_BITS_TAG, _PHOTOMETRIC_TAG, _SAMPLE_FORMAT_TAG, _WHITE_TAG = 258, 262, 339, 50717
_GREY = ("1", "L", "LA", "La", "F")  # and I, I;16, ...


def to_srgb(image: Image, name: str, profile: object, reduce: Callable[[Image], Image]) -> Image:
    """Convert a loaded image of any supported mode to 8-bit sRGB, with transparency on white.

    Args:
        image: the image; it is not changed.
        name: its name, for messages.
        profile: its ICC profile; None for sRGB.
        reduce: makes a large image smaller, before its colours are computed.

    Raises:
        InputError: the mode is not supported, or no pixel has a finite value.
    """
    if image.mode == "CMYK":
        image = reduce(image)  # its profile has to be applied before it is RGB
        return colour.from_cmyk(image, profile)
    grey = image.mode in _GREY or image.mode.startswith("I")
    pixels = reduce(_to_rgb(image, name))
    return colour.from_grey(pixels, profile) if grey else colour.from_rgb(pixels, profile)


def _to_rgb(image: Image, name: str) -> Image:
    import PIL.Image

    if image.mode.startswith("I") or image.mode == "F":
        return _wide_grey(image, name).convert("RGB")
    if type(image) is PIL.Image.Image and image.mode == "RGB" and not image.info:
        return image  # a copy would cost as much as the rest
    try:
        if image.mode == "La":
            image = image.convert("LA")
        if image.has_transparency_data:
            with_alpha = image.convert("RGBA")
            white = PIL.Image.new("RGB", image.size, "white")
            white.paste(with_alpha, mask=with_alpha.getchannel("A"))
            return white
        return image.convert("RGB")
    except ValueError as error:
        if "conversion" not in str(error):
            raise
        raise InputError(
            f"{name}: pixels of mode {image.mode} are not supported: save it with 8 bits, as RGB or grey"
        ) from error


def _wide_grey(image: Image, name: str) -> Image:
    """Scale grey values of 16 or 32 bits, of which Pillow's own conversion cuts off what exceeds 255."""
    import numpy as np
    import PIL.Image

    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    values = _values(image)
    if image.mode == "I" and tags.get(_SAMPLE_FORMAT_TAG, (1,))[0] == 1 and 32 in tags.get(_BITS_TAG, ()):
        values = values.view(np.uint32)  # Pillow has signed integers only
    white = tags.get(_WHITE_TAG)  # as in DNG
    white = white[0] if isinstance(white, tuple) and white else white
    try:
        grey = to_8_bits(values, white=float(white) if isinstance(white, int) and white > 0 else None)
    except ValueError as error:
        raise InputError(f"{name}: {error}: save it with 8 bits, as RGB or grey") from error
    if tags.get(_PHOTOMETRIC_TAG) == 0:  # white is zero, which Pillow heeds for 8 bits only
        grey = 255 - grey
    return PIL.Image.fromarray(grey)


def _values(image: Image) -> NDArray[Any]:
    import numpy as np

    return np.asarray(image)
