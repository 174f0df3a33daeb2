"""Prepare a photo for the detector: blue, green, red channels; scaled without smoothing; minus the mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST_SIDE = 3
"""Minimum length in pixels of a side: the stem's pooling has no output for shorter ones."""


def resized(width: int, height: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Return the width and height in pixels to which a photo is scaled.

    The short side becomes ``short_side``, or less if the long side would exceed ``long_side``.
    """
    scale = short_side / min(width, height)
    w, h = (short_side, scale * height) if width < height else (scale * width, short_side)
    if max(w, h) > long_side:
        shrink = long_side / max(w, h)
        w, h = w * shrink, h * shrink
    return max(LEAST_SIDE, int(w + 0.5)), max(LEAST_SIDE, int(h + 0.5))


def to_input(
    image: Image, short_side: int, long_side: int, mean: Tensor, std: Tensor, device: torch.device | str = "cpu"
) -> Tensor:
    """Convert an RGB photo to float32 (1, 3, h, w), blue, green, red.

    Scaling is bilinear between the four nearest pixels of the photo at its full size, as in training. Antialiasing, or
    decoding a JPEG at a reduced size, would change the regions.

    Args:
        image: the photo at its full size, RGB.
        short_side, long_side: see :func:`resized`.
        mean, std: (3,), of blue, green and red.
        device: of the result.
    """
    pixels = torch.from_numpy(np.array(image)).to(device)
    width, height = resized(image.width, image.height, short_side, long_side)
    # One channel at a time: a photo of 100 megapixels takes 400 MB of temporary memory, not 1,200.
    planes = [
        interpolate(pixels[None, None, :, :, colour].float(), (height, width), mode="bilinear", align_corners=False)
        for colour in (2, 1, 0)
    ]
    return (torch.cat(planes, dim=1) - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
