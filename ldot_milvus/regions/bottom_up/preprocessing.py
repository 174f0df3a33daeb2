"""A photo as the detector's weights want it: blue, green, red; scaled without smoothing; minus the mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST_SIDE = 3
"""Pixels; from fewer, the stem's pooling leaves nothing."""


def resized(width: int, height: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Width and height to which a photo is scaled: its short side to ``short_side``, or less so that the long fits."""
    scale = short_side / min(width, height)
    w, h = (short_side, scale * height) if width < height else (scale * width, short_side)
    if max(w, h) > long_side:
        shrink = long_side / max(w, h)
        w, h = w * shrink, h * shrink
    return max(LEAST_SIDE, int(w + 0.5)), max(LEAST_SIDE, int(h + 0.5))


def to_input(
    image: Image, short_side: int, long_side: int, mean: Tensor, std: Tensor, device: torch.device | str = "cpu"
) -> Tensor:
    """An RGB photo as float32 (1, 3, h, w) in blue, green, red.

    Scaling is bilinear between the four nearest pixels of the photo at its full size. A smoothing (antialiased)
    reduction, or a JPEG that was decoded smaller, would give other regions than the weights were made with.
    """
    pixels = torch.from_numpy(np.array(image)).to(device)
    width, height = resized(image.width, image.height, short_side, long_side)
    # One colour after the other: a photo of 100 megapixels takes 400 MB on the way, not 1,200.
    planes = [
        interpolate(pixels[None, None, :, :, colour].float(), (height, width), mode="bilinear", align_corners=False)
        for colour in (2, 1, 0)
    ]
    return (torch.cat(planes, dim=1) - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
