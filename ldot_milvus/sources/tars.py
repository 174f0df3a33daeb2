"""List the photos in an uncompressed tar, each described by NAME.json beside NAME.jpg."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import IO, Any

from ldot_milvus.errors import InputError, UsageError, printable, reason
from ldot_milvus.images import SUFFIXES
from ldot_milvus.sources.base import Source, scheme, source_at
from ldot_milvus.sources.metadata import json_object, source_fields
from ldot_milvus.sources.objects import open_file

MAX_SIDECAR = 2**20
"""Largest JSON file, in bytes. A larger one is cut and therefore refused as invalid JSON."""


def tar_members(path: str, peek: bool) -> Iterator[tuple[str, Source]]:
    """List the photos of a tar in the order of the file, without hidden members.

    Args:
        path: path or address of the tar.
        peek: whether to stop at the first photo.

    Yields:
        Each photo's name in the tar, and its source. Links, sparse files, photos with an invalid JSON file and the
        damaged end of a tar are sources with a ``problem``.

    Raises:
        UsageError: the file cannot be opened as an uncompressed tar.
    """
    try:
        file = open_file(path)
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
    except (tarfile.TarError, OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "not an uncompressed tar"
        raise UsageError(f"{printable(path)}: {why}") from error
    photos: list[tarfile.TarInfo] = []
    sidecars: dict[str, bytes] = {}
    with file, tar:
        damaged = False
        try:
            for member in tar:
                stem, suffix = os.path.splitext(member.name)
                if member.isdir() or any(part.startswith(".") and part.strip(".") for part in member.name.split("/")):
                    continue
                if suffix.lower() in SUFFIXES:
                    photos.append(member)
                    if peek:
                        break
                elif suffix.lower() == ".json" and member.isreg():
                    sidecars[stem] = _bytes_at(file, member.offset_data, min(member.size, MAX_SIDECAR))
            else:
                # tarfile treats a damaged header as the end of the tar; an intact tar ends with a block of zeros.
                damaged = bool(_bytes_at(file, tar.offset, tarfile.BLOCKSIZE).strip(b"\0"))
        except (tarfile.TarError, OSError, ValueError):
            damaged = True
    for member in photos:
        place = {"member": member.name, "offset": member.offset_data, "size": member.size}
        if not member.isreg() or member.issparse():
            yield member.name, source_at(path, **place, problem="a link or a sparse file in a tar is not followed")
            continue
        try:
            yield member.name, source_at(path, **place, **_sidecar(sidecars, member.name))
        except ValueError as error:
            yield member.name, source_at(path, **place, problem=f"its .json file: {error}")
    if damaged:
        last = f" after {printable(photos[-1].name)}" if photos else ""
        yield path, source_at(path, problem=f"the tar is damaged or truncated{last}")


def find_member(path: str, name: str) -> Source:
    """Find one photo of a tar by its name.

    Raises:
        InputError: the tar does not exist, or does not contain the photo.
    """
    try:
        modified = 0 if scheme(path) else os.stat(path).st_mtime_ns
        offset, size = _members(path, modified)[name]
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        raise InputError(f"{printable(f'{path}/{name}')}: not found from {os.getcwd()}") from error
    return Source(path, member=name, offset=offset, size=size)


@lru_cache(maxsize=4)  # photos of one tar are usually looked up one after the other
def _members(path: str, modified: int) -> dict[str, tuple[int, int]]:
    """Return offset and size, in bytes, of each regular member by name; ``modified`` invalidates the cache."""
    with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar if member.isreg()}


def _bytes_at(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _sidecar(sidecars: Mapping[str, bytes], name: str) -> dict[str, Any]:
    text = sidecars.get(os.path.splitext(name)[0])
    return {} if text is None else source_fields(json_object(text), {})
