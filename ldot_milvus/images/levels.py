"""Scale pixel values of any type and range to 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BITS = (8, 10, 12, 14, 16)
"""Depths of cameras and scanners, which store 10, 12 and 14 bits in 16."""

ROUNDING = 0.01
"""Floating-point values that were resampled may exceed 1 by this; they are cut off there."""


def to_8_bits(values: NDArray[Any], *, white: float | None = None) -> NDArray[np.uint8]:
    """Scale values linearly to 0..255, by the range that they have.

    Values from 0 are scaled by the smallest of these maxima that holds them: 1 for floating-point values, then 2^8,
    2^10, 2^12, 2^14 and 2^16, each less 1. Negative and larger values are stretched from their minimum to their
    maximum. NaN becomes black, infinite values black or white.

    Args:
        values: an array of any shape of integers or floating-point numbers.
        white: the value of white, if it is known.

    Raises:
        ValueError: no value is finite.
    """
    import numpy as np

    floating = values.dtype.kind == "f"
    if floating:
        finite = values[np.isfinite(values)]
        if not finite.size:
            raise ValueError("no pixel has a finite value")
        low, high = float(finite.min()), float(finite.max())
    else:
        low, high = float(values.min()), float(values.max())
    if white is not None and low >= 0 and high <= white:
        black, top = 0.0, white
    elif low < 0 or high >= 2**16:
        black, top = low, high
    elif floating and high <= 1 + ROUNDING:
        black, top = 0.0, 1.0
    else:
        black, top = 0.0, float(next(2**bits - 1 for bits in BITS if high < 2**bits))
    if (black, top) == (0.0, 255.0) and values.dtype.kind in "iu":
        return values.astype(np.uint8)
    scaled = values.astype(np.float64 if abs(top) > 2**24 else np.float32)
    if floating:
        scaled = np.nan_to_num(scaled, nan=black, posinf=top, neginf=black)
    scaled = (scaled - black) * (255 / (top - black or 1)) + 0.5
    return np.clip(scaled, 0, 255).astype(np.uint8)
