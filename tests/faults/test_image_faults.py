"""Ingest files that are not photos, damaged and unusual photos, and files that change while they are read."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldot_milvus import open_store
from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.regions.files import LmdbRegions, NpzRegions, parse_tsv_line, write_lmdb, write_npz
from ldot_milvus.sources import Source, expand, read
from ldot_milvus.stores import Record
from tests.conftest import ROOT, make_photo
from tests.faults.mutate import damaged
from tests.integration.ingest.test_kinds_of_input import made
from tests.unit.images.profiles import P3, rgb_profile
from tests.unit.regions.test_region_files import tsv_line
from tests.unit.sources.test_sources import make_tar
from tests.unit.test_images import heic, png_claiming

Outcome = tuple[dict[bytes, Record], dict[bytes, str]]


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(seed: int) -> Image.Image:
    return Image.open(io.BytesIO(make_photo(seed, size=(80, 60), format="PNG")))


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo(20), "JPEG", exif=exif)


NOT_SUPPORTED = "not an image (or of a format that is not supported: use JPEG, PNG, WEBP, GIF, BMP, TIFF)"
ERROR_PAGE = "this is a web page (HTML), not an image: the server answered with an error, or the address is wrong"
TOO_LARGE = "2,500,000,000 pixels are more than the limit of 178,956,970 pixels"
NO_NUMBER = "no pixel has a finite value: save it with 8 bits, as RGB or grey"

# Name to content, and to the reason why it fails or the size that it is stored with.
FAULTS: dict[str, tuple[bytes | Callable[[], bytes], str | tuple[int, int]]] = {
    "truncated.jpg": (make_photo(1)[:-300], "the image is truncated"),
    "truncated.png": (make_photo(1, format="PNG")[:-60], "the image is truncated"),
    "corrupt.jpg": (b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4, "the image is damaged or truncated"),
    "zero_bytes.jpg": (b"", "the file is empty"),
    "text.jpg": (b"This is no photo.", NOT_SUPPORTED),
    "error_page.jpg": (b"<html><title>429 Too Many Requests</title></html>", ERROR_PAGE),
    "display_p3.jpg": (lambda: encoded(photo(25), "JPEG", icc_profile=rgb_profile(P3)), (80, 60)),
    "bomb_of_68_bytes.png": (png_claiming(50_000, 50_000), TOO_LARGE),
    "bomb_below_the_limit.png": (png_claiming(12_000, 12_000), "the image is truncated"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", NOT_SUPPORTED),
    "fits.jpg": (b"SIMPLE  =                    T".ljust(2880), NOT_SUPPORTED),
    "ppm.jpg": (lambda: encoded(photo(2), "PPM"), NOT_SUPPORTED),
    "png_named.jpg": (make_photo(3, format="PNG"), "this is a PNG named .jpg: rename it to .png"),
    "float.tif": (lambda: encoded(Image.new("F", (40, 30), 0.5), "TIFF"), (40, 30)),
    "no_number.tif": (lambda: encoded(Image.new("F", (8, 8), float("nan")), "TIFF"), NO_NUMBER),
    "cmyk.jpg": (lambda: encoded(photo(4).convert("CMYK"), "JPEG"), (80, 60)),
    "16_bit.png": (lambda: encoded(Image.new("I;16", (40, 30), 40_000), "PNG"), (40, 30)),
    "12_bit.png": (lambda: encoded(Image.new("I;16", (40, 30), 4_000), "PNG"), (40, 30)),
    "photo.avif": (lambda: encoded(photo(22), "AVIF"), (80, 60)),
    "IMG_1.HEIC": (lambda: heic(photo(23)), (80, 60)),
    "phone.jpg": (lambda: heic(photo(24)), "this is a HEIF named .jpg: rename it to .heic"),
    "palette.png": (lambda: encoded(photo(5).convert("P"), "PNG", transparency=1), (80, 60)),
    "grey.jpg": (lambda: encoded(photo(6).convert("L"), "JPEG"), (80, 60)),
    "one_bit.png": (lambda: encoded(photo(7).convert("1"), "PNG"), (80, 60)),
    "alpha.png": (lambda: encoded(photo(8).convert("RGBA"), "PNG"), (80, 60)),
    "rotated.jpg": (rotated, (60, 80)),
    "animated.gif": (lambda: encoded(photo(9), "GIF", save_all=True, append_images=[photo(10)]), (80, 60)),
    "one_pixel_high.png": (lambda: encoded(Image.new("RGB", (5000, 1)), "PNG"), (5000, 1)),
    "one_pixel_wide.png": (lambda: encoded(Image.new("RGB", (1, 5000)), "PNG"), (1, 5000)),
    "no_suffix_at_all.jpeg": (make_photo(11), (80, 60)),
    "two words.jpg": (make_photo(12), (80, 60)),
    "new\nline.jpg": (make_photo(13), (80, 60)),
    "写真 🐕.jpg": (make_photo(14), (80, 60)),
    "latin\udce9.jpg": (make_photo(15), (80, 60)),  # a byte that is no UTF-8
    "-rf.jpg": (make_photo(16), (80, 60)),
    "denied.jpg": (make_photo(17), "no permission to read it"),
    "vanished.jpg": (make_photo(18), "no such file"),
    "now_a_folder.jpg": (make_photo(19), "this is a folder, not a file"),
    "now_a_pipe.jpg": (make_photo(21), "this is a device or a pipe, not a file"),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Outcome:
    """One ingestion of a folder with all of them: rows and reasons by file name."""
    folder = tmp_path_factory.mktemp("faults")
    photos = folder / "photos"
    photos.mkdir()
    for name, (content, _) in FAULTS.items():
        (photos / name).write_bytes(content() if callable(content) else content)
    (photos / "a_folder.jpg").mkdir()
    (photos / "a_folder.jpg" / "inside.jpg").write_bytes(make_photo(30))
    (folder / "secret.jpg").write_bytes(make_photo(31))
    (photos / "link_out.jpg").symlink_to(folder / "secret.jpg")
    (photos / "circle.jpg").symlink_to(photos / "circle.jpg")
    sources = list(expand([str(photos)]))
    (photos / "vanished.jpg").unlink()
    (photos / "now_a_folder.jpg").unlink()
    (photos / "now_a_folder.jpg").mkdir()
    (photos / "now_a_pipe.jpg").unlink()
    os.mkfifo(photos / "now_a_pipe.jpg")
    opened = open

    def denied(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith("denied.jpg"):  # root may read anything, so the call itself fails
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *arguments, **options)

    with open_store(f"faiss:{folder / 'store'}", "photos") as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.open", denied)
        report = Ingestor(store, tiny_model).ingest(sources)
        rows = {Path(row.source).name: row for row in store.iterate()}
    assert report.total == len(sources)
    return rows, {Path(failure.source).name: failure.reason for failure in report.failed}


def shown(name: str) -> tuple[str, str]:
    """A file's name in the ``source`` field, and in a message."""
    stored = name.replace("\udce9", "\\xe9")
    return stored, stored.replace("\n", "\\n")


