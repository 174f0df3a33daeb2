"""A perceptual hash: 64 bits of a photo that re-encoding, scaling and brightness hardly change.

Source: the DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), without
its mean filter, since scaling down already averages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

DECODE_AT = 128
"""Pixels of a side to which a photo may be reduced while it is decoded, which does not change its hash noticeably."""

_SIDE = 32  # pixels: what is finer than this is not compared
_KEPT = 8  # lowest frequencies in each direction


@dataclass(frozen=True)
class PerceptualHash:
    """Hash of a photo and of its mirror image.

    Attributes:
        bits: 64 bits.
        mirrored: 64 bits of the photo mirrored left to right.
    """

    bits: int
    mirrored: int

    def distance(self, other: PerceptualHash) -> int:
        """Return the number of bits that differ, 0 to 64, from the other photo or its mirror image, if that is nearer.

        Photos that have nothing in common differ in 32 bits on average.
        """
        return min((self.bits ^ other.bits).bit_count(), (self.bits ^ other.mirrored).bit_count())


def perceptual_hash(image: Image) -> PerceptualHash:
    """Compute the hash of a photo of any size.

    The grey photo is scaled to 32 x 32 pixels. Of its discrete cosine transform (DCT-II), the 8 x 8 lowest frequencies
    are compared with their median. The constant part is left out, so its bit is 0.

    Args:
        image: RGB or grey, at least 1 x 1 pixel.
    """
    from PIL.Image import Resampling

    pixels = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Resampling.BILINEAR), dtype=np.float64)
    waves = _waves()
    # Rounded, so that the frequencies that a plain surface does not have are 0, and not the noise of the sum.
    transformed = np.round(waves @ pixels @ waves.T, 3)
    # Mirroring left to right changes the sign of the odd horizontal frequencies.
    return PerceptualHash(_bits(transformed), _bits(transformed * (-1.0) ** np.arange(_KEPT)))


def _waves() -> NDArray[np.float64]:
    """Return the first rows of the DCT-II matrix, float64 (8, 32)."""
    frequency, place = np.arange(_KEPT)[:, None], np.arange(_SIDE)[None, :]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * _SIDE))


def _bits(transformed: NDArray[np.float64]) -> int:
    values = transformed.ravel()
    larger = values > np.median(values[1:])
    larger[0] = False
    return int.from_bytes(np.packbits(larger).tobytes(), "big")
