"""What an image may be in the Python API: everything that people hold in their hands, and one line for the rest."""

from __future__ import annotations

import base64
import binascii
import inspect
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, Union
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from ldot_milvus.arguments import described, listed, shown
from ldot_milvus.errors import InputError, UsageError, reason
from ldot_milvus.images import files
from ldot_milvus.images.arrays import SupportsArray, image_of
from ldot_milvus.images.decoding import Photo, decode, from_pil

if TYPE_CHECKING:
    from PIL.Image import Image


class SupportsRead(Protocol):
    """A file opened in binary mode."""

    def read(self, size: int = ..., /) -> bytes:
        """Read at most ``size`` bytes."""
        ...


ImageSource = Union[
    str, "os.PathLike[str]", "os.PathLike[bytes]", bytes, bytearray, memoryview, SupportsRead, SupportsArray, "Image"
]
"""A path or an address (``data:``, ``file:``, and ``http(s):`` if URLs are allowed), encoded bytes, an open binary
file, an array or a tensor, or a PIL image; ``docs/search.md`` has the table."""

TAKEN = "give a path, encoded bytes, an open binary file, an array or a PIL image"

_SCHEME = re.compile(r"(?:(data):|([a-z][a-z0-9+.-]*)://)", re.IGNORECASE)
_LONGEST = 200


class _Encoded(bytes):
    """Encoded bytes that know their name, for messages. They are ordinary bytes for everyone else."""

    name: str = "image"