@pytest.mark.parametrize("name", FAULTS, ids=lambda name: name.encode("unicode_escape").decode())
def test_each_is_in_or_among_the_failures(name: str, outcome: Outcome) -> None:
    """A file is either reported with its reason or stored with the right size, never both or neither."""
    rows, failures = outcome
    stored, printed = shown(name)
    _, expected = FAULTS[name]
    if isinstance(expected, str):
        assert failures[printed] == expected
        assert stored not in rows
    else:
        assert (rows[stored].width, rows[stored].height) == expected
        assert printed not in failures


def test_a_folder_named_like_a_photo(outcome: Outcome) -> None:
    assert outcome[0]["inside.jpg"].source.endswith("a_folder.jpg/inside.jpg")
    assert "a_folder.jpg" not in outcome[1]


def test_a_link_that_leaves_the_folder(outcome: Outcome) -> None:
    rows, failures = outcome
    assert "a link out of the folder is not followed" in failures["link_out.jpg"]
    assert "circle.jpg" in failures
    assert not {"link_out.jpg", "secret.jpg", "circle.jpg"} & rows.keys()


def test_dots_that_leave_the_tar(tmp_path: Path) -> None:
    """The name of a member is never used as a path: its bytes are read from the tar."""
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    names = ["../secret.jpg", str(tmp_path / "secret.jpg"), "a/../../secret.jpg"]
    with tarfile.open(tmp_path / "in/s.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"mine"))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.jpg")
        tar.addfile(link)
    *members, linked = expand([str(tmp_path / "in/s.tar")])
    assert [read(source) for source in members] == [b"mine"] * 3
    with pytest.raises(InputError, match="a link or a sparse file in a tar is not followed"):
        read(linked)


