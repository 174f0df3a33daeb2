"""Hash, check and decode photos. Pillow's errors are converted to :class:`InputError`, its warnings are suppressed."""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, cast

from ldot_milvus.errors import InputError
from ldot_milvus.settings import current

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

ImageSource = Union[str, Path, bytes, "Image"]
"""A path, encoded bytes, or an opened PIL image."""

# The image format of each file suffix. Phones write MPO (several JPEGs in one file) as .jpg.
SUFFIXES = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".jif": "JPEG", ".mpo": "JPEG", ".png": "PNG",
    ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF",
    ".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF",
}  # fmt: skip

# Many of them are TIFFs, of which Pillow would open the thumbnail.
RAW_SUFFIXES = frozenset({
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef",
    ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
})  # fmt: skip

# Other formats are refused: Pillow's EPS reader runs Ghostscript, and rare formats had most of its vulnerabilities.
# Pillow's JPEG reader reads MPO as well, so MPO needs no entry.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# Brands of ISO media files, to the format and the way to read it.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
_PLUGINS = {"AVIF": "PIL._avif", "HEIF": "pillow_heif"}  # both open the brand mif1, and the first refuses HEIC
_MISSING = {
    "HEIF": "HEIC is read with an extra: pip install 'ldot-milvus[heic]'",
    "AVIF": "AVIF is read by a Pillow that was built with it: pip install --upgrade pillow",
}

# The size at which Pillow itself raises an error instead of a warning (twice its MAX_IMAGE_PIXELS).
MAX_PIXELS = 178_956_970
"""Default of LDOT_MAX_PIXELS."""

# No camera takes more, and stitched panoramas seldom have more. A file that claims more is likely an attack.
LARGEST_CAMERA = 10**9

# A photo of any format with more pixels than this is reduced if the caller allows it: several photos of a chunk are in
# memory at once, and a PNG of a few kilobytes may have a hundred million pixels.
LARGE = 2**22

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_ORIENTATION_TAG = 0x0112
_NO_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_strict_lock = threading.Lock()
_strict_users = 0
_lenient_before = False
_pixels_before: int | None = None

# What a PNG may carry besides its pixels without a bound: texts, and a colour profile, which is not used.
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


@dataclass(frozen=True)
class Photo:
    """A decoded photo.

    Attributes:
        image: RGB, 8 bits, with the EXIF rotation applied; smaller than the photo if ``draft_to`` allowed it.
        width, height: of the photo at its full size, in pixels after EXIF rotation.
    """

    image: Image
    width: int
    height: int


def content_id(data: bytes) -> str:
    """Return the id of a photo: the SHA-256 of its encoded bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, *, name: str = "image", draft_to: int | None = None) -> Photo:
    """Decode a photo to 8-bit RGB: the first frame, with EXIF rotation applied and transparency on white.

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
    with _boundary(name):
        try:
            return _decoded(data, name, draft_to)
        except ValueError as error:
            if "MAX_TEXT_" not in str(error):  # Pillow's limits on texts in a PNG
                raise
        return _decoded(_without_texts(data), name, draft_to)


def from_pil(image: Image, *, name: str = "image") -> Photo:
    """Convert an opened PIL image as :func:`decode` does. The image itself is not changed.

    Args:
        image: a PIL image of any mode.
        name: the image's name, for messages.

    Raises:
        InputError: the image is truncated, damaged or too large, has no pixels or has an unsupported mode.
    """
    with _boundary(name):
        return _load(image, name, None)


def open_image(image: ImageSource, *, draft_to: int | None = None) -> Photo:
    """Open a photo given as a path, encoded bytes or a PIL image.

    Args:
        image: the photo.
        draft_to: see :func:`decode`; PIL images are always used at full size.

    Raises:
        InputError: the file cannot be read, or :func:`decode` refuses its content.
    """
    if isinstance(image, bytes):
        return decode(image, draft_to=draft_to)
    if isinstance(image, (str, Path)):
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise InputError(f"{image}: {error.strerror}") from error
        return decode(data, name=str(image), draft_to=draft_to)
    return from_pil(image)


def can_read(suffix: str) -> bool:
    """Whether files with this suffix are read, in lower case: HEIC needs pillow-heif, AVIF a Pillow built with it."""
    return suffix in SUFFIXES and _installed(SUFFIXES[suffix])


