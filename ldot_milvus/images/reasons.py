"""Say why a file is refused: damaged, of another format, or of a kind that Pillow does not read.

Pillow reports most of these alike. What the file itself says of its pixels and its compression tells them apart.
"""

from __future__ import annotations

import io
import struct
from typing import Any

SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of the supported formats whose beginning is unmistakable."""

_SAVE_AS = "save it as JPEG or PNG"

# First bytes of other formats that people have photos in; a name with an article.
_OTHERS = (
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"), (b"\xff\x4f\xff\x51", "a JPEG 2000"), (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"), (b"8BPS", "a Photoshop document"), (b"%PDF", "a PDF"),
    (b"\x76\x2f\x31\x01", "an OpenEXR"), (b"#?RADIANCE", "a Radiance HDR"), (b"\0\0\x01\0", "an icon (ICO)"),
    (b"PK\x03\x04", "a zip archive"),
    (b"II\xbc\x01", "a JPEG XR"), (b"FUJIFILM", "a RAW photo"), (b"IIRO", "a RAW photo"),
)  # fmt: skip
_JUNK = 64
"""Bytes before an image in which it is looked for."""

_JPEG_KINDS = {
    0xC3: "a lossless JPEG", 0xC5: "a hierarchical JPEG", 0xC6: "a hierarchical JPEG", 0xC7: "a lossless JPEG",
    0xC9: "a JPEG with arithmetic coding", 0xCA: "a JPEG with arithmetic coding", 0xCB: "a lossless JPEG",
    0xCD: "a hierarchical JPEG", 0xCE: "a hierarchical JPEG", 0xCF: "a lossless JPEG",
}  # fmt: skip

_COMPRESSIONS = {
    6: "old-style JPEG", 7: "JPEG", 34661: "JBIG", 34712: "JPEG 2000", 33003: "JPEG 2000", 33005: "JPEG 2000",
    34887: "LERC", 34892: "lossy JPEG of DNG", 34925: "LZMA", 34933: "PNG", 34934: "JPEG XR", 22610: "JPEG XR",
    50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL", 32809: "ThunderScan", 34676: "SGI Log",
    34677: "SGI Log",
}  # fmt: skip
_COMPRESSION, _PHOTOMETRIC, _SAMPLES, _BITS, _SAMPLE_FORMAT, _PLANAR = 259, 262, 277, 258, 339, 284
_NUMBERS = {1: "unsigned", 2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_COLOURS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab"}


def reason(error: Exception, data: bytes | None) -> str:
    """Return why an image cannot be decoded, as the rest of a line that begins with its name.

    Args:
        error: what Pillow raised.
        data: the encoded image; None for an image that the caller opened.
    """
    text = str(error)
    if data is None and "closed" in text.lower():
        return "the file of this image is closed: call its load() before, or give the path"
    if "truncated" in text.lower():
        return "the image is truncated"
    unsupported = None if data is None else _unsupported(data, text)
    return unsupported or "the image is damaged or truncated"


def other_content(data: bytes) -> str | None:
    """Return what data are that do not begin like an image; None if that is not known.

    Returns:
        The rest of a line that begins with the name; ``{formats}`` in it stands for the supported formats.
    """
    start = data[:1024].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "this is a web page (HTML), not an image: the server answered with an error, or the address is wrong"
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        return "an SVG is a drawing without pixels: export it as PNG"
    for signature, what in _OTHERS:
        if data.startswith(signature):
            return f"{what} is not read: use {{formats}}"
    if data[4:8] == b"ftyp":
        what = "a RAW photo" if data[8:11] == b"crx" else "a video"
        return f"{what} is not read: use {{formats}}"
    for signature in SIGNATURES[:4]:
        at = data.find(signature, 1, _JUNK)
        if at > 0:
            return f"the image begins at byte {at}, after something else: remove what is before it"
    return None


def _unsupported(data: bytes, text: str) -> str | None:
    """Return which kind of a supported format Pillow does not read; None if the data seem to be damaged."""
    if data.startswith(SIGNATURES[0]):
        return _jpeg(data)
    if data.startswith(SIGNATURES[4:]):
        return _tiff(data)
    if "unsupported" in text.lower() or "not supported" in text.lower():  # such as of BMPs
        return f"{text[0].lower()}{text[1:]}: {_SAVE_AS}"
    return None


def _jpeg(data: bytes) -> str | None:
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill bytes
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits = data[position + 4]
            # Arithmetic coding is read by some builds of Pillow. If this one did, the data would be damaged instead.
            what = f"a JPEG of {bits} bits" if bits != 8 else _JPEG_KINDS.get(marker)
            return what and f"{what} is not read by this Pillow: {_SAVE_AS}"
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None


def _tiff(data: bytes) -> str | None:
    from PIL import TiffImagePlugin

    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])  # 43: BigTIFF
        file = io.BytesIO(data)
        file.seek(directory.next)
        directory.load(file)
        compression = int(_first(directory.get(_COMPRESSION, 1)))
        bits = [int(one) for one in _all(directory.get(_BITS, 1))]
        samples = int(_first(directory.get(_SAMPLES, len(bits))))
        numbers = int(_first(directory.get(_SAMPLE_FORMAT, 1)))
        colours = int(_first(directory.get(_PHOTOMETRIC, 1)))
    except Exception:  # the directory itself is damaged
        return None
    if compression not in TiffImagePlugin.COMPRESSION_INFO or compression in _COMPRESSIONS:
        name = _COMPRESSIONS.get(compression, f"number {compression}")
        if compression not in TiffImagePlugin.COMPRESSION_INFO:
            return f"this Pillow does not read TIFFs with the compression {name}: save it without compression"
    kinds = TiffImagePlugin.OPEN_INFO
    bits = bits * samples if len(bits) == 1 else bits
    like = (data[:2], colours, (numbers,))
    if not any(key[:3] == like and key[4] == tuple(bits) for key in kinds):
        number = _NUMBERS.get(numbers, "unknown")
        form = f"{samples} x {'/'.join(map(str, sorted(set(bits))))} bits, {number} {_COLOURS.get(colours, 'colours')}"
        return f"this Pillow does not read TIFFs of this kind ({form}): save it with 8 bits, as RGB or grey"
    if compression in _COMPRESSIONS:
        return f"its compression {_COMPRESSIONS[compression]} is damaged, or not read by this Pillow"
    return None


def _all(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _first(value: Any) -> Any:
    return _all(value)[0]
