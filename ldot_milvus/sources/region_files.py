"""List and read photos with precomputed region features: records of an LMDB, a TSV or npz files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ldot_milvus.errors import InputError, UsageError, printable, reason
from ldot_milvus.sources.base import Source, source_at

if TYPE_CHECKING:
    from ldot_milvus.regions import Regions
    from ldot_milvus.regions.files import LmdbRegions

MAX_HALF = 65504
"""The largest finite value of float16, the type in which region stores keep features."""


def is_lmdb(path: str) -> bool:
    """Return whether ``path`` is the folder of an LMDB."""
    return os.path.isfile(os.path.join(path, "data.mdb"))


def lmdb_records(path: str) -> Iterator[tuple[str, Source]]:
    """List the records of an LMDB of region features.

    Args:
        path: folder of the LMDB.

    Yields:
        Each record's name and source.

    Raises:
        UsageError: the LMDB cannot be read, or its keys are not names of photos.
    """
    try:
        names = _open_lmdb(os.path.abspath(path)).names
    except (UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"{printable(path)}: not an LMDB of region features: its keys are not photo names") from error
    for name in names:
        yield name, _record(path, name, member=name)


def tsv_records(path: str) -> Iterator[tuple[str, Source]]:
    """List the lines of a TSV of bottom-up attention. Only their positions are kept in memory.

    Args:
        path: path of the TSV.

    Yields:
        Each photo's name and source.

    Raises:
        UsageError: the file is not such a TSV.
    """
    for name, (offset, size) in _tsv_lines(path, _modified(path)).items():
        yield name, _record(path, name, member=name, offset=offset, size=size)


def npz_records(folder: str) -> Iterator[tuple[str, Source]]:
    """List the npz files of a folder, sorted, each with its name and source."""
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.npz"))):
        yield os.path.basename(path), npz_record(path)


def npz_record(path: str) -> Source:
    """Create the source of an npz file."""
    return _record(path, os.path.basename(path))


def is_lmdb_record(source: Source) -> bool:
    """Return whether the source is a record of an LMDB, which is read by its key and has no offset."""
    return source.kind == "regions" and source.member is not None and source.offset is None


def read_lmdb_record(source: Source) -> bytes:
    """Read the stored bytes of a record of an LMDB.

    Raises:
        InputError: the LMDB or the record does not exist.
    """
    assert source.member is not None
    try:
        return _open_lmdb(os.path.join(source.base, source.path)).raw(source.member)
    except UsageError as error:
        raise InputError(f"{source.name}: {error}") from error


def regions_of(source: Source, data: bytes) -> tuple[Regions, int, int]:
    """Parse a record of region features.

    Args:
        source: a source of the kind "regions".
        data: the bytes that :func:`~ldot_milvus.sources.read` returned for it.

    Returns:
        The regions, and the photo's width and height in pixels. Only a TSV contains the size. For the other formats
        it is "width" and "height" of the source's metadata, or 0.

    Raises:
        InputError: the record is not valid in its format, or features or boxes are not finite or exceed float16.
    """
    import numpy as np

    from ldot_milvus.regions.files import NpzRegions, parse_tsv_line

    if source.path.endswith(".tsv"):
        regions, width, height = parse_tsv_line(data, source.name)
    else:
        if is_lmdb_record(source):
            assert source.member is not None
            file = _open_lmdb(os.path.join(source.base, source.path))
            regions = file.parse(source.member, data)
        else:
            folder, name = os.path.split(source.path)
            regions = NpzRegions(folder).parse(name, data)
        width, height = (_side(source.metadata.get(name)) for name in ("width", "height"))
    if not (np.abs(regions.features) <= MAX_HALF).all() or not np.isfinite(regions.boxes).all():
        raise InputError(f"{source.name}: features or boxes are not finite or exceed the range of float16")
    return regions, width, height


def locate(stored: str) -> Source | None:
    """Find the record that a row's ``source`` field names; a relative path refers to the current folder.

    Returns:
        The record's source; None if the field names no LMDB or TSV, or a TSV without the record.

    Raises:
        UsageError: the TSV exists but cannot be read.
    """
    folder, name = os.path.split(stored)
    if is_lmdb(folder):
        return Source(folder, member=name, kind="regions")
    if folder.endswith(".tsv") and os.path.isfile(folder):
        line = _tsv_lines(folder, _modified(folder)).get(name)
        return line and Source(folder, member=name, offset=line[0], size=line[1], kind="regions")
    return None


def _record(path: str, name: str, **fields: Any) -> Source:
    """Create the source of a record, whose id is its name without ``.npz`` if it is at most 64 bytes long."""
    stem = name.removesuffix(".npz")
    valid = 0 < len(stem.encode("utf-8", "surrogateescape")) <= 64
    return source_at(path, kind="regions", id=stem if valid else None, **fields)


def _side(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _modified(path: str) -> int:
    """Return the file's modification time in nanoseconds."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError as error:
        raise UsageError(f"{printable(path)}: {reason(error)}") from error


@lru_cache(maxsize=4)  # lines are usually looked up one after the other, and a file may have a hundred gigabytes
def _tsv_lines(path: str, modified: int) -> dict[str, tuple[int, int]]:
    """Return offset and size, in bytes, of each line by photo name; ``modified`` invalidates the cache."""
    from ldot_milvus.regions.files import TSV_FIELDS, TsvRegions

    try:
        with open(path, "rb") as file:
            columns = file.readline().count(b"\t") + 1
        if columns != len(TSV_FIELDS):
            raise UsageError(
                f"{printable(path)}: not a TSV of region features: {columns} columns instead of {len(TSV_FIELDS)}"
            )
        return TsvRegions(path).places
    except OSError as error:
        raise UsageError(f"{printable(path)}: {reason(error)}") from error
    except InputError as error:
        raise UsageError(str(error)) from error


@lru_cache(maxsize=4)  # LMDB requires that a process opens an environment only once
def _open_lmdb(folder: str) -> LmdbRegions:
    from ldot_milvus.regions.files import LmdbRegions

    return LmdbRegions(folder)
