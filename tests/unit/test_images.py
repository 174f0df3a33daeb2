"""Decoding of every supported kind of file, and refusal of damaged, mislabelled and hostile ones."""

import hashlib
import io
import random
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib

import pytest
from PIL import Image, ImageFile

from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.images import MAX_PIXELS, RAW_SUFFIXES, can_read, check_suffix, content_id, decode, formats, from_pil

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def noise(width: int = 64, height: int = 48) -> Image.Image:
    rnd = random.Random(width * height)
    return Image.frombytes("RGB", (width, height), rnd.randbytes(width * height * 3))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body + png_chunk(b"IEND", b"")


def left_red(size: tuple[int, int] = (64, 32)) -> Image.Image:
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0] // 2, size[1]))
    return image


def close(pixel: object, expected: tuple[int, ...], tolerance: int = 3) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, expected, strict=True))  # type: ignore[call-overload]


def refusal(data: bytes, name: str = "photos/x") -> str:
    with pytest.raises(InputError) as caught:
        decode(data, name=name)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert message.count(name) == 1
    assert "\n" not in message
    assert len(message) < 200
    return message


def test_content_id_is_the_sha256_and_needs_no_pillow() -> None:
    assert content_id(b"abc") == hashlib.sha256(b"abc").hexdigest()
    code = "import sys, ldot_milvus.images as i, ldot_milvus.sources; i.content_id(b'x'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ldot_milvus.images" in loaded
    assert not {"PIL", "numpy", "torch"} & set(loaded)


def heic(image: Image.Image, **options: object) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is in the extra heic")
    out = io.BytesIO()
    pillow_heif.from_pillow(image).save(out, quality=90, **options)
    return out.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_allowed_format(format: str) -> None:
    photo = decode(encoded(left_red(), format))
    assert (photo.image.mode, photo.image.size, photo.width, photo.height) == ("RGB", (64, 32), 64, 32)
    assert close(photo.image.getpixel((4, 4)), RED, 6)
    assert close(photo.image.getpixel((60, 4)), (0, 0, 255), 6)


def test_mpo_as_phones_write_it() -> None:
    data = encoded(left_red(), "MPO", save_all=True, append_images=[noise()])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert close(decode(data, name="phone.jpg").image.getpixel((4, 4)), RED, 6)


@pytest.mark.parametrize("format", ["PPM", "TGA", "ICO", "PDF", "EPS"])
def test_other_formats_are_refused_although_pillow_reads_them(format: str) -> None:
    message = refusal(encoded(noise(), format))
    assert "use JPEG, PNG, " in message
    assert "not an image (or of a format" in message or "is not read" in message


