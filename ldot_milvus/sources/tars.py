"""Photos in an uncompressed tar, with NAME.json beside NAME.jpg."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import IO, Any

from ldot_milvus.errors import InputError, UsageError, printable, reason
from ldot_milvus.images import SUFFIXES
from ldot_milvus.sources.base import Source, scheme, source_at
from ldot_milvus.sources.metadata import described, json_object
from ldot_milvus.sources.objects import open_file

MAX_SIDECAR = 2**20  # bytes: more is cut, and no JSON any more


def tar_members(path: str, peek: bool) -> Iterator[tuple[str, Source]]:
    """The photos of a tar with the name of each in it, in its order; ``peek``: the first is enough.

    Raises:
        UsageError: it cannot be opened as an uncompressed tar.
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
                # tarfile stops at a damaged header as if the tar ended there; a whole tar ends in zeros.
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
    """One photo of a tar.

    Raises:
        InputError: no such tar, or no such photo in it.
    """
    try:
        changed = 0 if scheme(path) else os.stat(path).st_mtime_ns
        offset, size = _places(path, changed)[name]
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        raise InputError(f"{printable(f'{path}/{name}')}: not found from here") from error
    return Source(path, member=name, offset=offset, size=size)


@lru_cache(maxsize=4)  # whoever asks for one photo of a tar asks for the next one too
def _places(path: str, changed: int) -> dict[str, tuple[int, int]]:
    with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar if member.isreg()}


def _bytes_at(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _sidecar(sidecars: Mapping[str, bytes], name: str) -> dict[str, Any]:
    text = sidecars.get(os.path.splitext(name)[0])
    return {} if text is None else described(json_object(text), {})
