"""Pictures of what an extractor saw: boxes with their names."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ldot_milvus.regions.base import Regions

if TYPE_CHECKING:
    from PIL.Image import Image

LONG_SIDE = 1280
"""Pixels of a picture, so that names are legible on small photos too."""

LIKELY = 0.1
"""Attributes below this are left out."""

_FONT = 17
_GOLDEN = 0.618034  # of a turn: neighbouring class ids get colours far apart

Area = tuple[float, float, float, float]


def draw(image: Image, regions: Regions, objects: Sequence[str], attributes: Sequence[str]) -> Image:
    """The photo with its regions: a box a region, the surest on top, and a name where there is room for it.

    Args:
        image: RGB.
        objects, attributes: what their ids are called. Regions without any get no names.
    """
    from PIL import Image, ImageDraw, ImageFont

    scale = LONG_SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    picture = image.resize(size, Image.Resampling.LANCZOS)
    canvas = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_FONT)
    corners = [tuple(box[:4] * [*size, *size]) for box in regions.boxes.astype(float)]
    for row in reversed(range(len(regions))):
        sure = float(regions.confidence[row])
        canvas.rectangle(corners[row], outline=_colour(regions, row), width=3 if sure > 0.5 else 2 if sure > 0.2 else 1)
    taken: list[Area] = []
    for row in range(len(regions) if regions.objects is not None else 0):
        text = _name(regions, row, objects, attributes)
        width, height = canvas.textlength(text, font) + 8, _FONT + 6
        for x, y in _places(corners[row], width, height, size):
            area = (x, y, x + width, y + height)
            if not any(_meet(area, other) for other in taken):
                taken.append(area)
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
    """Where a name of this size may stand: over the box, in it or under it, left or right, within the picture."""
    x1, y1, x2, y2 = box
    for y in (y1 - height, y1, y2 - height, y2):
        for x in (x1, x2 - width):
            yield min(max(x, 0), max(size[0] - width, 0)), min(max(y, 0), max(size[1] - height, 0))


def _meet(a: Area, b: Area) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _colour(regions: Regions, row: int) -> tuple[int, int, int]:
    number = row if regions.objects is None else int(regions.objects[row])
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _bright(colour: tuple[int, int, int]) -> bool:
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140
