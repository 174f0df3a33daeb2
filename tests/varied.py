"""Varied photos for tests and benchmarks, cropped from the samples."""

from __future__ import annotations

import io
import random
from pathlib import Path

from tests.conftest import PHOTOS


def varied_photos(folder: Path, count: int, seed: int = 0, side: int = 100) -> Path:
    """Write ``count`` different crops of the sample photos, about ``side`` pixels wide, in three formats."""
    from PIL import Image, ImageOps

    rng = random.Random(seed)
    folder.mkdir()
    samples = []
    for path in sorted(PHOTOS.glob("*.jpg")):
        with Image.open(path) as photo:
            samples.append(photo.convert("RGB").resize((side * 8 // 5, side * 6 // 5)))
    for number in range(count):
        sample = samples[number % len(samples)]
        left, top = rng.randrange(side * 2 // 5), rng.randrange(side * 3 // 10)
        right, bottom = left + side + rng.randrange(side // 5), top + side * 7 // 10 + rng.randrange(side // 5)
        photo = sample.crop((left, top, right, bottom))
        photo = ImageOps.mirror(photo) if rng.random() < 0.5 else photo
        photo.putpixel((0, 0), (number % 256, number // 256, seed % 256))  # makes each photo unique
        format = rng.choice(["JPEG", "JPEG", "JPEG", "PNG", "WEBP"])
        buffer = io.BytesIO()
        photo.save(buffer, format, quality=rng.randrange(70, 95))
        (folder / f"{number:05}.{'jpg' if format == 'JPEG' else format.lower()}").write_bytes(buffer.getvalue())
    return folder
