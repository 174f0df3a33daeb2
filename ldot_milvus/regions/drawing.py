"""Draw the regions of a photo: boxes with the names of their classes and attributes."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ldot_milvus.regions.base import Regions

if TYPE_CHECKING:
    from PIL.Image import Image

LONG_SIDE = 1280
"""Length in pixels of a picture's long side: names are legible on small photos too."""

LIKELY = 0.1
"""Attributes of a lower probability are omitted."""

_FONT = 17
_GOLDEN = 0.618034  # of a full turn of the hue: neighbouring class ids get distinct colours

Area = tuple[float, float, float, float]


def draw(image: Image, regions: Regions, objects: Sequence[str], attributes: Sequence[str]) -> Image:
    """Draw the regions of a photo: a box for each, the most confident on top, and a name if there is room for it.

    Args:
        image: the photo, RGB.
        regions: of the photo.
        objects, attributes: the names of classes and attributes by id; regions without classes get no names.

    Returns:
        A copy of the photo with a long side of :data:`LONG_SIDE` pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    scale = LONG_SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    picture = image.resize(size, Image.Resampling.LANCZOS)
    canvas = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_FONT)
    corners = [tuple(box[:4] * [*size, *size]) for box in regions.boxes.astype(float)]
    for row in reversed(range(len(regions))):
        confidence = float(regions.confidence[row])
        line = 3 if confidence > 0.5 else 2 if confidence > 0.2 else 1
        canvas.rectangle(corners[row], outline=_colour(regions, row), width=line)
    occupied: list[Area] = []
    for row in range(len(regions) if regions.objects is not None else 0):
        text = _name(regions, row, objects, attributes)
        width, height = canvas.textlength(text, font) + 8, _FONT + 6
        for x, y in _places(corners[row], width, height, size):
            area = (x, y, x + width, y + height)
            if not any(_overlap(area, other) for other in occupied):
                occupied.append(area)
                colour = _colour(regions, row)
                canvas.rectangle(area, fill=colour)
                canvas.text((x + 4, y + 1), text, fill="black" if _bright(colour) else "white", font=font)
                break
    return picture


def _name(regions: Regions, row: int, objects: Sequence[str], attributes: Sequence[str]) -> str:
    assert regions.objects is not None
    words = [objects[int(regions.objects[row])], f"{regions.confidence[row]:.2f}"]
    likely = regions.attribute_confidence is not None and regions.attribute_confidence[row] > LIKELY
    if regions.attributes is not None and likely:
        words.insert(0, attributes[int(regions.attributes[row])])
    return " ".join(words)


def _places(box: Area, width: float, height: float, size: tuple[int, int]) -> Iterator[tuple[float, float]]:
    """Yield possible positions of a name: over, in or under the box, left or right, within the picture."""
    x1, y1, x2, y2 = box
    for y in (y1 - height, y1, y2 - height, y2):
        for x in (x1, x2 - width):
            yield min(max(x, 0), max(size[0] - width, 0)), min(max(y, 0), max(size[1] - height, 0))


def _overlap(a: Area, b: Area) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _colour(regions: Regions, row: int) -> tuple[int, int, int]:
    number = row if regions.objects is None else int(regions.objects[row])
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _bright(colour: tuple[int, int, int]) -> bool:
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140
