"""Photos whose region features are ready: records of an LMDB, a TSV or npz files, each a source."""

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
"""The largest value that half precision holds, in which region stores keep features."""


def is_lmdb(path: str) -> bool:
    """Whether this is the folder of an LMDB."""
    return os.path.isfile(os.path.join(path, "data.mdb"))


def lmdb_records(path: str) -> Iterator[tuple[str, Source]]:
    """The records of an LMDB, by name.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        names = _open_lmdb(os.path.abspath(path)).names
    except (UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"{printable(path)}: its keys are not names of photos: no LMDB of region features") from error
    for name in names:
        yield name, _record(path, name, member=name)


def tsv_records(path: str) -> Iterator[tuple[str, Source]]:
    """The lines of a TSV of bottom-up attention, by the photo's name; only where they are is kept.

    Raises:
        UsageError: it is not such a file.
    """
    for name, (offset, size) in _tsv_places(path, _changed(path)).items():
        yield name, _record(path, name, member=name, offset=offset, size=size)


def npz_records(folder: str) -> Iterator[tuple[str, Source]]:
    """The npz files of a folder, sorted."""
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.npz"))):
        yield os.path.basename(path), npz_record(path)


def npz_record(path: str) -> Source:
    """One npz file."""
    return _record(path, os.path.basename(path))


def is_keyed(source: Source) -> bool:
    """Whether the source is a record that only its LMDB can find."""
    return source.kind == "regions" and source.member is not None and source.offset is None


def read_keyed(source: Source) -> bytes:
    """The record of an LMDB, as it is stored.

    Raises:
        InputError: it is not there, or the LMDB is not.
    """
    assert source.member is not None
    try:
        return _open_lmdb(os.path.join(source.base, source.path)).raw(source.member)
    except UsageError as error:
        raise InputError(f"{source.name}: {error}") from error


def regions_of(source: Source, data: bytes) -> tuple[Regions, int, int]:
    """The regions in what ``read`` gave, and the photo's width and height in pixels.

    Of the formats only the TSV knows the size; elsewhere it is the metadata's "width" and "height", or 0.

    Raises:
        InputError: the record is not what its format promises.
    """
    import numpy as np

    from ldot_milvus.regions.files import NpzRegions, parse_tsv_line

    if source.path.endswith(".tsv"):
        regions, width, height = parse_tsv_line(data, source.name)
    else:
        if is_keyed(source):
            assert source.member is not None
            file = _open_lmdb(os.path.join(source.base, source.path))
            regions = file.parse(source.member, data)
        else:
            folder, name = os.path.split(source.path)
            regions = NpzRegions(folder).parse(name, data)
        width, height = (_side(source.metadata.get(name)) for name in ("width", "height"))
    if not (np.abs(regions.features) <= MAX_HALF).all() or not np.isfinite(regions.boxes).all():
        raise InputError(f"{source.name}: its features or boxes are not finite, or too large for half precision")
    return regions, width, height


def locate(stored: str) -> Source | None:
    """The record that a row's ``source`` names, as seen from the current folder; None where it is no record.

    Raises:
        UsageError, InputError: the file is there and cannot be read.
    """
    folder, name = os.path.split(stored)
    if is_lmdb(folder):
        return Source(folder, member=name, kind="regions")
    if folder.endswith(".tsv") and os.path.isfile(folder):
        place = _tsv_places(folder, _changed(folder)).get(name)
        return place and Source(folder, member=name, offset=place[0], size=place[1], kind="regions")
    return None


def _record(path: str, name: str, **place: Any) -> Source:
    stem = name.removesuffix(".npz")
    fits = 0 < len(stem.encode("utf-8", "surrogateescape")) <= 64
    return source_at(path, kind="regions", id=stem if fits else None, **place)


def _side(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _changed(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError as error:
        raise UsageError(f"{printable(path)}: {reason(error)}") from error


@lru_cache(maxsize=4)  # whoever asks for one line asks for the next one too, and a file may have a hundred gigabytes
def _tsv_places(path: str, changed: int) -> dict[str, tuple[int, int]]:
    from ldot_milvus.regions.files import TSV_FIELDS, TsvRegions

    try:
        with open(path, "rb") as file:
            columns = file.readline().count(b"\t") + 1
        if columns != len(TSV_FIELDS):
            raise UsageError(f"{printable(path)}: {columns} columns: no TSV of region features ({len(TSV_FIELDS)})")
        return TsvRegions(path).places
    except OSError as error:
        raise UsageError(f"{printable(path)}: {reason(error)}") from error
    except InputError as error:
        raise UsageError(str(error)) from error


# Opened once a process, which also is what LMDB asks for.
@lru_cache(maxsize=4)
def _open_lmdb(folder: str) -> LmdbRegions:
    from ldot_milvus.regions.files import LmdbRegions

    return LmdbRegions(folder)