def test_a_file_that_shrinks_and_one_that_grows(tmp_path: Path, tiny_model: str) -> None:
    """A file that changes between listing and reading is read, and hashed, as it is when it is read."""
    path = tmp_path / "a.jpg"
    path.write_bytes(make_photo(1))
    (source,) = expand([str(path)])
    path.write_bytes(make_photo(2, size=(200, 150)))
    assert read(source) == make_photo(2, size=(200, 150))
    path.write_bytes(make_photo(2)[:50])
    with open_store(f"faiss:{tmp_path / 'store'}", "photos") as store:
        assert [failure.source for failure in Ingestor(store, tiny_model).ingest([source]).failed] == [str(path)]


def test_bad_photos_in_the_middle_of_many(tmp_path: Path, tiny_model: str) -> None:
    """Every third photo of a chunk is damaged, and all others are stored."""
    sources = []
    for n in range(90):
        path = tmp_path / f"{n:02}.jpg"
        path.write_bytes(make_photo(n)[: 100 if n % 3 == 0 else None])
        sources.append(Source(str(path)))
    with open_store(f"faiss:{tmp_path / 'store'}", "photos") as store:
        report = Ingestor(store, tiny_model).ingest(sources)
        assert (report.added, store.count()) == (60, 60)
    assert [failure.source for failure in report.failed] == [source.path for source in sources[::3]]


# ---- mutated files


def test_mutated_region_records_and_tars(tmp_path: Path) -> None:
    """Each damaged record or tar is read, or refused with an error of ldot-milvus."""
    regions = made(1)
    write_npz(tmp_path, [("a", regions)])
    write_lmdb(tmp_path / "lmdb", [("a.npz", regions)])
    packed = LmdbRegions(tmp_path / "lmdb").raw("a.npz")
    line = tsv_line("a", regions.boxes[:, :4] * 100, regions.features, 100, 100).encode()
    shard = Path(make_tar(tmp_path / "s.tar", {"a.jpg": b"x" * 700, "a.json": b'{"caption": "x"}', "b.jpg": b"y"}))
    file, refused = NpzRegions(tmp_path), 0
    originals = [(tmp_path / "a.npz").read_bytes(), packed, line, shard.read_bytes()]
    for seed in range(1200):
        rnd = random.Random(seed)
        form = seed % 4
        data = damaged(originals[form], rnd)
        try:
            if form == 3:
                shard.write_bytes(data)
                for source in expand([str(shard)]):
                    read(source)
            elif form == 2:
                parse_tsv_line(data, "a")
            else:
                file.parse("a.npz", data)
        except (InputError, UsageError):
            refused += 1
    assert 400 < refused < 1200


def test_a_small_record_that_unpacks_to_a_large_one(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, features=np.zeros((10_000, 2048), np.float32))
    assert buffer.tell() < 200_000
    with pytest.raises(InputError, match="bytes unpacked are more than the limit"):
        NpzRegions(tmp_path).parse("a.npz", buffer.getvalue())


def mutated(count: int, tmp_path: Path, model: str) -> dict[str, Any]:
    """Ingest mutated photos in a separate process, which a crash in a decoder would end."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.mutate", str(tmp_path), model, str(count)],
        cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1600)])])
def test_mutated_photos(count: int, tmp_path: Path, tiny_model: str) -> None:
    """No crash, less than a second per file, bounded memory; each file is either stored or reported as a failure."""
    result = mutated(count, tmp_path, tiny_model)
    assert result["total"] == count
    assert result["lost"] == []
    assert result["unprintable"] == []
    assert result["failed"] > count / 3
    assert result["rows"] == result["added"] + 1
    assert result["added"] > count / 20
    assert result["slowest"][0] < 1.0, result["slowest"]
    assert result["grown_mib"] < 2048
