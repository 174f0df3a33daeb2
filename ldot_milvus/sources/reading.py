"""A source's bytes, and the way back from a row's ``source`` field to its source."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from ldot_milvus.errors import InputError, UsageError, printable, reason
from ldot_milvus.settings import Settings
from ldot_milvus.sources import base, region_files
from ldot_milvus.sources.base import Source
from ldot_milvus.sources.objects import is_object, read_object
from ldot_milvus.sources.tars import find_member
from ldot_milvus.sources.urls import SCHEMES as URL_SCHEMES
from ldot_milvus.sources.urls import Fetcher

THREADS = 16
"""Photos that are fetched over a network side by side: one slow server does not hold up the others."""

_fetcher = Fetcher()


def read(source: Source) -> bytes:
    """The bytes of a photo as they are stored: encoded, or a record of region features; of a text, its UTF-8.

    Raises:
        InputError: it is gone, not a file, unreadable or above 256 MiB, or listing it found a problem; a URL where
            URLs are not allowed, or that could not be fetched (see :mod:`~ldot_milvus.sources.urls`).
    """
    if source.problem is not None:
        raise InputError(f"{source.name}: {source.problem}")
    if source.kind == "text":
        return source.caption.encode()
    if region_files.is_keyed(source):
        return region_files.read_keyed(source)
    if base.scheme(source.path) in URL_SCHEMES:
        if not _urls_allowed(os.environ.get("LDOT_ALLOW_URLS")):  # here, where it is fetched, not where it was listed
            raise InputError(f"{source.name}: URLs are fetched only where LDOT_ALLOW_URLS=true")
        return _fetcher.fetch(source.path)
    try:
        data = _read_object(source) if is_object(source.path) else _read_local(source)
    except UsageError as error:
        raise InputError(str(error)) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise InputError(f"{source.name}: {reason(error)}") from error
    if source.size is not None and len(data) < source.size:
        raise InputError(f"{source.name}: the file ends before the photo does")
    return data


def read_all(sources: Sequence[Source]) -> Iterator[bytes | InputError]:
    """What :func:`read` gives or raises for each, in order; those behind a network side by side."""
    if sum(base.scheme(source.path) is not None for source in sources) < 2:
        yield from map(_read_or_error, sources)
        return
    with ThreadPoolExecutor(min(THREADS, len(sources))) as threads:
        yield from threads.map(_read_or_error, sources)


def _read_or_error(source: Source) -> bytes | InputError:
    try:
        return read(source)
    except InputError as error:
        return error


@lru_cache(maxsize=2)
def _urls_allowed(_: str | None) -> bool:
    """The setting; reading all settings anew takes milliseconds, too long for each photo."""
    return Settings().allow_urls


def _read_local(source: Source) -> bytes:
    path = os.path.join(source.base, source.path)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise OSError(f"this is {'a folder' if stat.S_ISDIR(status.st_mode) else 'a device or a pipe'}, not a file")
    size = _checked(status.st_size if source.size is None else source.size)
    with open(path, "rb") as file:
        file.seek(source.offset or 0)
        return file.read(size)


def _read_object(source: Source) -> bytes:
    if source.size is not None:
        return read_object(source.path, source.offset or 0, _checked(source.size))
    data = read_object(source.path, 0, base.MAX_BYTES + 1)  # its size is known only when it comes
    _checked(len(data))
    return data


def _checked(size: int) -> int:
    if size > base.MAX_BYTES:
        raise OSError(base.too_large(size))
    return size


def locate(stored: str) -> Source:
    """The photo that a row's ``source`` field names, as seen from the current folder.

    Raises:
        InputError: no such file, or no such member of the tar or record of the file of region features.
    """
    if os.path.exists(stored):
        return Source(stored, kind="regions" if stored.endswith(".npz") else "image")
    archive, found, member = stored.partition(".tar/")
    try:
        if found:
            return find_member(f"{archive}.tar", member)
        return region_files.locate(stored) or Source(stored)
    except UsageError as error:
        raise InputError(f"{printable(stored)}: not found from here") from error
