"""What an image may be: every form gives the same pixels, and everything else is one line that says what was given."""

from __future__ import annotations

import base64
import gzip
import io
import os
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldot_milvus import urls
from ldot_milvus.errors import InputError, LdotError, UsageError
from ldot_milvus.images import as_image, each_image, files, is_one_image, open_image
from tests.unit.test_images import encoded, noise

RGB = np.asarray(noise(24, 16))
GREY = np.asarray(noise(24, 16).convert("L"))
PNG = encoded(noise(24, 16), "PNG")
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


class BytesPath:
    def __fspath__(self) -> bytes:
        return os.fsencode(BytesPath.path)

    path = ""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "a photo #1.png"
    file.write_bytes(PNG)
    BytesPath.path = str(file)
    return file


def at_the_end(data: bytes) -> io.BytesIO:
    """As after ``image.save(buffer, "PNG")``."""
    buffer = io.BytesIO()
    buffer.write(data)
    return buffer


class Stream(io.RawIOBase):
    """A file that can be read once, such as the body of a response."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._inner.readinto(buffer)


ENCODED: dict[str, Callable[[Path], Any]] = {
    "str": str, "Path": Path, "PathLike of bytes": lambda path: BytesPath(), "bytes": lambda path: PNG,
    "bytearray": lambda path: bytearray(PNG), "memoryview": lambda path: memoryview(PNG),
    "memoryview of a part": lambda path: memoryview(b"xx" + PNG)[2:], "BytesIO": lambda path: io.BytesIO(PNG),
    "BytesIO at its end": lambda path: at_the_end(PNG), "open file": lambda path: path.open("rb"),
    "unbuffered file": lambda path: path.open("rb", buffering=0), "stream": lambda path: io.BufferedReader(Stream(PNG)),
    "gzip": lambda path: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(PNG))),
    "spooled file": lambda path: spooled(), "data URL": lambda path: DATA_URL,
    "data URL without padding": lambda path: DATA_URL.rstrip("="), "DATA URL": lambda path: "DATA:" + DATA_URL[5:],
    "data URL of percents": lambda path: "data:image/png," + urllib.parse.quote_from_bytes(PNG),
    "data URL of URL letters": lambda path: "data:;base64," + base64.urlsafe_b64encode(PNG).decode(),
    "data URL of lines": lambda path: "data:image/png;base64," + base64.encodebytes(PNG).decode(),
    "file URL": lambda path: path.as_uri(),
    "file URL of localhost": lambda path: path.as_uri().replace("///", "//localhost/"),
    "PIL": lambda path: Image.open(path), "PIL in memory": lambda path: noise(24, 16),
}  # fmt: skip


def spooled() -> Any:
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115  (as uploads are handed over)
    file.write(PNG)
    return file


def tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(values)).permute(2, 0, 1)


ARRAYS: dict[str, Callable[[], Any]] = {
    "HWC": lambda: RGB, "CHW": lambda: RGB.transpose(2, 0, 1),
    "read-only": lambda: np.frombuffer(RGB.tobytes(), np.uint8)
    .reshape(RGB.shape), "reversed twice": lambda: np.ascontiguousarray(RGB[::-1])[::-1],
    "int64": lambda: RGB.astype(np.int64),
    "float32": lambda: RGB.astype(np.float32) / 255, "float64": lambda: RGB / 255,
    "float16": lambda: (RGB / 255).astype("f2"),
    "resampled": lambda: RGB / 255 + np.where(RGB == 255, 0.003, 0) - np.where(RGB == 0, 0.003, 0),
    "uint16": lambda: RGB.astype(np.uint16) * 257,
    "12 bits": lambda: (RGB.astype(np.uint32) * 4095 // 255).astype("u2"),
    "big-endian": lambda: (RGB.astype(np.uint16) * 257).astype(">u2"),
    "RGBA": lambda: np.dstack([RGB, np.full_like(GREY, 255)]),
    "RGBA first": lambda: np.dstack([RGB, np.full_like(GREY, 255)]).transpose(2, 0, 1),
    "RGBA of uint16": lambda: np.dstack([RGB.astype(np.uint16) * 16, np.full(GREY.shape, 65535, np.uint16)]),
    "tensor": lambda: tensor(RGB), "tensor HWC": lambda: torch.from_numpy(RGB.copy()),
    "tensor of floats": lambda: tensor(RGB / 255),
    "with gradients": lambda: tensor(RGB / 255).requires_grad_(),
    "bfloat16": lambda: (tensor(RGB).float() / 255).bfloat16(),
    "uint16 tensor": lambda: tensor(RGB.astype(np.uint16) * 257), "channels last": lambda: tensor(RGB)[None].contiguous(
        memory_format=torch.channels_last)[0],
}  # fmt: skip


@pytest.mark.parametrize("form", ENCODED)
def test_every_form_of_encoded_image(form: str, path: Path) -> None:
    given = ENCODED[form](path)
    for _ in range(1 if form == "stream" else 2):  # a file is left as it was found
        photo = open_image(given)
        assert (photo.width, photo.height, photo.image.mode) == (24, 16, "RGB")
        assert np.array_equal(np.asarray(photo.image), RGB)
    if hasattr(given, "close"):
        given.close()


@pytest.mark.parametrize("form", ARRAYS)
def test_every_form_of_array(form: str) -> None:
    given = ARRAYS[form]()
    allowed = {"bfloat16": 1, "12 bits": 1, "RGBA of uint16": 1}.get(form, 0)
    for _ in range(2):
        got = np.asarray(open_image(given).image).astype(int)
        assert np.abs(got - RGB).max() <= allowed


@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 1), (1, 16, 24)])
def test_grey_arrays(shape: tuple[int, ...]) -> None:
    for values in (GREY.reshape(shape), torch.from_numpy(GREY.reshape(shape).copy()), GREY.reshape(shape) / 255):
        got = np.asarray(open_image(values).image)
        assert np.array_equal(got, np.repeat(GREY[..., None], 3, 2))
    mask = GREY > 127
    assert np.array_equal(np.asarray(open_image(mask.reshape(shape)).image)[..., 0], mask * np.uint8(255))


def test_transparency_of_arrays_is_white() -> None:
    clear = np.zeros((16, 24, 4), np.uint8)
    for values in (clear, clear.transpose(2, 0, 1), torch.from_numpy(clear), clear.astype(np.float32), clear[..., :2]):
        assert np.asarray(open_image(values).image).min() == 255


def test_an_array_that_changes_later_is_the_image_that_it_was() -> None:
    """A generator may fill one buffer again and again."""
    buffer = GREY.copy()
    taken = as_image(buffer)
    buffer[:] = 0
    assert np.array_equal(np.asarray(open_image(taken).image)[..., 0], GREY)  # type: ignore[arg-type]


class Async:
    async def read(self, size: int = -1) -> bytes:
        return PNG


class Broken:
    def read(self, size: int = -1) -> bytes:
        raise RuntimeError("connection lost\nwith details")


class Device:
    dtype, shape, ndim = np.dtype("float32"), (3, 16, 24), 3

    def __array__(self) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use .get()")


def closed_file() -> Any:
    file = io.BytesIO(PNG)
    file.close()
    return file


REFUSED: dict[str, tuple[Any, str]] = {
    "None": (None, "None is not an image: give a path, encoded bytes, an open binary file, an array or a PIL image"),
    "int": (5, "5 (int) is not an image"), "nan": (float("nan"), "nan (float) is not an image"),
    "list": ([PNG], "a list of 1 is not an image"), "dict": ({"path": "a.jpg"}, "a dict of 1 is not an image"),
    "object": (object(), "an object is not an image"),
    "numpy integer": (np.int64(3), "np.int64(3) (int64) is not an image"),
    "text file": (io.StringIO("x"), "is opened as text: open it in binary mode ('rb')"),
    "coroutine": (Async(), "is read asynchronously: give the bytes, as in await file.read()"),
    "closed file": (closed_file(), "a BytesIO cannot be read (I/O operation on closed file"),
    "broken file": (Broken(), "cannot be read (connection lost)"), "empty file": (io.BytesIO(), "the file is empty"),
    "empty bytes": (b"", "the file is empty"), "path as bytes": (b"/tmp/a.jpg", "not an image"),
    "one dimension": (
        np.zeros(9), "an array of shape (9,) and dtype float64 (ndarray) is not an image: give the shape (H, W)"),
    "batch": (np.zeros((2, 16, 24, 3)), "is a batch: give one image of it, such as images[0]"),
    "five channels": (
        np.zeros((16, 24, 5)), "an array of shape (16, 24, 5) and dtype float64 (ndarray) is not an image"),
    "either layout": (
        np.zeros((3, 3, 3), np.uint8), "(3, 3, 3) and dtype uint8 (ndarray) may have its channels first or last"),
    "tensor of either layout": (torch.zeros(3, 9, 4), "may have its channels first or last"),
    "no pixels": (np.zeros((0, 5, 3)), "has no pixels"),
    "objects": (np.array([[None, None]]), "dtype object (ndarray) is not of"),
    "complex": (np.zeros((16, 24), complex), "dtype complex128 (ndarray) is not of numbers"),
    "texts": (np.array([["a", "b"]]), "is not of numbers"),
    "0..255 as floats": (RGB.astype(float), "from 0 to 255: give "),
    "normalised": (
        torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(0)), "give floating-point numbers from 0 to 1"),
    "NaN": (np.full((16, 24), np.nan), "has NaN: give floating-point numbers from 0 to 1, or uint8"),
    "infinite": (np.full((16, 24), np.inf), "has values from inf to inf"),
    "negative": (np.full((16, 24), -1), "has values from -1 to -1: give integers from 0 to 65,535"),
    "too large": (np.full((16, 24), 65536), "has values from 65536 to 65536"),
    "sparse": (torch.zeros(16, 24).to_sparse(), "does not convert to an array ("),
    "another device": (Device(), "does not convert to an array (Implicit conversion"),
    "no file": ("nowhere.jpg", "nowhere.jpg: no such file"), "NUL": ("a\0b.jpg", "null"),
    "folder": ("/", "this is a folder"),
    "device": ("/dev/zero", "a device or a pipe, not a file"),
    "steering name": ("a\x1b[2J\u202e.jpg", "a\\x1b[2J\\u202e.jpg: no"),
    "base64 without data:": (base64.b64encode(RGB.tobytes()).decode(), "...: "),
    "data URL without comma": ("data:image/png;base64", "a data URL has a comma before its content"),
    "data URL not base64": ("data:image/png;base64,$$$$", "the content of the data URL is not base64"),
    "empty data URL": ("data:,", "the file is empty"),
    "file URL elsewhere": ("file://server/a.jpg", "on another machine (server)"),
    "bucket": (
        "s3://bucket/a.jpg", "images are read from paths and data:, file:, http: and https: addresses: give its bytes"),
    "URL": ("https://example.org/a.jpg", "URLs are fetched only with LDOT_ALLOW_URLS=true"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_everything_else_is_one_line_that_says_what_was_given(form: str) -> None:
    given, words = REFUSED[form]
    with pytest.raises(InputError) as caught:
        open_image(given)
    message = str(caught.value)
    assert words in message
    assert message.isprintable()
    assert len(message) < 350
    assert ": " in message


def test_the_size_of_a_file_is_limited(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    for given in (path, io.BytesIO(PNG), DATA_URL):
        with pytest.raises(InputError, match="bytes are more than the limit of 100 bytes"):
            open_image(given)


def test_urls_are_fetched_where_they_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fetcher:
        def fetch(self, url: str) -> bytes:
            return PNG if url == "https://host/a.jpg" else PNG[:50]

    monkeypatch.setenv("LDOT_ALLOW_URLS", "true")
    monkeypatch.setattr(urls, "_fetcher", Fetcher())
    assert np.array_equal(np.asarray(open_image("https://host/a.jpg").image), RGB)
    with pytest.raises(InputError, match=r"^https://host/b.jpg: the image is truncated$"):
        open_image("https://host/b.jpg")


def test_several_threads_use_one_file(path: Path) -> None:
    """What the entries hand on has been read once."""
    with path.open("rb") as file:
        (given,) = each_image([file])
        results: list[bytes] = []
        threads = [threading.Thread(target=lambda: results.append(open_image(given).image.tobytes())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [RGB.tobytes()] * 8


def several(path: Path) -> Iterator[tuple[str, Any]]:
    import pandas

    yield "list", [path, path]
    yield "tuple", (path, PNG)
    yield "generator", (one for one in (path, PNG))
    yield "array of paths", np.array([str(path)] * 2)
    yield "array of objects", np.array([path, path], object)
    yield "Series", pandas.Series([str(path)] * 2)
    yield "batch", np.stack([RGB, RGB])
    yield "batch of tensors", torch.stack([tensor(RGB)] * 2)
    yield "list of arrays", [RGB, tensor(RGB)]
    yield "dict's values", {"a": path, "b": PNG}.values()


def test_every_form_of_several_images(path: Path) -> None:
    for form, images in several(path):
        assert not is_one_image(images), form
        opened = [open_image(image) for image in each_image(images)]
        assert [photo.image.tobytes() for photo in opened] == [RGB.tobytes()] * 2, form
    assert list(each_image([])) == list(each_image(iter(()))) == list(each_image(np.zeros((0, 8, 8, 3)))) == []


@pytest.mark.parametrize("one", [
    "a.jpg", Path("a.jpg"), PNG, bytearray(PNG), memoryview(PNG), io.BytesIO(PNG), RGB, GREY, tensor(RGB), noise(),
    None, 5, {"a": PNG}, {PNG}, np.float64(1.5),
], ids=lambda one: type(one).__name__)  # fmt: skip
def test_a_single_image_where_a_list_is_expected(one: object) -> None:
    """Most of them can be iterated: over letters, lines, rows of pixels."""
    with pytest.raises(UsageError, match=r"^give a list of images, not ") as caught:
        each_image(one)
    assert "\n" not in str(caught.value)


def test_a_table_is_not_a_list_of_images() -> None:
    import pandas

    with pytest.raises(UsageError, match=r"give a list of images, not an array of shape \(1, 1\)|a pandas.DataFrame"):
        each_image(pandas.DataFrame({"path": ["a.jpg"]}))


def test_an_entry_is_named_by_its_number(path: Path) -> None:
    for images, message in (
        ([path, 5], "image 2: 5 (int) is not an image"), ([PNG, PNG[:60]], "image 2: the image is truncated"),
        ([path, str(path.parent / "gone.jpg")], f"{path.parent}/gone.jpg: no such file"),
    ):  # fmt: skip
        with pytest.raises(LdotError) as caught:
            [open_image(image) for image in each_image(images)]
        assert str(caught.value).startswith(message)
