"""Hash, check and decode photos. Pillow's errors are converted to :class:`InputError`, its warnings are suppressed."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldot_milvus.errors import InputError
from ldot_milvus.images import colour, depth, formats, modes, png, reasons
from ldot_milvus.images.formats import BRANDS, FORMATS, MISSING, check_suffix
from ldot_milvus.images.limits import limit_named, max_pixels, strict_and_quiet

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

# A photo of any format with more pixels than this is reduced if the caller allows it: several photos of a chunk are in
# memory at once, and a PNG of a few kilobytes may have a hundred million pixels.
LARGE = 2**22

_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Photo:
    """A decoded photo.

    Attributes:
        image: sRGB, 8 bits, with the EXIF rotation applied; smaller than the photo if ``draft_to`` allowed it.
        width, height: of the photo at its full size, in pixels after EXIF rotation.
    """

    image: Image
    width: int
    height: int


def content_id(data: bytes) -> str:
    """Return the id of a photo: the SHA-256 of its encoded bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, *, name: str = "image", draft_to: int | None = None) -> Photo:
    """Decode a photo to 8-bit sRGB: the first frame, with EXIF rotation applied and transparency on white.

    An embedded colour profile is applied (perceptual intent); a damaged one is ignored.

    Args:
        data: the encoded photo.
        name: the photo's name, for messages. If it has a known image suffix, the content must have that format.
        draft_to: minimum length of a side in pixels. JPEGs may be decoded at a reduced size to save time, and large
            photos of any format to save memory (not always with the same aspect ratio); no side becomes shorter than
            this. None decodes at full size.

    Raises:
        InputError: the photo is empty, truncated, damaged or too large, is not an image, or has an unsupported format
            or another format than its suffix says.
    """
    if not data:
        raise InputError(f"{name}: the file is empty")
    with _boundary(name, data):
        try:
            return _decoded(data, name, draft_to)
        except (ValueError, SyntaxError, OSError) as error:
            if not png.may_be_texts(data, error):
                raise
            shorter, profile = png.without_texts(data)
            if len(shorter) == len(data):
                raise
        return _decoded(shorter, name, draft_to, profile)


def from_pil(image: Image, *, name: str = "image") -> Photo:
    """Convert an opened PIL image as :func:`decode` does. The image itself is not changed.

    Args:
        image: a PIL image of any mode.
        name: the image's name, for messages.

    Raises:
        InputError: the image is truncated, damaged or too large, has no pixels, has an unsupported mode, or its file
            was closed before its pixels were read.
    """
    with _boundary(name):
        return _load(image, name, None)


def _decoded(data: bytes, name: str, draft_to: int | None, profile: bytes | None = None) -> Photo:
    with _open(data, name) as image:
        check_suffix(name, image.format or "")
        if profile is not None:
            image.info[colour.PROFILE] = profile
        raw = depth.raw_mode(image)
        photo = _load(image, name, draft_to)
        if raw is None or depth.is_used(image):
            return photo
    with _open(data, name) as high, _open(data, name) as low:  # 10, 12 or 14 bits in 16
        return _load(depth.scaled(high, low, raw), name, draft_to, depth_of=image)


def _open(data: bytes, name: str) -> ImageFile:
    """Read the header, which contains format and size, without decoding the pixels."""
    import PIL.Image

    try:
        image = PIL.Image.open(io.BytesIO(data), formats=formats.tried_formats())
    except PIL.UnidentifiedImageError as error:
        brand = BRANDS.get(data[8:12]) if data[4:8] == b"ftyp" else None
        if brand is not None and not formats.installed(brand):
            raise InputError(f"{name}: {MISSING[brand]}") from error
        if brand is not None or data.startswith(reasons.SIGNATURES):
            raise  # the data start like an image: _boundary says what is wrong
        found = reasons.other_content(data)
        supported = ", ".join(FORMATS)
        if found is not None:
            raise InputError(f"{name}: {found.format(formats=supported)}") from error
        raise InputError(f"{name}: not an image (or of a format that is not supported: use {supported})") from error
    except PIL.Image.DecompressionBombError as error:
        # Only the text of Pillow's error has the number of pixels and the limit, which the caller may have lowered.
        figures = re.findall(r"\d+", str(error))
        pixels, limit = map(int, figures) if len(figures) == 2 else (0, max_pixels())
        claimed = f"{pixels:,} pixels are" if pixels else "it has"
        raise InputError(f"{name}: {claimed} more than {limit_named(limit, pixels)}") from error
    return image


def _load(image: Image, name: str, draft_to: int | None, *, depth_of: Image | None = None) -> Photo:
    """Load the pixels of an image, and convert them.

    Args:
        image: the image.
        name: its name, for messages.
        draft_to: see :func:`decode`.
        depth_of: the image as Pillow opened it, which has the metadata, if ``image`` was made from it.
    """
    import PIL.Image
    from PIL.ImageFile import ImageFile

    width, height = image.size
    if width * height == 0:
        raise InputError(f"{name}: an image of {width} x {height} pixels is empty")
    if width * height > max_pixels():  # Pillow accepts it if its limit is higher or turned off
        raise InputError(f"{name}: {width} x {height} pixels are more than {limit_named(max_pixels(), width * height)}")
    if draft_to is not None and isinstance(image, ImageFile):
        image.draft(None, (draft_to, draft_to))
    image.load()
    # Not ImageOps.exif_transpose: it also rewrites the EXIF data, and fails on invalid data that are harmless here.
    transpose = PIL.Image.Transpose
    transposes = {
        2: transpose.FLIP_LEFT_RIGHT, 3: transpose.ROTATE_180, 4: transpose.FLIP_TOP_BOTTOM, 5: transpose.TRANSPOSE,
        6: transpose.ROTATE_270, 7: transpose.TRANSVERSE, 8: transpose.ROTATE_90,
    }  # fmt: skip
    described = image if depth_of is None else depth_of
    orientation = _orientation(described)
    pixels = modes.to_srgb(image, name, described.info.get(colour.PROFILE), lambda made: _reduced(made, draft_to))
    if orientation in transposes:
        pixels = pixels.transpose(transposes[orientation])
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    if pixels.info:
        pixels.info = {}  # a reader of the EXIF data would otherwise rotate the image a second time
    return Photo(pixels, width, height)


def _reduced(pixels: Image, draft_to: int | None) -> Image:
    if draft_to is None or pixels.width * pixels.height <= LARGE:
        return pixels
    # A factor for each side: long strips shrink too.
    return pixels.reduce((max(1, pixels.width // draft_to), max(1, pixels.height // draft_to)))


def _orientation(image: Image) -> int:
    """Return the EXIF orientation of a loaded image, 1 if it is unreadable. Pillow rotates a TIFF on loading."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF data raise any exception, and the pixels are usable without them
        return 1
    return value if isinstance(value, int) else 1


@contextmanager
def _boundary(name: str, data: bytes | None = None) -> Iterator[None]:
    """Convert every exception of Pillow to an InputError."""
    with strict_and_quiet():
        try:
            yield
        except InputError:
            raise
        except MemoryError as error:
            raise InputError(f"{name}: not enough memory to decode it") from error
        except Exception as error:  # damaged headers raise many types: struct.error, OverflowError, ...
            raise InputError(f"{name}: {reasons.reason(error, data)}") from error
