"""Photos, tars and lists in object stores, through fsspec: ``s3://bucket/photos``.

Everything here raises OSError for whatever a store's client raises, so that callers treat both sorts of files alike.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from ldot_milvus.errors import UsageError, printable
from ldot_milvus.images import SUFFIXES
from ldot_milvus.sources import base
from ldot_milvus.sources.base import Source, scheme, too_large

SCHEMES = ("s3", "gs", "gcs", "az", "abfs")
"""Only stores whose host the operator sets: an address in a list must not choose whom this machine talks to."""

READ_AHEAD = 4 * 2**20  # bytes a request while a tar is listed


def is_object(path: str) -> bool:
    """Whether this is an address in an object store.

    Raises:
        UsageError: it has a scheme, of a kind that is not read.
    """
    found = scheme(path)
    if found is None:
        return False
    if found not in SCHEMES:
        known = ", ".join(f"{name}://" for name in ("http", "https", *SCHEMES))
        raise UsageError(f"{printable(path)}: addresses of {found}:// are not read ({known} are)")
    return True


def open_file(path: str) -> IO[bytes]:
    """A file of this machine or of an object store, for reading and seeking."""
    if not is_object(path):
        return open(path, "rb")
    return io.BufferedReader(_Object(path), READ_AHEAD)


def read_object(path: str, offset: int, size: int) -> bytes:
    """At most ``size`` bytes from ``offset`` on, in one request."""
    with _connected(path) as (fs, place):
        try:
            return bytes(fs.cat_file(place, start=offset, end=offset + size))
        except FileNotFoundError:
            raise
        except Exception:
            if fs.info(place)["size"] == 0:  # no range of it can be had
                return b""
            raise


def is_folder(path: str) -> bool:
    """Whether something lies below this address; it or the address itself is there.

    Raises:
        FileNotFoundError: neither is.
    """
    with _connected(path) as (fs, place):
        return bool(fs.info(place)["type"] == "directory")


def object_photos(path: str, *, anew: bool = False) -> Iterator[tuple[str, Source]]:
    """The photos below an address with their paths below it, sorted; image suffixes only, nothing hidden.

    Args:
        anew: ask the store even for what an earlier listing in this process knows.
    """
    with _connected(path) as (fs, place):
        place = place.rstrip("/")
        if anew:
            fs.invalidate_cache(place)
        todo: list[dict[str, Any]] = [{"name": place, "type": "directory"}]
        while todo:
            entry = todo.pop()
            name = entry["name"].rstrip("/")
            key = name.removeprefix(f"{place}/")
            if entry["type"] == "directory":
                inside = [one for one in fs.ls(name, detail=True) if one["name"].rstrip("/") != name]
                shown = [one for one in inside if not one["name"].rstrip("/").rpartition("/")[2].startswith(".")]
                todo += sorted(shown, key=lambda one: str(one["name"]), reverse=True)
            elif os.path.splitext(key)[1].lower() in SUFFIXES:
                size = int(entry.get("size") or 0)
                problem = too_large(size) if size > base.MAX_BYTES else None
                yield key, Source(f"{scheme(path)}://{name}", problem=problem)


def matches(pattern: str) -> list[str]:
    """The addresses that fit a pattern, sorted; hidden ones only where the pattern asks for them."""
    with _connected(pattern) as (fs, place):
        found = sorted(fs.glob(place))
    return [f"{scheme(pattern)}://{name}" for name in found if "/." in place or "/." not in name]


class _Object(io.RawIOBase):
    """An object as a file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._position = 0
        with _connected(path) as (fs, place):
            self._size = int(fs.info(place)["size"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        data = read_object(self._path, self._position, wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


@contextmanager
def _connected(path: str) -> Iterator[tuple[Any, str]]:
    """The file system behind an address, and the path in it."""
    import fsspec

    try:
        fs, place = fsspec.core.url_to_fs(path)
        yield fs, str(place)
    except ImportError as error:  # fsspec names the package: "Install s3fs to access S3"
        extra = " (pip install 'ldot-milvus[s3]')" if scheme(path) == "s3" else ""
        raise OSError(f"{error}{extra}") from error
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{str(error) or type(error).__name__}") from error
