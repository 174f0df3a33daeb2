"""Read the bytes of sources, and find the source that a row's ``source`` field names."""

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
"""Number of photos that are fetched concurrently, so that a slow server does not delay the others."""

_fetcher = Fetcher()


def read(source: Source) -> bytes:
    """Read the bytes of a source.

    Args:
        source: from :func:`~ldot_milvus.sources.expand` or :func:`~ldot_milvus.sources.locate`.

    Returns:
        The encoded photo, the record of region features, or the text in UTF-8.

    Raises:
        InputError: the source has a ``problem``; the file is missing, unreadable, not a regular file or larger than
            256 MiB; or a URL is not allowed or cannot be fetched (see :mod:`~ldot_milvus.sources.urls`).
    """
    if source.problem is not None:
        raise InputError(f"{source.name}: {source.problem}")
    if source.kind == "text":
        return source.caption.encode()
    if region_files.is_lmdb_record(source):
        return region_files.read_lmdb_record(source)
    if base.scheme(source.path) in URL_SCHEMES:
        if not _urls_allowed(os.environ.get("LDOT_ALLOW_URLS")):  # the setting of this process, not of the listing one
            raise InputError(f"{source.name}: URLs are fetched only with LDOT_ALLOW_URLS=true: set it for this process")
        return _fetcher.fetch(source.path)
    try:
        data = _read_object(source) if is_object(source.path) else _read_local(source)
    except UsageError as error:
        raise InputError(str(error)) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{source.name}: {reason(error)}") from error
    if source.size is not None and len(data) < source.size:
        raise InputError(f"{source.name}: the file ends before the photo is complete")
    return data


def read_all(sources: Sequence[Source]) -> Iterator[bytes | InputError]:
    """Read many sources, those on a network concurrently.

    Yields:
        For each source, in order, the result of :func:`read` or the error that it raised.
    """
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
    """Return the setting, cached by the variable's value: reading all settings takes milliseconds."""
    return Settings().allow_urls


def _read_local(source: Source) -> bytes:
    path = os.path.join(source.base, source.path)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
        raise OSError(f"this is {'a folder' if stat.S_ISDIR(status.st_mode) else 'a device or a pipe'}, not a file")
    size = _check_size(status.st_size if source.size is None else source.size)
    with open(path, "rb") as file:
        file.seek(source.offset or 0)
        return file.read(size)


def _read_object(source: Source) -> bytes:
    if source.size is not None:
        return read_object(source.path, source.offset or 0, _check_size(source.size))
    data = read_object(source.path, 0, base.MAX_BYTES + 1)  # saves the request for the size
    _check_size(len(data))
    return data


def _check_size(size: int) -> int:
    """Return ``size``; raise OSError if it exceeds the limit."""
    if size > base.MAX_BYTES:
        raise OSError(base.too_large(size))
    return size


def locate(stored: str) -> Source:
    """Find the photo that a row's ``source`` field names; a relative path refers to the current folder.

    Args:
        stored: the value of the field.

    Raises:
        InputError: the tar or the file of region features does not exist, or does not contain the photo.
    """
    if os.path.exists(stored):
        return Source(stored, kind="regions" if stored.endswith(".npz") else "image")
    archive, separator, member = stored.partition(".tar/")
    try:
        if separator:
            return find_member(f"{archive}.tar", member)
        return region_files.locate(stored) or Source(stored)
    except UsageError as error:
        raise InputError(f"{printable(stored)}: not found from {os.getcwd()}") from error
