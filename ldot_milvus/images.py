"""Hash, check and decode photos. Pillow's errors are converted to :class:`InputError`, its warnings are suppressed."""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, cast

from ldot_milvus.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

ImageSource = Union[str, Path, bytes, "Image"]
"""A path, encoded bytes, or an opened PIL image."""

# The image format of each file suffix. Phones write MPO (several JPEGs in one file) as .jpg.
SUFFIXES = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP",
    ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip

# Other formats are refused: Pillow's EPS reader runs Ghostscript, and rare formats had most of its vulnerabilities.
# Pillow's JPEG reader reads MPO as well, so MPO needs no entry.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# The size at which Pillow itself raises an error instead of a warning (twice its MAX_IMAGE_PIXELS).
MAX_PIXELS = 178_956_970

# A photo of any format with more pixels than this is reduced if the caller allows it: several photos of a chunk are in
# memory at once, and a PNG of a few kilobytes may have a hundred million pixels.
LARGE = 2**22

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_ORIENTATION_TAG = 0x0112
_NO_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_strict_lock = threading.Lock()
_strict_users = 0
_lenient_before = False


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
    with _boundary(name), _open(data, name) as image:
        check_suffix(name, image.format or "")
        return _load(image, name, draft_to)


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


def check_suffix(name: str, format: str) -> None:
    """Refuse a name whose suffix belongs to another format than the content's.

    Names without a suffix or with an unknown one are accepted. So are URLs: a server chooses the format by the request.

    Args:
        name: file name or URL.
        format: the content's format, as Pillow names it.

    Raises:
        InputError: the suffix belongs to another format, for example a PNG named .jpg.
    """
    if name.startswith(("http://", "https://")):
        return
    actual = "JPEG" if format == "MPO" else format
    suffix = os.path.splitext(name)[1]
    if SUFFIXES.get(suffix.lower(), actual) != actual:
        expected = next(known for known, its_format in SUFFIXES.items() if its_format == actual)
        raise InputError(f"{name}: this is a {actual} named {suffix}: rename it to {expected}")


def _open(data: bytes, name: str) -> ImageFile:
    """Read the header, which contains format and size, without decoding the pixels."""
    import PIL.Image
    import PIL.TiffImagePlugin
    import PIL.WebPImagePlugin

    # Without the import of these two plugins, Pillow would load its forty other formats to find them.
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES):
            raise  # the data start like an image: _boundary reports it as damaged
        supported = ", ".join(FORMATS)
        raise InputError(f"{name}: not an image (or of a format that is not supported: use {supported})") from error
    except PIL.Image.DecompressionBombError as error:
        # Only the text of Pillow's error has the number of pixels and the limit, which the caller may have lowered.
        figures = re.findall(r"\d+", str(error))
        limit = int(figures[1]) if len(figures) == 2 else MAX_PIXELS
        claimed = f"{int(figures[0]):,} pixels are" if len(figures) == 2 else "it has"
        raise InputError(f"{name}: {claimed} more than the limit of {limit:,} pixels") from error
    return image


def _load(image: Image, name: str, draft_to: int | None) -> Photo:
    import PIL.Image
    from PIL.ImageFile import ImageFile

    width, height = image.size
    if width * height == 0:
        raise InputError(f"{name}: an image of {width} x {height} pixels is empty")
    if width * height > MAX_PIXELS:  # Pillow accepts it if the caller has raised its limit or turned it off
        raise InputError(f"{name}: {width} x {height} pixels are more than the limit of {MAX_PIXELS:,} pixels")
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

    if image.mode.startswith("I") and _fits_16_bits(image):
        # Pillow's own conversion clips at 255: scale 0..65535 to 0..255 and round.
        return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
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


def _fits_16_bits(image: Image) -> bool:
    if image.mode != "I":
        return True  # the I;16 family
    low, high = cast("tuple[int, int]", image.getextrema())
    return low >= 0 and high <= 65535


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

    Both settings are global to the process. The flag is restored when the last thread leaves. The warning filter is
    inserted and removed directly, because ``warnings.catch_warnings`` would overwrite other threads' filters and show
    warnings again that were already shown.
    """
    global _strict_users, _lenient_before
    from PIL import ImageFile

    filters: Any = warnings.filters
    filters.insert(0, _NO_PILLOW_WARNINGS)
    with _strict_lock:
        if _strict_users == 0:
            _lenient_before = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _strict_users += 1
    try:
        yield
    finally:
        with _strict_lock:
            _strict_users -= 1
            if _strict_users == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = _lenient_before
        with suppress(ValueError):  # other code may have replaced the list of filters in the meantime
            filters.remove(_NO_PILLOW_WARNINGS)
