"""List the photos in an uncompressed tar, each described by NAME.json and NAME.txt beside NAME.jpg."""

from __future__ import annotations

import os
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import IO, Any

from ldot_milvus.errors import InputError, UsageError, printable, reason
from ldot_milvus.sources.base import Source, scheme, source_at
from ldot_milvus.sources.metadata import json_object, source_fields
from ldot_milvus.sources.objects import open_file
from ldot_milvus.sources.selection import SIDECARS, Selection

MAX_SIDECAR = 2**20
"""Largest JSON or text file, in bytes. A larger one is cut and therefore refused as invalid JSON or too long."""

_PIECE = 2**20  # bytes that are read at a time between two tars

Sidecar = tuple[str, bytes]
"""Name and contents of a file that describes a photo."""


def tar_members(path: str, selection: Selection, *, peek: bool) -> Iterator[tuple[str, Source]]:
    """List the photos of a tar in the order of the file.

    A file of several tars, one after the other, is read to its end. A photo is described by the .json and .txt files of
    its name without the suffix, or else of its webdataset key: the name up to the first dot.

    Args:
        path: path or address of the tar.
        selection: selects members by name, and counts the others.
        peek: whether to stop at the first photo.

    Yields:
        Each photo's name in the tar, and its source. Links, sparse files, photos with an invalid description and the
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
    sidecars = _Sidecars()
    damaged = False
    with file:
        try:
            for member in _members(file, tar):
                if member.isdir() or not selection.enters_all(member.name, f"{path}/{member.name}"):
                    continue
                if _suffix(member.name) in (".json", ".txt") and member.isreg():
                    sidecars.add(member.name, _bytes_at(file, member.offset_data, min(member.size, MAX_SIDECAR)))
                elif selection.takes(member.name, f"{path}/{member.name}"):
                    photos.append(member)
                    if peek:
                        break
        except (tarfile.TarError, OSError, ValueError):
            damaged = True
    sidecars.match(member.name for member in photos)
    for name in sidecars.unmatched:
        selection.skipped.add(SIDECARS, f"{path}/{name}")
    for member in photos:
        place = {"member": member.name, "offset": member.offset_data, "size": member.size}
        if not member.isreg() or member.issparse():
            yield member.name, source_at(path, **place, problem="a link or a sparse file in a tar is not followed")
            continue
        try:
            yield member.name, source_at(path, **place, **_described(sidecars.of(member.name)))
        except ValueError as error:
            yield member.name, source_at(path, **place, problem=str(error))
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
        offset, size = _places(path, modified)[name]
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        raise InputError(f"{printable(f'{path}/{name}')}: not found from {os.getcwd()}") from error
    return Source(path, member=name, offset=offset, size=size)


@lru_cache(maxsize=4)  # photos of one tar are usually looked up one after the other
def _places(path: str, modified: int) -> dict[str, tuple[int, int]]:
    """Return offset and size, in bytes, of each regular member by name; ``modified`` invalidates the cache."""
    places: dict[str, tuple[int, int]] = {}
    with open_file(path) as file, suppress(tarfile.TarError):  # what comes before damage can be read
        for member in _members(file, tarfile.open(fileobj=file, mode="r:")):  # noqa: SIM115
            if member.isreg():
                places[member.name] = (member.offset_data, member.size)
    return places


def _members(file: IO[bytes], tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar, and of the tars that follow it in the file (``cat a.tar b.tar``).

    Args:
        file: the file.
        tar: the tar at its start.

    Yields:
        The members. Their offsets count from the start of the file.

    Raises:
        tarfile.TarError, OSError, ValueError: the file is damaged, or what follows a tar is none.
    """
    yield from tar
    while (start := _next_start(file, tar.offset)) is not None:
        file.seek(start)
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
        yield from tar


def _next_start(file: IO[bytes], end: int) -> int | None:
    """Return where the next tar begins, after the zeros that end one at ``end``; None at the end of the file."""
    block = _bytes_at(file, end, tarfile.BLOCKSIZE)
    if block.strip(b"\0"):  # tarfile treats a damaged header as the end of the tar
        raise tarfile.ReadError("a header is damaged")
    position = end + len(block)
    while piece := file.read(_PIECE):
        if content := piece.lstrip(b"\0"):
            found = position + len(piece) - len(content)
            return found - (found - end) % tarfile.BLOCKSIZE
        position += len(piece)
    return None


class _Sidecars:
    """The .json and .txt files of a tar, by the photos that they describe."""

    def __init__(self) -> None:
        self._files: list[Sidecar] = []
        self._by_photo: dict[str, list[Sidecar]] = defaultdict(list)
        self.unmatched: list[str] = []

    def add(self, name: str, content: bytes) -> None:
        self._files.append((name, content))

    def match(self, photos: Iterable[str]) -> None:
        """Give each file to the photos of its name without the suffix, or else to those of its key."""
        by_stem: dict[str, list[str]] = defaultdict(list)
        by_key: dict[str, list[str]] = defaultdict(list)
        for photo in dict.fromkeys(photos):
            by_stem[os.path.splitext(photo)[0]].append(photo)
            by_key[_key(photo)].append(photo)
        for name, content in self._files:
            owners = by_stem.get(os.path.splitext(name)[0]) or by_key.get(_key(name)) or []
            for photo in owners:
                self._by_photo[photo].append((name, content))
            if not owners:
                self.unmatched.append(name)

    def of(self, photo: str) -> list[Sidecar]:
        return self._by_photo.get(photo, [])


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _key(name: str) -> str:
    """Return the webdataset key of a member: its folder, and its name up to the first dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _described(sidecars: Iterable[Sidecar]) -> Mapping[str, Any]:
    """Return the fields of a source that its sidecars set; their captions are joined, without repeated ones.

    Raises:
        ValueError: a sidecar is invalid; the message names its suffix.
    """
    fields: dict[str, Any] = {}
    for name, content in sidecars:
        suffix = _suffix(name)
        try:
            new = source_fields(json_object(content) if suffix == ".json" else {"caption": _text(content)}, {})
            if fields.get("caption"):
                lines = fields["caption"].split("\n")
                added = [line for line in new.get("caption", "").split("\n") if line and line not in lines]
                new.update(source_fields({"caption": "\n".join([*lines, *added])}, {}), metadata=new["metadata"])
        except ValueError as error:
            raise ValueError(f"its {suffix} file: {error}") from error
        fields = {**fields, **new, "metadata": {**fields.get("metadata", {}), **new["metadata"]}}
    return fields


def _text(content: bytes) -> str:
    try:
        return content.removeprefix(b"\xef\xbb\xbf").decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error


def _bytes_at(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
