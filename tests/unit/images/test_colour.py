"""Colour profiles are applied, whatever the file, and ignored where they cannot be."""

from __future__ import annotations

import io
import struct
import threading
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ldot_milvus.images import colour, decode, from_pil
from tests.unit.images.profiles import ADOBE, P3, SRGB, cmyk_profile, cyan_in_srgb, grey_profile, in_srgb, rgb_profile
from tests.unit.test_images import encoded, heic, png_chunk

PATCHES = np.array([
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (230, 120, 90), (60, 140, 70), (40, 60, 160), (128, 128, 128),
    (250, 250, 250),
], np.uint8)  # fmt: skip


def patches(mode: str = "RGB") -> Image.Image:
    """Eight squares of 16 x 16 pixels, so that compression changes their middles little."""
    return Image.fromarray(np.repeat(np.repeat(PATCHES[None], 16, 0), 16, 1)).convert(mode)


def middles(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image, float)[8, 8::16]


FORMATS = {
    "PNG": {}, "TIFF": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("primaries", "gamma"), [(P3, 2.2), (ADOBE, 2.2), (SRGB, 1.0)], ids=["P3", "Adobe", "linear"])
def test_photos_with_a_profile_become_srgb(format: str, primaries: NDArray[np.float64], gamma: float) -> None:
    data = encoded(patches(), format, icc_profile=rgb_profile(primaries, gamma), **FORMATS[format])
    expected = in_srgb(PATCHES, primaries, gamma)
    assert np.abs(expected - PATCHES).max() > 20
    allowed = {"JPEG": 4, "AVIF": 8}.get(format, 2)
    assert np.abs(middles(decode(data).image) - expected).max() <= allowed * (1 if gamma > 2 else 8)


def test_heic_of_phones_has_display_p3() -> None:
    image = patches()
    image.info["icc_profile"] = rgb_profile(P3)
    assert np.abs(middles(decode(heic(image)).image) - in_srgb(PATCHES, P3)).max() < 12


def test_pil_images_of_the_caller_are_converted_and_not_changed() -> None:
    image = patches()
    image.info["icc_profile"] = rgb_profile(P3)
    made = from_pil(image).image
    assert np.abs(middles(made) - in_srgb(PATCHES, P3)).max() <= 2
    assert np.array_equal(np.asarray(image), np.asarray(patches()))
    assert not made.info  # a second conversion changes nothing
    assert np.array_equal(np.asarray(from_pil(made).image), np.asarray(made))


@pytest.mark.parametrize("profile", [
    ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"", b"nonsense", rgb_profile(P3)[:200],
    rgb_profile(P3)[:128], grey_profile(1.0), cmyk_profile(),
], ids=["sRGB", "empty", "nonsense", "cut", "header", "grey", "CMYK"])  # fmt: skip
def test_profiles_that_change_nothing(profile: bytes) -> None:
    """sRGB itself, damaged profiles, and those of other colours than the photo's: the pixels stay as they are."""
    data = encoded(patches(), "PNG", icc_profile=profile)
    assert np.array_equal(np.asarray(decode(data).image), np.asarray(patches()))


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_grey_profiles(mode: str) -> None:
    """Scanners write them. A linear one makes middle grey lighter, in 8 bits and in 16."""
    values = np.full((8, 8), 55 * 257, np.uint16)
    values[0, 0] = 65535
    image = Image.fromarray(values) if mode == "I;16" else Image.new("L", (8, 8), 55).convert(mode)
    image.info["icc_profile"] = grey_profile(1.0)
    got = from_pil(image).image
    expected = 0 if mode == "1" else 128  # 255 * (1.055 * (55 / 255) ** (1 / 2.4) - 0.055)
    assert got.mode == "RGB"
    assert all(abs(channel - expected) <= 2 for channel in got.getpixel((4, 4)))  # type: ignore[union-attr]


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_profiles(format: str) -> None:
    """Without one, Pillow's formula; with one, the press that it describes."""
    cyan = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    plain = decode(encoded(cyan, format)).image.getpixel((16, 16))
    pressed = decode(encoded(cyan, format, icc_profile=cmyk_profile())).image.getpixel((16, 16))
    assert plain == pytest.approx((0, 255, 255), abs=3)
    assert all(abs(channel - expected) < 12 for channel, expected in zip(pressed, cyan_in_srgb(), strict=True))


def test_palettes_and_transparency_with_a_profile() -> None:
    """The profile is that of the palette's colours; what is transparent stays white."""
    profile = rgb_profile(P3)
    for image in (patches().quantize(8), patches("RGBA")):
        got = decode(encoded(image, "PNG", icc_profile=profile)).image
        assert np.abs(middles(got) - in_srgb(PATCHES, P3)).max() < 6
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert decode(encoded(clear, "PNG", icc_profile=profile)).image.getpixel((4, 4)) == pytest.approx((255,) * 3, abs=1)


def test_a_reduced_photo_has_the_same_colours() -> None:
    big = patches().resize((1280, 960), Image.Resampling.NEAREST)
    data = encoded(big, "JPEG", icc_profile=rgb_profile(P3), quality=100, subsampling=0)
    small = decode(data, draft_to=128).image
    assert small.width < 1280
    at = np.asarray(small, float)[small.height // 2, small.width // 16 :: small.width // 8]
    assert np.abs(at[:8] - in_srgb(PATCHES, P3)).max() < 5


@pytest.mark.parametrize(("padding", "used"), [(0, True), (2_000_000, True), (5_000_000, False)])
def test_the_profile_of_a_png_with_megabytes_of_text(padding: int, used: bool) -> None:
    """Pillow refuses long texts and profiles above a megabyte; a profile is used up to four."""
    png = encoded(patches(), "PNG")
    profile = rgb_profile(P3)
    profile = struct.pack(">I", len(profile) + padding) + profile[4:] + bytes(padding)
    text = png_chunk(b"tEXt", b"workflow\0" + b"x" * 2_000_000)
    data = png[:33] + png_chunk(b"iCCP", b"P3\0\0" + zlib.compress(profile)) + text + png[33:]
    expected = in_srgb(PATCHES, P3) if used else PATCHES
    assert np.abs(middles(decode(data).image) - expected).max() <= 2


def test_a_profile_is_read_once_and_used_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    colour._transform.cache_clear()
    built: list[object] = []
    build = ImageCms.buildTransform
    monkeypatch.setattr(ImageCms, "buildTransform", lambda *a, **k: built.append(a) or build(*a, **k))
    data = encoded(patches(), "PNG", icc_profile=rgb_profile(ADOBE))
    alone = decode(data).image.tobytes()
    got: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: got.extend(decode(data).image.tobytes() for _ in range(20))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [alone] * 80
    assert len(built) == 1


def test_lab_is_converted() -> None:
    lab = patches().convert("LAB")
    for image in (from_pil(lab).image, decode(encoded(lab, "TIFF")).image):
        assert np.abs(middles(image) - PATCHES)[3:].max() <= 4  # the primaries are cut off by 8 bits of L*a*b*
    assert Image.open(io.BytesIO(encoded(lab, "TIFF"))).mode == "LAB"
