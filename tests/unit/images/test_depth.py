"""More than 8 bits a channel: integers and floating-point numbers of every width, in grey and in colour."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ldot_milvus.errors import InputError
from ldot_milvus.images import decode, from_pil
from ldot_milvus.images.levels import to_8_bits
from tests.unit.test_images import encoded, png_chunk, refusal


def png16(values: NDArray[np.uint16], filter: int = 2) -> bytes:
    """A PNG with 16 bits a channel, which Pillow does not write: grey, grey and alpha, RGB or RGBA."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = values.astype(">u2").tobytes()
    stride = width * channels * 2
    lines, above = b"", bytes(stride)
    for row in range(height):
        line = rows[row * stride : (row + 1) * stride]
        lines += bytes([filter]) + bytes((b - a) % 256 for a, b in zip(above, line, strict=True))
        above = line
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body + png_chunk(b"IEND", b"")


def tiff(values: NDArray[Any], order: str = "<", compress: bool = False, tags: dict[int, int] | None = None) -> bytes:
    """A TIFF of one strip: (H, W) or (H, W, 3), of any type of number and either byte order."""
    values = values.reshape(*values.shape[:2], -1)
    height, width, samples = values.shape
    raw = values.astype(values.dtype.newbyteorder(order)).tobytes()
    raw = zlib.compress(raw) if compress else raw
    number = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries = {
        256: width, 257: height, 258: values.dtype.itemsize * 8, 259: 8 if compress else 1,
        262: 2 if samples == 3 else 1, 273: 0, 277: samples, 278: height, 279: len(raw), 339: number, **(tags or {}),
    }  # fmt: skip
    many = {258, 339} if samples == 3 else set()
    start = 8 + 2 + 12 * len(entries) + 4
    extra, table = b"", b""
    for tag, value in sorted(entries.items()):
        if tag in many:
            table += struct.pack(f"{order}HHII", tag, 3, 3, start + len(extra))
            extra += struct.pack(f"{order}4H", value, value, value, 0)
        else:
            table += struct.pack(f"{order}HHII", tag, 4, 1, value)
    place = start + len(extra)
    table = table.replace(struct.pack(f"{order}HHII", 273, 4, 1, 0), struct.pack(f"{order}HHII", 273, 4, 1, place))
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    return head + struct.pack(f"{order}H", len(entries)) + table + bytes(4) + extra + raw


def ramp(top: float, channels: int, low: float = 0) -> NDArray[np.float64]:
    """Four rows and eight columns from ``low`` to ``top``; the channels have different values."""
    values = np.linspace(low, top, 8)[None, :, None] * np.ones((4, 1, channels))
    values[..., 1:2] = values[..., 1:2] * 0.5 + low * 0.5 if channels > 1 else values[..., 1:2]
    return values


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("filter", [0, 2])
def test_colour_of_fewer_bits_in_a_png_of_16(bits: int, channels: int, filter: int) -> None:
    """Pillow reads the upper 8 of the 16, in which 12 bits are nearly black; all 12 count."""
    values = np.round(ramp(2**bits - 1, channels)).astype(np.uint16)
    if channels == 4:
        values[..., 3] = 65535
    expected = ramp(255, channels)[..., :3]
    got = np.asarray(decode(png16(values, filter) if filter else png16_unfiltered(values)).image, float)
    assert np.abs(got - expected).max() <= 1


def png16_unfiltered(values: NDArray[np.uint16]) -> bytes:
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [False, True])
def test_colour_of_fewer_bits_in_a_tiff_of_16(bits: int, order: str, compress: bool) -> None:
    values = np.round(ramp(2**bits - 1, 3)).astype(np.uint16)
    got = np.asarray(decode(tiff(values, order, compress), name="scan.tif").image, float)
    assert np.abs(got - ramp(255, 3)).max() <= 1


