"""Read and list photos, tars and lists in object stores such as ``s3://bucket/photos``, through fsspec.

All errors of a store's client are raised as OSError, so that callers handle local and remote files alike.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from typing_extensions import override

from ldot_milvus.errors import UsageError, printable
from ldot_milvus.filesystems import open_filesystem
from ldot_milvus.images import files
from ldot_milvus.sources.base import Source, scheme
from ldot_milvus.sources.selection import Selection

SCHEMES = ("s3", "gs", "gcs", "az", "abfs")
"""Supported schemes. Their hosts come from the operator's settings, so that an address in a list cannot choose one."""

READ_AHEAD = 4 * 2**20
"""Bytes per request while a tar is listed."""


def is_object(path: str) -> bool:
    """Return whether ``path`` is an address in an object store.

    Raises:
        UsageError: the scheme is not supported.
    """
    name = scheme(path)
    if name is None:
        return False
    if name not in SCHEMES:
        supported = ", ".join(f"{other}://" for other in ("http", "https", *SCHEMES))
        raise UsageError(f"{printable(path)}: the scheme {name} is not supported: use {supported} or a local path")
    return True


def open_file(path: str) -> IO[bytes]:
    """Open a local file or an object for reading and seeking."""
    if not is_object(path):
        return open(path, "rb")
    return io.BufferedReader(_Object(path), READ_AHEAD)


def read_object(path: str, offset: int, size: int) -> bytes:
    """Read at most ``size`` bytes of an object, starting at ``offset``, in one request."""
    with _connected(path) as (fs, place):
        try:
            return bytes(fs.cat_file(place, start=offset, end=offset + size))
        except FileNotFoundError:
            raise
        except Exception:
            if fs.info(place)["size"] == 0:  # stores refuse every range of an empty object
                return b""
            raise


def is_folder(path: str) -> bool:
    """Return whether an address is a prefix of objects rather than an object.

    Raises:
        FileNotFoundError: it is neither.
    """
    with _connected(path) as (fs, place):
        return bool(fs.info(place)["type"] == "directory")


def object_photos(path: str, selection: Selection, *, refresh: bool = False) -> Iterator[tuple[str, Source]]:
    """List the photos below an address, sorted.

    Args:
        path: the address.
        selection: selects objects and prefixes by name, and counts the others.
        refresh: discard cached listings of this process.

    Yields:
        Each photo's path relative to the address, and its source.
    """
    with _connected(path) as (fs, place):
        place = place.rstrip("/")
        if refresh:
            fs.invalidate_cache(place)
        todo: list[dict[str, Any]] = [{"name": place, "type": "directory"}]
        while todo:
            entry = todo.pop()
            name = entry["name"].rstrip("/")
            key, address = name.removeprefix(f"{place}/"), f"{scheme(path)}://{name}"
            if name != place and not selection.enters(key, address):
                continue
            if entry["type"] == "directory":
                children = [child for child in fs.ls(name, detail=True) if child["name"].rstrip("/") != name]
                todo += sorted(children, key=lambda child: str(child["name"]), reverse=True)
            elif selection.takes(key, address):
                size = int(entry.get("size") or 0)
                problem = files.too_large(size) if size > files.MAX_BYTES else None
                yield key, Source(address, problem=problem)


def matches(pattern: str) -> list[str]:
    """Return the addresses that match a pattern, sorted; hidden ones only if the pattern contains ``/.``."""
    with _connected(pattern) as (fs, place):
        names = sorted(fs.glob(place))
    return [f"{scheme(pattern)}://{name}" for name in names if "/." in place or "/." not in name]


class _Object(io.RawIOBase):
    """A seekable file that reads an object by ranges."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._position = 0
        with _connected(path) as (fs, place):
            self._size = int(fs.info(place)["size"])

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._size - self._position)
        if size <= 0:
            return 0
        data = read_object(self._path, self._position, size)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


@contextmanager
def _connected(path: str) -> Iterator[tuple[Any, str]]:
    """Yield the fsspec file system of an address, and the path in it; raise all its errors as OSError."""
    try:
        yield open_filesystem(path)
    except ImportError as error:  # its message names the package: "Install s3fs to access S3"
        extra = " (pip install 'ldot-milvus[s3]')" if scheme(path) == "s3" else ""
        raise OSError(f"{error}{extra}") from error
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{str(error) or type(error).__name__}") from error
