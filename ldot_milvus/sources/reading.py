"""A source's bytes, and the way back from a row's ``source`` field to its source."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from ..errors import InputError, UsageError, printable, reason
from . import base, region_files
from .base import Source
from .tars import find_member

THREADS = 16
"""Photos that are fetched over a network side by side: one slow server does not hold up the others."""


def read(source: Source) -> bytes:
    """The bytes of a photo as they are stored: encoded, or a record of region features; of a text, its UTF-8.

    Raises:
        InputError: it is gone, not a file, unreadable or above 256 MiB, or listing it found a problem.
    """
    if source.problem is not None:
        raise InputError(f"{source.name}: {source.problem}")
    if source.kind == "text":
        return source.caption.encode()
    if region_files.is_keyed(source):
        return region_files.read_keyed(source)
    return _read_local(source)


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


def _read_local(source: Source) -> bytes:
    path = os.path.join(source.base, source.path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
            raise InputError(f"{source.name}: this is {kind}, not a file")
        size = status.st_size if source.size is None else source.size
        if size > base.MAX_BYTES:
            raise InputError(f"{source.name}: {size:,} bytes are more than the limit of {base.MAX_BYTES:,} bytes")
        with open(path, "rb") as file:
            file.seek(source.offset or 0)
            data = file.read(size)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise InputError(f"{source.name}: {reason(error)}") from error
    if len(data) < size:
        raise InputError(f"{source.name}: the file ends before the photo does")
    return data


def locate(stored: str) -> Source:
    """The photo that a row's ``source`` field names, as seen from the current folder.

    Raises:
        InputError: no such file, or no such member of the tar or record of the file of region features.
    """
    if os.path.exists(stored):
        return Source(stored, kind="regions" if stored.endswith(".npz") else "image")
    archive, found, member = stored.partition(".tar/")
    if found:
        return find_member(f"{archive}.tar", member)
    try:
        return region_files.locate(stored) or Source(stored)
    except UsageError as error:
        raise InputError(f"{printable(stored)}: not found from here") from error