def check_suffix(name: str, format: str) -> None:
    """Refuse a name whose suffix belongs to another format than the content's.

    Names without a suffix or with an unknown one are accepted. So are URLs: a server chooses the format by the request.

    Args:
        name: file name or URL.
        format: the content's format, as Pillow names it.

    Raises:
        InputError: the suffix belongs to another format, for example a PNG named .jpg. Unknown suffixes and names
            without one pass, and so do URLs and members of tars: servers choose the format by what the reader
            accepts, and img2dataset names its downloads .jpg.
    """
    if name.startswith(("http://", "https://")) or ".tar/" in name:
        return
    actual = "JPEG" if format == "MPO" else format
    suffix = os.path.splitext(name)[1]
    if actual == "TIFF" and suffix.lower() in RAW_SUFFIXES:
        raise InputError(f"{name}: RAW photos are not read: export it as JPEG")
    if SUFFIXES.get(suffix.lower(), actual) != actual:
        expected = next(known for known, its_format in SUFFIXES.items() if its_format == actual)
        raise InputError(f"{name}: this is a {actual} named {suffix}: rename it to {expected}")


@cache
def _installed(format: str) -> bool:
    return format not in _PLUGINS or find_spec(_PLUGINS[format]) is not None


def _decoded(data: bytes, name: str, draft_to: int | None) -> Photo:
    with _open(data, name) as image:
        check_suffix(name, image.format or "")
        return _load(image, name, draft_to)


def _without_texts(png: bytes) -> bytes:
    """The same PNG without its texts and its colour profile."""
    kept, position = [png[:8]], 8
    while position + 8 <= len(png):
        size, kind = struct.unpack_from(">I4s", png, position)
        end = position + size + 12  # length, type and checksum
        if kind not in _PNG_TEXTS:
            kept.append(png[position:end])
        position = end
    return b"".join(kept)


def _formats() -> tuple[str, ...]:
    """The formats that are tried; their plugins are imported."""
    # Unless these plugins are imported by now, Pillow loads its forty other formats in search of them.
    for plugin in ("Avif", "Tiff", "WebP"):
        import_module(f"PIL.{plugin}ImagePlugin")
    more = tuple(format for format in _PLUGINS if _installed(format))
    if "HEIF" in more:
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
    return FORMATS + more


def _open(data: bytes, name: str) -> ImageFile:
    """Read the header, which contains format and size, without decoding the pixels."""
    import PIL.Image

    try:
        image = PIL.Image.open(io.BytesIO(data), formats=_formats())
    except PIL.UnidentifiedImageError as error:
        brand = _BRANDS.get(data[8:12]) if data[4:8] == b"ftyp" else None
        if brand is not None and not _installed(brand):
            raise InputError(f"{name}: {_MISSING[brand]}") from error
        if brand is not None or data.startswith(_SIGNATURES):
            raise  # the data start like an image: _boundary reports it as damaged
        supported = ", ".join(FORMATS)
        raise InputError(f"{name}: not an image (or of a format that is not supported: use {supported})") from error
    except PIL.Image.DecompressionBombError as error:
        # Only the text of Pillow's error has the number of pixels and the limit, which the caller may have lowered.
        figures = re.findall(r"\d+", str(error))
        pixels, limit = map(int, figures) if len(figures) == 2 else (0, max_pixels())
        claimed = f"{pixels:,} pixels are" if pixels else "it has"
        raise InputError(f"{name}: {claimed} more than {_limit(limit, pixels)}") from error
    return image


