"""What happens to photos on their way through phones, messengers and sites: the same photo in other bytes."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps


def encoded(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _as_jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    return lambda image: Image.open(io.BytesIO(encoded(image, quality))).convert("RGB")


def _scaled(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize((int(image.width * factor), int(image.height * factor)))


def _trimmed(part: float) -> Callable[[Image.Image], Image.Image]:
    """Without ``part`` of the width and of the height, half of it on each side."""
    return lambda image: image.crop(
        (
            int(image.width * part / 2), int(image.height * part / 2),
            int(image.width * (1 - part / 2)), int(image.height * (1 - part / 2)),
        )
    )  # fmt: skip


VARIANTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 60": _as_jpeg(60),
    "JPEG of quality 10": _as_jpeg(10),
    "half": _scaled(0.5),
    "quarter": _scaled(0.25),
    "double": _scaled(2),
    "trimmed by 2 %": _trimmed(0.02),
    "trimmed by 5 %": _trimmed(0.05),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "more colour": lambda image: ImageEnhance.Color(image).enhance(1.5),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "mirrored": ImageOps.mirror,
}