def as_image(image: object, name: str = "image") -> str | bytes | Image:
    """Return an image in one of three forms, which may be used several times and by several threads.

    Args:
        image: what the caller gave as an :data:`ImageSource`.
        name: of an image that has no name of its own, for messages.

    Returns:
        A path, encoded bytes, or a PIL image. Files are read from their beginning and left at their position.

    Raises:
        InputError: the image is none of these, or cannot be read.
    """
    if isinstance(image, _Encoded):
        return image
    if isinstance(image, str):
        return _of_text(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _named(bytes(image), name)
    if _is_pil(image):
        return image  # type: ignore[return-value]
    if isinstance(image, os.PathLike):
        return os.fsdecode(os.fspath(image))
    if callable(getattr(image, "read", None)):
        return _of_file(image, name)
    if hasattr(image, "__array__") and getattr(image, "ndim", 1) != 0:
        return image_of(image, name)
    raise InputError(f"{name}: {described(image)} is not an image: {TAKEN}")


def each_image(images: Any, *, also: tuple[type, ...] = ()) -> Iterator[Any]:
    """Iterate over images in the forms of :func:`as_image`; each is converted when it is its turn.

    Args:
        images: a list, a tuple, a generator or another iterable in a definite order. An array or tensor of four
            dimensions is a batch of images.
        also: types that are passed on as they are.

    Raises:
        UsageError: a single image is given instead of a list.
        InputError: an entry is not an image, or cannot be read; the message has its number.
    """
    alone = is_one_image(images) or isinstance(images, also)
    if alone:
        raise UsageError(f"give a list of images, not a single one ({described(images)}): put it in a list")
    values = listed(images, "images")

    def each() -> Iterator[Any]:
        for number, image in enumerate(values, start=1):
            yield image if isinstance(image, also) else as_image(image, f"image {number}")

    return each()


def is_one_image(value: object) -> bool:
    """Return whether a value is one image rather than several: an array of four dimensions is a batch."""
    if isinstance(value, (str, bytes, bytearray, memoryview, os.PathLike)) or callable(getattr(value, "read", None)):
        return True
    if _is_pil(value):
        return True
    dtype = str(getattr(value, "dtype", "object")).removeprefix("torch.")
    numbers = hasattr(value, "__array__") and dtype.startswith(("int", "uint", "float", "bfloat", "bool"))
    return numbers and getattr(value, "ndim", 0) in (2, 3)


def open_image(image: ImageSource, *, draft_to: int | None = None) -> Photo:
    """Open a photo in any of the forms of :data:`ImageSource`.

    Args:
        image: the photo.
        draft_to: see :func:`~ldot_milvus.images.decode`; PIL images and arrays are always used at full size.

    Raises:
        InputError: the image is in none of these forms, cannot be read, or :func:`~ldot_milvus.images.decode` refuses
            its content.
    """
    given = as_image(image)
    if isinstance(given, bytes):
        return decode(given, name=getattr(given, "name", "image"), draft_to=draft_to)
    if isinstance(given, str):
        name = shown(given, _LONGEST)
        try:
            data = files.read_file(given)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise InputError(f"{name}: {reason(error)}") from error
        return decode(data, name=name, draft_to=draft_to)
    return from_pil(given, name=shown(str(getattr(given, "filename", "") or "image"), _LONGEST))


def _named(data: bytes, name: str) -> bytes:
    encoded = _Encoded(data)
    encoded.name = name
    return encoded


def _is_pil(image: object) -> bool:
    import sys

    pillow = sys.modules.get("PIL.Image")  # who has such an image has loaded Pillow
    return pillow is not None and isinstance(image, pillow.Image)


def _of_text(text: str) -> str | bytes:
    """Return the path that a text names, or the bytes at an address."""
    match = _SCHEME.match(text)
    if match is None:
        return text
    scheme, name = (match[1] or match[2]).lower(), shown(text, _LONGEST)
    if scheme == "data":
        kind, _, _ = text[len("data:") :].partition(",")
        return _named(of_data_url(text, name), f"data:{shown(kind)},...")
    if scheme == "file":
        return _of_file_url(text, name)
    if scheme in ("http", "https"):
        from ldot_milvus.urls import fetch

        return _named(fetch(text), name)
    raise InputError(f"{name}: images are read from paths and data:, file:, http: and https: addresses: give its bytes")


def of_data_url(url: str, name: str) -> bytes:
    """Decode the content of a data URL, in base64 or percent-encoded.

    Args:
        url: the URL; whitespace, missing padding and the letters "-" and "_" are accepted in base64.
        name: of the photo, for messages.

    Raises:
        InputError: the URL is malformed, not base64 where it says so, or larger than a photo may be.
    """
    kind, comma, content = url[len("data:") :].partition(",")
    if not comma:
        raise InputError(f"{shown(name)}: a data URL has a comma before its content: data:image/png;base64,...")
    data = unquote_to_bytes(content)
    files_limit = files.MAX_BYTES * 4 // 3 + 4
    if len(data) > files_limit:
        raise InputError(f"{shown(name)}: {files.too_large(len(data) * 3 // 4)}")
    if kind.lower().rstrip().endswith(";base64"):
        try:
            # Some programs leave the padding out, or use the letters for URLs.
            data = data.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n")
            data = base64.b64decode(data.rstrip(b"=") + b"=" * (-len(data.rstrip(b"=")) % 4), validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"{shown(name)}: the content of the data URL is not base64") from error
    return data


def _of_file_url(url: str, name: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"{name}: not a file URL ({error})") from error
    if parts.netloc.lower() not in ("", "localhost"):
        raise InputError(f"{name}: the file is on another machine ({shown(parts.netloc)}): give a path of this one")
    return url2pathname(parts.path)


def _of_file(file: Any, name: str) -> bytes:
    own = getattr(file, "name", None)
    name = shown(own, _LONGEST) if isinstance(own, str) and own else name
    try:
        position = file.tell() if callable(getattr(file, "seek", None)) and _seekable(file) else None
        if position is not None:
            file.seek(0)
        data = file.read(files.MAX_BYTES + 1)
        if position is not None:
            file.seek(position)
    except Exception as error:  # closed files raise ValueError, clients of servers anything
        what = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{name}: {described(file)} cannot be read ({what})") from error
    if inspect.iscoroutine(data):
        data.close()
        raise InputError(f"{name}: {described(file)} is read asynchronously: give the bytes, as in await file.read()")
    if isinstance(data, str):
        raise InputError(f"{name}: {described(file)} is opened as text: open it in binary mode ('rb')")
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InputError(f"{name}: {described(file)} gives {described(data)} instead of bytes: {TAKEN}")
    if len(data) > files.MAX_BYTES:
        raise InputError(f"{name}: {files.too_large(len(data))}")
    return _named(bytes(data), name)


def _seekable(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if callable(seekable) else True