def test_heic_and_the_brand_that_it_shares_with_avif() -> None:
    for data, right, wrong in (
        (heic(left_red()), "x.HEIC", "x.avif"),
        (encoded(left_red(), "AVIF"), "x.avif", "x.heic"),
    ):
        for file in (data, data[:8] + b"mif1" + data[12:]):
            photo = decode(file, name=right)
            assert (photo.image.mode, photo.width, photo.height) == ("RGB", 64, 32)
            assert close(photo.image.getpixel((4, 4)), RED, 12)
            assert f"rename it to {right[1:].lower()}" in refusal(file, wrong)
            assert "rename it to" in refusal(file, "phone.jpg")
            assert "damaged or truncated" in refusal(file[: len(file) // 2])
    assert all(can_read(suffix) for suffix in (".heic", ".heif", ".hif", ".avif", ".jpg"))
    assert not can_read(".mov")


def test_heic_is_turned_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = decode(heic(left_red(), exif=exif.tobytes()))
    assert (photo.width, photo.height, photo.image.size) == (32, 64, (32, 64))
    assert close(photo.image.getpixel((16, 4)), RED, 12)


def test_heic_above_the_limit_of_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(noise(100, 100))
    monkeypatch.setenv("LDOT_MAX_PIXELS", "9999")
    assert "100 x 100 pixels are more than the limit of 9,999 pixels: set LDOT_MAX_PIXELS" in refusal(data)


@pytest.mark.parametrize(("brand", "remedy"), [(b"heic", "pip install 'ldot-milvus[heic]'"), (b"avif", "Pillow")])
def test_without_its_plugin_a_format_is_refused_with_the_remedy(
    brand: bytes, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "installed", lambda format: format not in ("HEIF", "AVIF"))
    assert remedy in refusal(b"\0\0\0\x1cftyp" + brand + bytes(100), f"x.{brand.decode()}")
    assert not can_read(f".{brand.decode()}")


@pytest.mark.parametrize("suffix", sorted(RAW_SUFFIXES))
def test_the_thumbnail_of_a_raw_photo_is_not_taken_for_it(suffix: str) -> None:
    assert "RAW photos are not read: export it as JPEG" in refusal(encoded(noise(), "TIFF"), f"x{suffix.upper()}")


def test_zero_bytes_and_text() -> None:
    assert refusal(b"", "a.jpg") == "a.jpg: the file is empty"
    assert "not an image" in refusal(b"this is text\n" * 50, "photos/notes.jpg")
    assert "not an image" in refusal(b"BM", "b.bmp")
    assert "not an image" in refusal(b"\0", "c.png")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
def test_truncated(format: str) -> None:
    data = encoded(noise(), format)
    assert refusal(data[: len(data) // 2]) == "photos/x: the image is truncated"


def test_truncated_webp_and_damaged_header() -> None:
    data = encoded(noise(), "WEBP")
    assert "damaged or truncated" in refusal(data[: len(data) // 2])
    png = bytearray(encoded(noise(), "PNG"))
    png[20] ^= 0xFF  # the header's checksum no longer fits
    assert "damaged or truncated" in refusal(bytes(png))


def test_truncated_is_an_error_whatever_the_global_flag_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(noise(256, 256), "JPEG")
    half = data[: len(data) // 2]
    Image.open(io.BytesIO(half)).load()  # Pillow is lenient now
    messages: list[str] = []

    def work() -> None:
        for _ in range(20):
            messages.append(refusal(half))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert messages == ["photos/x: the image is truncated"] * 80
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_wrong_suffix_is_refused() -> None:
    png, jpeg = encoded(noise(), "PNG"), encoded(noise(), "JPEG")
    assert refusal(png, "photos/x.jpg") == "photos/x.jpg: this is a PNG named .jpg: rename it to .png"
    assert refusal(jpeg, "x.PNG") == "x.PNG: this is a JPEG named .PNG: rename it to .jpg"
    for name in ("x.jpeg", "x.JPG", "x.jfif", "x.jpe", "x", "x.dat", ".jpg/x", "x.png.jpg"):
        decode(jpeg, name=name)
    check_suffix("x.jpg", "MPO")
    for name in ("https://host/x.jpg", "shards/s.tar/x.jpg"):  # named by programs, before the content was known
        decode(png, name=name)
    check_suffix("x.tif", "TIFF")
    with pytest.raises(InputError):
        check_suffix("x.gif", "WEBP")


def test_a_bomb_costs_nothing() -> None:
    """Its pixels would take more than ten seconds to decode."""
    start = time.process_time()
    message = refusal(png_claiming(50_000, 50_000))
    assert message == "photos/x: 2,500,000,000 pixels are more than the limit of 178,956,970 pixels"
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + encoded(noise(), "GIF")[10:]
    assert "more than the limit" in refusal(gif)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("limit", [None, 10**12])
def test_a_bomb_is_refused_where_pillows_limit_is_off(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert "50000 x 50000 pixels are more than the limit" in refusal(png_claiming(50_000, 50_000))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_lower_limit_of_the_caller_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert refusal(encoded(noise(), "PNG")) == "photos/x: 3,072 pixels are more than the limit of 2,000 pixels"


def test_more_pixels_by_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """As phones of 200 megapixels need. The file is small since all rows are alike."""
    data, before = encoded(Image.new("L", (16_320, 12_240), 200), "PNG"), Image.MAX_IMAGE_PIXELS
    assert refusal(data) == (
        "photos/x: 199,756,800 pixels are more than the limit of 178,956,970 pixels: set LDOT_MAX_PIXELS to read it"
    )
    monkeypatch.setenv("LDOT_MAX_PIXELS", "200000000")
    photo = decode(data, draft_to=224)
    assert (photo.width, photo.height) == (16_320, 12_240)
    assert before == Image.MAX_IMAGE_PIXELS
    assert "25000 x 10000 pixels are more than the limit of 200,000,000" in refusal(png_claiming(25_000, 10_000))
    monkeypatch.setenv("LDOT_MAX_PIXELS", "1000")
    assert "64 x 48 pixels are more than the limit of 1,000 pixels: set LDOT_MAX_PIXELS" in refusal(
        encoded(noise(), "PNG")
    )


def test_an_invalid_limit_is_told_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setenv("LDOT_MAX_PIXELS", "0")
    filters = list(warnings.filters)
    with pytest.raises(UsageError, match="LDOT_MAX_PIXELS is '0'"):
        decode(encoded(noise(), "PNG"))
    assert list(warnings.filters) == filters
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    monkeypatch.delenv("LDOT_MAX_PIXELS")
    assert decode(encoded(noise(), "PNG")).width == 64


def test_large_photos_below_the_limit_are_no_bombs() -> None:
    assert MAX_PIXELS > 13_000 * 13_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns from 89 million pixels on
        assert "truncated" in refusal(png_claiming(9_500, 9_500))


def test_only_pillow_warnings_are_suppressed() -> None:
    large = png_claiming(9_500, 9_500)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(large))
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        refusal(large)
        assert not seen
        warnings.warn("mine", stacklevel=1)
    assert [str(one.message) for one in seen] == ["mine"]
    assert list(warnings.filters) == before


def test_cmyk_jpeg() -> None:
    assert close(decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")).image.getpixel((8, 8)), RED)


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    image = Image.new("I;16", (5, 1))
    for x, value in enumerate((0, 256, 32768, 65535, 400)):
        image.putpixel((x, 0), value)
    for format in ("PNG", "TIFF"):
        got = decode(encoded(image, format)).image
        assert [got.getpixel((x, 0)) for x in range(5)] == [(grey,) * 3 for grey in (0, 1, 128, 255, 2)]
    wide = image.convert("I")  # as older Pillows open them
    assert from_pil(wide).image.getpixel((2, 0)) == (128, 128, 128)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_fewer_bits_in_16_are_scaled_by_what_is_there(bits: int, format: str) -> None:
    """Cameras and scanners store 10, 12 or 14 bits, which would be nearly black as 16."""
    image = Image.new("I;16", (3, 1))
    for x, part in enumerate((0, 0.5, 1)):
        image.putpixel((x, 0), round(part * (2**bits - 1)))
    got = decode(encoded(image, format)).image
    assert [got.getpixel((x, 0)) for x in (0, 2)] == [(0,) * 3, WHITE]
    assert close(got.getpixel((1, 0)), (128,) * 3, 1)
    assert decode(encoded(Image.new("I;16", (3, 1)), format)).image.getpixel((0, 0)) == (0, 0, 0)


def texts(kind: bytes, size: int) -> bytes:
    """A chunk that unpacks to ``size`` bytes."""
    body = {
        b"tEXt": b"workflow\0" + b"x" * size,
        b"zTXt": b"workflow\0\0" + zlib.compress(b"x" * size),
        b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * size),
        b"iCCP": b"profile\0\0" + zlib.compress(b"x" * size),
    }[kind]
    return png_chunk(kind, body)


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("where", [33, -12])
@pytest.mark.parametrize("count", [1, 70])
def test_texts_of_a_png_have_no_limit(kind: bytes, where: int, count: int) -> None:
    """Editors and generators of images store megabytes of them, before the pixels or after."""
    exif = Image.Exif()
    exif[0x0112] = 6
    png = encoded(left_red(), "PNG", exif=exif)
    photo = decode(png[:where] + texts(kind, 2_000_000) * count + png[where:])
    assert (photo.width, photo.height) == (32, 64)
    assert close(photo.image.getpixel((16, 4)), RED)
    cut = png[:33] + texts(kind, 2_000_000) * count + png[33:-40]
    assert refusal(cut) == "photos/x: the image is truncated"


def test_grey_bilevel_and_palette() -> None:
    assert decode(encoded(Image.new("L", (4, 4), 77), "PNG")).image.getpixel((1, 1)) == (77, 77, 77)
    assert decode(encoded(Image.new("1", (4, 4), 1), "PNG")).image.getpixel((1, 1)) == WHITE
    assert close(decode(encoded(left_red().quantize(4), "PNG")).image.getpixel((1, 1)), RED)


def test_transparency_becomes_white() -> None:
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half.putpixel((0, 0), (255, 0, 0, 255))
    half.putpixel((1, 0), (0, 0, 0, 128))
    got = decode(encoded(half, "PNG")).image
    assert got.getpixel((0, 0)) == RED
    assert got.getpixel((3, 3)) == WHITE
    assert close(got.getpixel((1, 0)), (127, 127, 127))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((0, 0), 1)
    for transparency in (1, b"\xff\x00"):  # one index, or an alpha for each
        got = decode(encoded(palette, "PNG", transparency=transparency)).image
        assert got.getpixel((0, 0)) == WHITE
        assert got.getpixel((1, 1)) == RED
    grey = Image.new("LA", (4, 4), (0, 0))
    assert decode(encoded(grey, "PNG")).image.getpixel((1, 1)) == WHITE


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_applied_once(format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the photo is at the right side of the pixels
    photo = decode(encoded(left_red(), format, exif=exif))
    assert (photo.width, photo.height, photo.image.size) == (32, 64, (32, 64))
    assert close(photo.image.getpixel((16, 4)), RED, 6)
    assert close(photo.image.getpixel((16, 60)), (0, 0, 255), 6)
    assert from_pil(photo.image).image.size == (32, 64)


def test_all_orientations_agree_with_pillow() -> None:
    from PIL import ImageOps

    source = noise(6, 4)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(source, "PNG", exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert decode(data).image.tobytes() == expected.tobytes()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_does_no_harm(format: str) -> None:
    data = encoded(left_red(), format, exif=b"Exif\0\0no TIFF header")
    if format != "JPEG":  # there Pillow swallows it by itself
        with pytest.raises(SyntaxError):
            Image.open(io.BytesIO(data)).getexif()
    photo = decode(data)
    assert (photo.width, photo.height, photo.image.size) == (64, 32, (64, 32))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100)
        assert close(decode(data).image.getpixel((8, 4)), RED, 6)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_one_pixel_wide(size: tuple[int, int]) -> None:
    for format in ("JPEG", "PNG"):
        assert decode(encoded(noise(*size), format), draft_to=100).image.size == size


def test_draft_is_smaller_and_reports_the_full_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(left_red((1600, 1200)), "JPEG", exif=exif)
    photo = decode(data, draft_to=224)
    assert (photo.width, photo.height) == (1200, 1600)
    assert photo.image.size == (300, 400)
    assert close(photo.image.getpixel((150, 20)), RED, 6)
    assert decode(data, draft_to=5000).image.size == (1200, 1600)
    assert decode(encoded(noise(), "PNG"), draft_to=8).image.size == (64, 48)


@pytest.mark.parametrize(("size", "held"), [((2600, 2000), (325, 334)), ((50_000, 100), (302, 100))])
def test_large_photos_of_any_format_are_held_reduced(size: tuple[int, int], held: tuple[int, int]) -> None:
    """A PNG of a few kilobytes may have a hundred million pixels, and several photos of a chunk are decoded at once."""
    data = encoded(left_red(size), "PNG")
    photo = decode(data, draft_to=300)
    assert (photo.width, photo.height) == size
    assert photo.image.size == held
    assert close(photo.image.getpixel((held[0] // 4, held[1] // 2)), RED, 1)
    assert decode(data).image.size == size


def test_images_of_the_caller() -> None:
    mine = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert from_pil(mine).image.getpixel((0, 0)) == WHITE
    assert mine.mode == "RGBA"
    with pytest.raises(InputError, match="0 x 5"):
        from_pil(Image.new("RGB", (0, 5)))
    data = encoded(noise(256, 256), "JPEG")
    with pytest.raises(InputError, match="truncated"):
        from_pil(Image.open(io.BytesIO(data[: len(data) // 2])))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_random_damage_is_an_input_error_or_nothing(format: str) -> None:
    rnd = random.Random(format)
    exif = Image.Exif()
    exif[0x0112] = 6
    original = encoded(noise(), format, exif=exif)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = time.perf_counter()
        for _ in range(100):
            data = bytearray(original)
            for _ in range(rnd.randint(1, 8)):
                where = rnd.randrange(min(len(data), rnd.choice((64, len(data)))))  # headers get their share
                data[where] = rnd.randrange(256)
            if rnd.random() < 0.3:
                del data[rnd.randrange(len(data)) :]
            try:
                assert decode(bytes(data)).image.mode == "RGB"
            except InputError:
                refused += 1
    assert refused > 10
    assert time.perf_counter() - start < 10
