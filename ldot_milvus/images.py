"""Photos as bytes: hash them, check them, decode them to RGB. Pillow's errors and warnings end here."""

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
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, cast

from ldot_milvus.errors import InputError
from ldot_milvus.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

ImageSource = Union[str, Path, bytes, "Image"]
"""A path, encoded bytes, or an image that the caller has opened."""

# Suffix to the format that it promises. Phones write MPO (several JPEGs in one file) as .jpg.
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

# Nothing else is tried: Pillow's EPS runs Ghostscript, and rare formats are where its holes were.
# Pillow's JPEG opener reads MPO as well, so that MPO has no entry of its own.
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

# The size at which Pillow itself turns its warning into an error (twice its MAX_IMAGE_PIXELS).
MAX_PIXELS = 178_956_970
"""Default of LDOT_MAX_PIXELS."""

# No camera takes more, and stitched panoramas seldom have more. A file that claims more is likely an attack.
LARGEST_CAMERA = 10**9

# Above this many pixels a photo of any format is reduced if its reader allows it: part of a chunk is held decoded, and
# a PNG of kilobytes may have a hundred million pixels.
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
        image: RGB, the right way up; smaller than the photo if ``draft_to`` allowed it.
        width, height: of the photo itself, in pixels after EXIF rotation.
    """

    image: Image
    width: int
    height: int


def content_id(data: bytes) -> str:
    """The id of a photo: SHA-256 of its bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, *, name: str = "image", draft_to: int | None = None) -> Photo:
    """Decode a photo: first frame, RGB, EXIF rotation applied, transparency on white, 8 bits.

    Args:
        name: the input's name for messages; a known image suffix in it must fit the content.
        draft_to: JPEGs may come out smaller, for speed, and large photos of all formats, for memory and not always
            in their proportions; a side never becomes shorter than this.

    Raises:
        InputError: it is empty, not an image, of a format that is not supported or that its name denies, too
            large, truncated or damaged.
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
    """The same for an image that the caller has opened or made himself; his image stays as it is.

    Raises:
        InputError: as in :func:`decode`; also for an image without any pixel.
    """
    with _boundary(name):
        return _load(image, name, None)


def open_image(image: ImageSource, *, draft_to: int | None = None) -> Photo:
    """A photo by path, as encoded bytes or as a PIL image: decoded as in :func:`decode`.

    Raises:
        InputError: as in :func:`decode`; also for a file that cannot be read.
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
    """Refuse a name whose suffix promises another format than the content has (as Pillow calls it).

    Raises:
        InputError: for example a PNG named .jpg. Unknown suffixes and names without one pass, and so do URLs
            and members of tars: servers choose the format by what the reader takes, and img2dataset names what it
            downloads .jpg.
    """
    if name.startswith(("http://", "https://")) or ".tar/" in name:
        return
    found = "JPEG" if format == "MPO" else format
    suffix = os.path.splitext(name)[1]
    if found == "TIFF" and suffix.lower() in RAW_SUFFIXES:
        raise InputError(f"{name}: RAW photos are not read: export it as JPEG")
    if SUFFIXES.get(suffix.lower(), found) != found:
        right = next(known for known, promised in SUFFIXES.items() if promised == found)
        raise InputError(f"{name}: this is a {found} named {suffix}: rename it to {right}")


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
    """Read the header: the format and the size are known, nothing is decoded yet."""
    import PIL.Image

    try:
        image = PIL.Image.open(io.BytesIO(data), formats=_formats())
    except PIL.UnidentifiedImageError as error:
        brand = _BRANDS.get(data[8:12]) if data[4:8] == b"ftyp" else None
        if brand is not None and not _installed(brand):
            raise InputError(f"{name}: {_MISSING[brand]}") from error
        if brand is not None or data.startswith(_SIGNATURES):
            raise  # an image once: decode says that it is damaged
        supported = ", ".join(FORMATS)
        raise InputError(f"{name}: not an image (or of a format that is not supported: use {supported})") from error
    except PIL.Image.DecompressionBombError as error:
        # Pillow's error has the figures, and the limit that holds if the caller lowered it, in its text alone.
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
    if width * height > max_pixels():  # Pillow let it pass: its limit is higher, or turned off
        raise InputError(f"{name}: {width} x {height} pixels are more than {_limit(max_pixels(), width * height)}")
    if draft_to is not None and isinstance(image, ImageFile):
        image.draft(None, (draft_to, draft_to))
    image.load()
    # Not ImageOps.exif_transpose: it writes the EXIF data anew, and fails on odd ones that do no harm here.
    turn = PIL.Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90,
    }  # fmt: skip
    orientation = _orientation(image)
    pixels = _to_rgb(image, name)
    if draft_to is not None and pixels.width * pixels.height > LARGE:  # each side by itself, for strips too are large
        pixels = pixels.reduce((max(1, pixels.width // draft_to), max(1, pixels.height // draft_to)))
    if orientation in turns:
        pixels = pixels.transpose(turns[orientation])
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    pixels.info = {}  # with the EXIF data left in, whoever reads them would turn it a second time
    return Photo(pixels, width, height)


def _to_rgb(image: Image, name: str) -> Image:
    """RGB, 8 bits a channel, of an image in any of Pillow's modes; transparency comes out white."""
    import PIL.Image

    if image.mode.startswith("I"):
        grey = image.convert("I")
        low, high = cast("tuple[int, int]", grey.getextrema())
        if low >= 0 and high <= 65535:
            # Pillow clips at 255 here: scale to 0..255 and round. Cameras and scanners store 10, 12 or 14 bits in 16.
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
    """EXIF orientation of a loaded image (Pillow has turned a TIFF while loading it); 1 where it is unreadable."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF data raise anything, and the pixels are good without them
        return 1
    return value if isinstance(value, int) else 1


def max_pixels() -> int:
    """The largest number of pixels of a photo, from the setting LDOT_MAX_PIXELS."""
    return _max_pixels(os.environ.get("LDOT_MAX_PIXELS"))


@lru_cache(maxsize=2)
def _max_pixels(_: str | None) -> int:
    """The setting, cached by the variable's value: reading all settings takes milliseconds."""
    return Settings().max_pixels


def _limit(limit: int, pixels: int) -> str:
    """The limit, and how to raise it if it is the setting's, not Pillow's, and the photo may be one of a camera."""
    remedy = ": set LDOT_MAX_PIXELS to read it" if limit == max_pixels() and pixels <= LARGEST_CAMERA else ""
    return f"the limit of {limit:,} pixels{remedy}"


@contextmanager
def _boundary(name: str) -> Iterator[None]:
    """Whatever Pillow raises in here leaves as InputError."""
    with _strict_and_quiet():
        try:
            yield
        except InputError:
            raise
        except MemoryError as error:
            raise InputError(f"{name}: not enough memory to decode it") from error
        except Exception as error:  # damaged headers raise nearly everything: struct.error, OverflowError, ...
            state = "truncated" if "truncated" in str(error).lower() else "damaged or truncated"
            raise InputError(f"{name}: the image is {state}") from error


@contextmanager
def _strict_and_quiet() -> Iterator[None]:
    """Truncated files are errors whatever LOAD_TRUNCATED_IMAGES says, and Pillow's warnings are not shown.

    A higher LDOT_MAX_PIXELS raises Pillow's own limit, which ``_load`` then checks.

    All are global in Python. Flag and limit go back when the last thread leaves. The filter is put in by hand since
    ``warnings.catch_warnings`` restores other threads' filters and makes warnings that were shown once show again.
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
        with suppress(ValueError):  # somebody else has put back a list of his own meanwhile
            filters.remove(_NO_PILLOW_WARNINGS)