def test_a_dark_photo_of_16_bits_keeps_its_rotation_and_a_black_one_is_black() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.full((4, 8, 3), 4000, np.uint16)
    turned = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    png = png16(values)
    assert decode(png[:33] + turned + png[33:]).image.size == (4, 8)
    assert np.asarray(decode(png16(np.zeros((4, 8, 3), np.uint16))).image).max() == 0


WIDE = {
    "uint32": (np.uint32, 0, 2**32 - 1), "int32": (np.int32, 0, 2**20), "negative": (np.int32, -(2**20), 2**20),
    "int16": (np.int16, -20_000, 30_000), "float 0..1": (np.float32, 0, 1), "float 0..255": (np.float32, 0, 255),
    "float 0..4095": (np.float32, 0, 4095), "float 0..65535": (np.float32, 0, 65535),
    "heights": (np.float32, -50, 8000),
}  # fmt: skip


# Pillow has no big-endian unsigned 32-bit integers, see test_what_pillow_does_not_read.
@pytest.mark.parametrize(("kind", "order"), [
    (kind, order) for kind in WIDE for order in "<>" if (kind, order) != ("uint32", ">")
])  # fmt: skip
def test_wide_grey_tiffs_are_scaled_by_what_is_there(kind: str, order: str) -> None:
    type, low, top = WIDE[kind]
    values = ramp(top, 1, low)[..., 0]
    data = tiff(values.round().astype(type) if np.issubdtype(type, np.integer) else values.astype(type), order)
    got = np.asarray(decode(data, name="wide.tif").image)
    assert np.abs(got[0, :, 0].astype(float) - np.linspace(0, 255, 8)).max() <= 1
    assert (got[..., 0] == got[..., 2]).all()


def test_pixels_that_are_no_numbers() -> None:
    """Rasters mark what they do not have with NaN, which becomes black; without any value there is nothing to see."""
    values = np.full((4, 8), np.nan, np.float32)
    assert "no pixel has a finite value" in refusal(tiff(values))
    values[0] = np.linspace(0, 1, 8)
    values[1, 0], values[1, 1] = np.inf, -np.inf
    got = np.asarray(decode(tiff(values)).image)[..., 0]
    assert got[0].tolist() == [0, 36, 73, 109, 146, 182, 219, 255]
    assert got[1].tolist() == [255, *[0] * 7]


def test_white_is_zero_and_a_white_level() -> None:
    """Some scanners store negatives, and cameras the value of white, which the brightest pixel may not reach."""
    values = np.array([[0, 1000, 4095, 65535]], np.uint16)
    assert np.asarray(decode(tiff(values, tags={262: 0})).image)[0, :, 0].tolist() == [255, 251, 239, 0]
    values = np.array([[0, 1000, 2000, 3000]], np.uint16)
    assert np.asarray(decode(tiff(values, tags={50717: 4000})).image)[0, :, 0].tolist() == [0, 64, 128, 191]


@pytest.mark.parametrize("values", [
    np.zeros((2, 2), np.uint16), np.full((2, 2), 7.5, np.float32), np.full((2, 2), -3, np.int64),
    np.full((2, 2), 2**40, np.int64), np.full((2, 2), 1e30, np.float64),
])  # fmt: skip
def test_one_value_everywhere_is_some_grey(values: NDArray[Any]) -> None:
    got = to_8_bits(values)
    assert got.dtype == np.uint8
    assert len(np.unique(got)) == 1


@pytest.mark.parametrize(("mode", "colour", "expected"), [
    ("La", (100, 255), (100,) * 3), ("RGBa", (100, 50, 20, 255), (100, 50, 20)), ("PA", None, (0, 0, 0)),
    ("YCbCr", (76, 85, 255), (255, 0, 0)), ("HSV", (0, 255, 255), (255, 0, 0)), ("RGBX", (9, 8, 7, 0), (9, 8, 7)),
    ("1", 1, (255,) * 3), ("F", 1.0, (255,) * 3), ("I", 255, (255,) * 3), ("I;16B", None, (0,) * 3),
])  # fmt: skip
def test_every_mode_of_pillow(mode: str, colour: Any, expected: tuple[int, ...]) -> None:
    image = Image.new(mode, (4, 4)) if colour is None else Image.new(mode, (4, 4), colour)
    if mode == "PA":
        image.putalpha(255)
    got = from_pil(image).image
    assert got.mode == "RGB"
    assert got.getpixel((1, 1)) == pytest.approx(expected, abs=2)


