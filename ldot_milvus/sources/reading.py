"""Read the bytes of sources, and find the source that a row's ``source`` field names."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from ldot_milvus.errors import InputError, UsageError, printable, reason
from ldot_milvus.images import content_id, files
from ldot_milvus.sources import base, region_files
from ldot_milvus.sources.base import Source
from ldot_milvus.sources.objects import is_object, read_object
from ldot_milvus.sources.selection import Unfiltered
from ldot_milvus.sources.tars import find_member, tar_members
from ldot_milvus.urls import SCHEMES as URL_SCHEMES
from ldot_milvus.urls import fetch

THREADS = 16
"""Number of photos that are fetched concurrently, so that a slow server does not delay the others."""

_TAR = re.compile(r"(?<=\.tar)/", re.IGNORECASE)


def read(source: Source) -> bytes:
    """Read the bytes of a source.

    Args:
        source: from :func:`~ldot_milvus.sources.expand` or :func:`~ldot_milvus.sources.locate`.

    Returns:
        The encoded photo, the record of region features, or the text in UTF-8.

    Raises:
        InputError: the source has a ``problem``; the file is missing, unreadable, not a regular file or larger than
            256 MiB; or a URL is not allowed or cannot be fetched (see :mod:`~ldot_milvus.urls`).
    """
    if source.problem is not None:
        raise InputError(f"{source.name}: {source.problem}")
    if source.kind == "text":
        return source.caption.encode()
    if region_files.is_lmdb_record(source):
        return region_files.read_lmdb_record(source)
    if base.scheme(source.path) in URL_SCHEMES:
        return fetch(source.path)
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


def _read_local(source: Source) -> bytes:
    return files.read_file(os.path.join(source.base, source.path), source.offset or 0, source.size)


def _read_object(source: Source) -> bytes:
    if source.size is not None:
        return read_object(source.path, source.offset or 0, files.check_size(source.size))
    data = read_object(source.path, 0, files.MAX_BYTES + 1)  # saves the request for the size
    files.check_size(len(data))
    return data


def locate(stored: str) -> Source:
    """Find the photo that a row's ``source`` field names; a relative path refers to the current folder.

    Args:
        stored: the value of the field.

    Raises:
        InputError: the tar or the file of region features does not exist, or does not contain the photo.
    """
    for path in _spellings(stored):
        if os.path.exists(path):
            return _file(path)
    archive, *member = _TAR.split(stored, maxsplit=1)
    try:
        if member:
            return find_member(archive, member[0])
        return region_files.locate(stored) or Source(stored)
    except UsageError as error:
        raise InputError(f"{printable(stored)}: not found from {os.getcwd()}") from error


def located(stored: str) -> Source:
    """Find a photo as :func:`locate` does; a photo that is not found is the ``problem`` of its source."""
    try:
        return locate(stored)
    except InputError as error:
        return Source(stored, problem=str(error))


def holds(stored: str, content: str) -> bool | None:
    """Check whether the photo that a row's ``source`` field names has this content now.

    Args:
        stored: the value of the field. A tar may contain several members of the name, each of which counts.
        content: SHA-256 of the content in hex.

    Returns:
        False if nothing of that name exists, or if it has other content. None if this cannot be decided: the source is
        a URL, a file that cannot be read, in a damaged tar, or a relative path, whose folder is not known.
    """
    found = present(stored)
    undecided = found is None or (base.scheme(stored) is None and not os.path.isabs(stored))
    for source in found or ():
        try:
            if content_id(read(source)) == content:
                return True
        except InputError as error:
            # A local file was there a moment ago. An object is not looked for before it is read.
            missing = isinstance(error.__cause__, FileNotFoundError) and base.scheme(source.path) is not None
            undecided = undecided or not missing
    return None if undecided else False


def present(stored: str) -> list[Source] | None:
    """Find everything that a row's ``source`` field may name, without reading a photo.

    Args:
        stored: the value of the field; a relative path refers to the current folder.

    Returns:
        Sources; an object in an object store is one of them whether it exists or not. Empty if nothing of that name
        exists. None if this cannot be decided, see :func:`holds`.
    """
    if base.scheme(stored) in URL_SCHEMES:
        return None
    try:
        if is_object(stored):
            archive, *member = _TAR.split(stored, maxsplit=1)
            return _members(archive, stored, int(time.monotonic() // 10)) if member else [Source(stored)]
        found = [_present_local(path) for path in _spellings(stored)]
    except (OSError, ValueError, InputError, UsageError):
        return None
    if None in found:
        return None
    sources = [source for some in found for source in some or ()]
    return sources or ([] if os.path.isabs(stored) else None)


def _present_local(path: str) -> list[Source] | None:
    archive, *member = _TAR.split(path, maxsplit=1)
    if member and os.path.isfile(archive):  # first, since the name of a member may contain ".."
        status, archive = os.stat(archive), base.absolute(archive)
        return _members(archive, f"{archive}/{member[0]}", (status.st_mtime_ns, status.st_size, status.st_ino))
    place = path = base.absolute(path)
    while not _exists(place):
        place = os.path.dirname(place)
    if place == path:
        return [_file(path)]
    if os.path.islink(place):
        os.stat(place)  # raises if the target is missing, as that of a disk that is not mounted
    record = region_files.locate(path)
    if record is None and not os.path.isdir(place) and not place.endswith(".tsv"):
        return None  # not a container of ours
    return [] if record is None else [record]


def _exists(path: str) -> bool:
    """Return whether there is a file, folder or link; unlike os.path.lexists, raise OSError if that is not known."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _members(archive: str, stored: str, version: object) -> list[Source] | None:
    members = _listed(archive, version)
    return None if members is None else members.get(base.utf8(stored), [])


@lru_cache(maxsize=4)  # photos of one tar are usually looked up one after the other
def _listed(archive: str, version: object) -> dict[str, list[Source]] | None:
    """Return the photos of a tar by their sources, None if it is damaged; ``version`` invalidates the cache."""
    members: dict[str, list[Source]] = {}
    for _, source in tar_members(archive, Unfiltered(), peek=False):
        if source.member is None:
            return None
        members.setdefault(source.source, []).append(source)
    return members


def _file(path: str) -> Source:
    return Source(path, kind="regions" if path.endswith(".npz") else "image")


def _spellings(stored: str) -> list[str]:
    """Return the paths that a ``source`` field may stand for: as it is, and with ``\\xff`` as the byte."""
    if "\\x" not in stored:
        return [stored]
    raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda match: bytes.fromhex(match[1].decode()), stored.encode())
    return list(dict.fromkeys([stored, raw.decode("utf-8", "surrogateescape")]))
