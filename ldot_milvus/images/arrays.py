"""Images from NumPy arrays and from what converts to them, such as torch tensors on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ldot_milvus.arguments import described, to_array
from ldot_milvus.errors import InputError
from ldot_milvus.images.levels import to_8_bits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

CHANNELS = (1, 2, 3, 4)
"""Grey, grey and alpha, RGB, RGBA."""

OVERSHOOT = 1 / 255
"""Floating-point values may be outside of 0..1 by this, from resampling; they are cut off."""

FORMS = "(H, W), (H, W, 1 to 4) or (1 to 4, H, W)"


class SupportsArray(Protocol):
    """What NumPy converts: arrays, tensors of torch and others."""

    def __array__(self) -> Any: ...


def image_of(value: Any, name: str) -> Image:
    """Make a PIL image of an array.

    Args:
        value: an array or tensor. Grey (H, W); or 1 to 4 channels last (H, W, C) or first (C, H, W). Boolean,
            unsigned 8-bit, other integers from 0 to 65,535, which are scaled by the depth that holds them, or
            floating-point numbers from 0 to 1.
        name: the image's name, for messages.

    Returns:
        A new image of mode L, LA, RGB or RGBA.

    Raises:
        InputError: shape, type or values are not those of an image, or the shape is that of two layouts.
    """
    import PIL.Image

    given = described(value)
    try:
        values = to_array(value)
    except ValueError as error:
        raise InputError(f"{name}: {given} does not convert to an array ({error})") from error
    if values.dtype.kind not in "buif":
        raise InputError(f"{name}: {given} is not of numbers: give uint8, or floating-point numbers from 0 to 1")
    values = _channels_last(values, given, name)
    if not values.size:
        raise InputError(f"{name}: {given} has no pixels")
    pixels = _to_8_bits(values, given, name)
    return PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).copy()


def _channels_last(values: NDArray[Any], given: str, name: str) -> NDArray[Any]:
    if values.ndim == 2:
        return values[..., None]
    if values.ndim == 4:
        raise InputError(f"{name}: {given} is a batch: give one image of it, such as images[0]")
    first, last = (values.ndim == 3 and values.shape[side] in CHANNELS for side in (0, -1))
    if first and last:
        raise InputError(
            f"{name}: {given} may have its channels first or last: give a PIL image, or one of more pixels"
        )
    if first or last:
        channels_last: NDArray[Any] = values if last else values.transpose(1, 2, 0)
        return channels_last
    raise InputError(f"{name}: {given} is not an image: give the shape {FORMS}")


def _to_8_bits(values: NDArray[Any], given: str, name: str) -> NDArray[np.uint8]:
    import numpy as np

    kind = values.dtype.kind
    if kind == "b":
        return np.asarray(values * 255, np.uint8)
    if values.dtype == np.uint8:
        return values
    low, high = float(values.min()), float(values.max())
    if kind == "f":
        if not low >= -OVERSHOOT or not high <= 1 + OVERSHOOT:  # NaN too
            found = "NaN" if np.isnan(low) or np.isnan(high) else f"values from {low:.4g} to {high:.4g}"
            raise InputError(
                f"{name}: {given} has {found}: give floating-point numbers from 0 to 1, or uint8 from 0 to 255"
            )
        return np.asarray(np.clip(values.astype(np.float32), 0, 1) * 255 + 0.5).astype(np.uint8)
    if low < 0 or high > 65535:
        raise InputError(f"{name}: {given} has values from {low:.0f} to {high:.0f}: give integers from 0 to 65,535")
    colours = values.shape[-1] - (values.shape[-1] in (2, 4))  # alpha has a range of its own
    parts = [to_8_bits(part) for part in (values[..., :colours], values[..., colours:]) if part.size]
    scaled: NDArray[np.uint8] = np.concatenate(parts, axis=-1)
    return scaled