def test_what_pillow_does_not_read() -> None:
    """The reason says what the file is, and not that it is damaged."""
    colours, grey = ramp(1, 3).astype(np.float32), ramp(1, 1)[..., 0]
    for values, order, form in (
        (colours, "<", "3 x 32 bits, floating-point RGB"), (grey, "<", "1 x 64 bits, floating-point grey"),
        (grey.astype(np.float16), ">", "1 x 16 bits, floating-point grey"),
        ((grey * 9).astype(np.uint32), ">", "1 x 32 bits, unsigned grey"),
    ):  # fmt: skip
        assert f"does not read TIFFs of this kind ({form}): save it with 8 bits" in refusal(tiff(values, order))
    for number, name in ((34712, "JPEG 2000"), (34887, "LERC"), (4242, "number 4242")):
        assert f"with the compression {name}" in refusal(tiff(np.zeros((4, 4), np.uint8), tags={259: number}))
    for number, name in ((50000, "Zstandard"), (7, "JPEG")):  # a codec that may be missing, or damage
        assert f"its compression {name} is damaged, or not" in refusal(
            tiff(np.zeros((4, 4), np.uint8), tags={259: number})
        )
    jpeg = encoded(Image.new("RGB", (16, 16)), "JPEG")
    at = jpeg.index(b"\xff\xc0")
    assert "a JPEG of 12 bits is not read" in refusal(jpeg[: at + 4] + b"\x0c" + jpeg[at + 5 :])
    assert "a lossless JPEG is not read" in refusal(jpeg[: at + 1] + b"\xc3" + jpeg[at + 2 :])
    assert "damaged" in refusal(tiff(np.zeros((4, 4), np.uint8))[:20])


@pytest.mark.parametrize(("data", "reason"), [
    (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "a JPEG 2000 is not read: use JPEG, PNG"),
    (b"\xff\x0a" + bytes(50), "a JPEG XL is not read"), (b"8BPS\0\1" + bytes(50), "a Photoshop document is not read"),
    (b"%PDF-1.7\n", "a PDF is not read"), (b"\0\0\0\x18ftypmp42" + bytes(50), "a video is not read"),
    (b"\0\0\0\x18ftypcrx " + bytes(50), "a RAW photo is not read"),
    (b"PK\x03\x04" + bytes(50), "a zip archive is not read"),
    (b"\n<!DOCTYPE html><title>429</title>", "a web page (HTML)"), (b"<html>404</html>", "a web page (HTML)"),
    (b'<?xml version="1.0"?>\n<svg/>', "an SVG is a drawing"),
    (b"\r\n\xff\xd8\xff\xe0" + bytes(50), "begins at byte 2"),
])  # fmt: skip
def test_what_is_no_photo_is_named(data: bytes, reason: str) -> None:
    assert reason in refusal(data)


def test_a_png_with_a_damaged_text_is_read() -> None:
    png = encoded(Image.new("RGB", (8, 8), "red"), "PNG")
    damaged = png_chunk(b"tEXt", b"a\0b")[:-4] + bytes(4)
    assert decode(png[:33] + damaged + png[33:]).image.getpixel((1, 1)) == (255, 0, 0)


def test_an_image_whose_file_is_closed() -> None:
    with io.BytesIO(encoded(Image.new("RGB", (64, 64)), "PNG")) as file:
        image = Image.open(file)
    with pytest.raises(InputError, match=r"the file of this image is closed: call its load\(\) before"):
        from_pil(image)