def _load(image: Image, name: str, draft_to: int | None) -> Photo:
    import PIL.Image
    from PIL.ImageFile import ImageFile

    width, height = image.size
    if width * height == 0:
        raise InputError(f"{name}: an image of {width} x {height} pixels is empty")
    if width * height > max_pixels():  # Pillow accepts it if its limit is higher or turned off
        raise InputError(f"{name}: {width} x {height} pixels are more than {_limit(max_pixels(), width * height)}")
    if draft_to is not None and isinstance(image, ImageFile):
        image.draft(None, (draft_to, draft_to))
    image.load()
    # Not ImageOps.exif_transpose: it also rewrites the EXIF data, and fails on invalid data that are harmless here.
    transpose = PIL.Image.Transpose
    transposes = {
        2: transpose.FLIP_LEFT_RIGHT, 3: transpose.ROTATE_180, 4: transpose.FLIP_TOP_BOTTOM, 5: transpose.TRANSPOSE,
        6: transpose.ROTATE_270, 7: transpose.TRANSVERSE, 8: transpose.ROTATE_90,
    }  # fmt: skip
    orientation = _orientation(image)
    pixels = _to_rgb(image, name)
    if draft_to is not None and pixels.width * pixels.height > LARGE:  # a factor for each side: long strips shrink too
        pixels = pixels.reduce((max(1, pixels.width // draft_to), max(1, pixels.height // draft_to)))
    if orientation in transposes:
        pixels = pixels.transpose(transposes[orientation])
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    pixels.info = {}  # a reader of the EXIF data would otherwise rotate the image a second time
    return Photo(pixels, width, height)


def _to_rgb(image: Image, name: str) -> Image:
    """Convert an image of any supported mode to 8-bit RGB, with transparency on white."""
    import PIL.Image

    if image.mode.startswith("I"):
        grey = image.convert("I")
        low, high = cast("tuple[int, int]", grey.getextrema())
        if low >= 0 and high <= 65535:
            # Pillow's own conversion clips at 255: scale to 0..255 and round. Cameras and scanners store 10, 12 or 14
            # bits in 16.
            scale = 255 / next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits)
            return grey.point(lambda value: value * scale + 0.5).convert("L").convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        raise InputError(f"{name}: pixels of mode {image.mode} are not supported: save it with 8 bits, as RGB or grey")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        white = PIL.Image.new("RGB", image.size, "white")
        white.paste(with_alpha, mask=with_alpha.getchannel("A"))
        return white
    return image.convert("RGB")


def _orientation(image: Image) -> int:
    """Return the EXIF orientation of a loaded image, 1 if it is unreadable. Pillow rotates a TIFF on loading."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF data raise any exception, and the pixels are usable without them
        return 1
    return value if isinstance(value, int) else 1


def max_pixels() -> int:
    """The largest number of pixels of a photo, from the setting LDOT_MAX_PIXELS."""
    return int(current("max_pixels"))


def _limit(limit: int, pixels: int) -> str:
    """The limit, and how to raise it if it is the setting's, not Pillow's, and the photo may be one of a camera."""
    remedy = ": set LDOT_MAX_PIXELS to read it" if limit == max_pixels() and pixels <= LARGEST_CAMERA else ""
    return f"the limit of {limit:,} pixels{remedy}"


@contextmanager
def _boundary(name: str) -> Iterator[None]:
    """Convert every exception of Pillow to an InputError."""
    with _strict_and_quiet():
        try:
            yield
        except InputError:
            raise
        except MemoryError as error:
            raise InputError(f"{name}: not enough memory to decode it") from error
        except Exception as error:  # damaged headers raise many types: struct.error, OverflowError, ...
            state = "truncated" if "truncated" in str(error).lower() else "damaged or truncated"
            raise InputError(f"{name}: the image is {state}") from error


@contextmanager
def _strict_and_quiet() -> Iterator[None]:
    """Make truncated files errors regardless of LOAD_TRUNCATED_IMAGES, and suppress Pillow's warnings.

    A higher LDOT_MAX_PIXELS raises Pillow's own limit, which ``_load`` then checks.

    All settings are global to the process. Flag and limit are restored when the last thread leaves. The warning filter
    is inserted and removed directly, because ``warnings.catch_warnings`` would overwrite the filters of other threads
    and repeat warnings.
    """
    global _strict_users, _lenient_before, _pixels_before
    from PIL import Image, ImageFile

    pixels = max_pixels()  # before anything changes, since the setting may be invalid
    filters: Any = warnings.filters
    filters.insert(0, _NO_PILLOW_WARNINGS)
    with _strict_lock:
        if _strict_users == 0:
            _lenient_before = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            _pixels_before = Image.MAX_IMAGE_PIXELS
            if _pixels_before is not None and pixels > MAX_PIXELS:  # a lower limit of the caller holds otherwise
                Image.MAX_IMAGE_PIXELS = max(_pixels_before, pixels)
        _strict_users += 1
    try:
        yield
    finally:
        with _strict_lock:
            _strict_users -= 1
            if _strict_users == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = _lenient_before
                Image.MAX_IMAGE_PIXELS = _pixels_before
        with suppress(ValueError):  # other code may have replaced the list of filters in the meantime
            filters.remove(_NO_PILLOW_WARNINGS)
