"""The formats that are read, and the suffixes of their files."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from ldot_milvus.errors import InputError

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
BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
MISSING = {
    "HEIF": "HEIC is read with an extra: pip install 'ldot-milvus[heic]'",
    "AVIF": "AVIF is read by a Pillow that was built with it: pip install --upgrade pillow",
}
_PLUGINS = {"AVIF": "PIL._avif", "HEIF": "pillow_heif"}  # both open the brand mif1, and the first refuses HEIC


def can_read(suffix: str) -> bool:
    """Whether files with this suffix are read, in lower case: HEIC needs pillow-heif, AVIF a Pillow built with it."""
    return suffix in SUFFIXES and installed(SUFFIXES[suffix])


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


def tried_formats() -> tuple[str, ...]:
    """Return the formats that are tried; their plugins are imported."""
    # Unless these plugins are imported by now, Pillow loads its forty other formats in search of them.
    for plugin in ("Avif", "Tiff", "WebP"):
        import_module(f"PIL.{plugin}ImagePlugin")
    more = tuple(format for format in _PLUGINS if installed(format))
    if "HEIF" in more:
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
    return FORMATS + more


@cache
def installed(format: str) -> bool:
    """Whether what reads this format is installed; formats that Pillow always reads are."""
    return format not in _PLUGINS or find_spec(_PLUGINS[format]) is not None
