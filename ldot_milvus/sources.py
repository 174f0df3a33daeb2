"""What PATH... on a command line means: files, folders, globs, tars and lists become sources, one a photo.

Listing opens nothing but tars and lists; :func:`read` opens a photo, perhaps in another process on another day.
"""

from __future__ import annotations

import glob
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .descriptions import Metadata, described, json_object
from .errors import InputError, UsageError, printable, reason
from .images import SUFFIXES

MAX_BYTES = 256 * 2**20  # of one photo's file

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_COMPRESSED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """Where one photo is, and what its owner says about it; plain JSON values throughout.

    Attributes:
        path: as the caller gave it; bytes that are not UTF-8 are in it as surrogates, as Python does with paths.
        base: the folder that a relative ``path`` starts from, since a worker runs elsewhere.
        member, offset, size: a photo inside an uncompressed tar: its name there and the bytes that it takes.
        id: the caller's own id; None for the content's hash.
        problem: found while listing; :func:`read` raises it, so that it ends among the failures like any other.
    """

    path: str
    base: str = ""
    member: str | None = None
    offset: int | None = None
    size: int | None = None
    id: str | None = None
    caption: str = ""
    namespace: str = "default"
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def source(self) -> str:
        """The stored field: the path as given, ``shard.tar/member.jpg`` in a tar; stray bytes as ``\\xff``."""
        path = self.path if self.member is None else f"{self.path}/{self.member}"
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    @property
    def name(self) -> str:
        """The same for messages and logs: one line, printable."""
        return printable(self.source)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_dict` is the way back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Source:
        """What :meth:`to_dict` gave, back from JSON."""
        return cls(**values)


def read(source: Source) -> bytes:
    """The bytes of a photo.

    Raises:
        InputError: it is gone, not a file, unreadable or above 256 MiB, or listing it found a problem.
    """
    if source.problem is not None:
        raise InputError(f"{source.name}: {source.problem}")
    path = os.path.join(source.base, source.path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
            raise InputError(f"{source.name}: this is {kind}, not a file")
        size = status.st_size if source.size is None else source.size
        if size > MAX_BYTES:
            raise InputError(f"{source.name}: {size:,} bytes are more than the limit of {MAX_BYTES:,} bytes")
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
        InputError: no such file, or no such member of the tar.
    """
    archive, found, member = stored.partition(".tar/")
    if not found or os.path.exists(stored):
        return Source(stored)
    archive += ".tar"
    try:
        with tarfile.open(archive, "r:") as tar:
            info = tar.getmember(member)
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        raise InputError(f"{printable(stored)}: not found from here") from error
    return Source(archive, member=member, offset=info.offset_data, size=info.size)


def expand(paths: Sequence[str], *, metadata: Metadata | None = None) -> Iterator[Source]:
    """The photos that PATH... means, in order; folders and patterns sorted.

    A PATH is a file (whatever its suffix), a folder (recursive; image suffixes only, nothing hidden), a glob
    pattern, an uncompressed .tar of images with NAME.json beside them, or a .txt with one path a line, relative
    to the list. What is wrong with a single photo becomes its ``problem`` and the others go on.

    Args:
        metadata: from :func:`~ldot_milvus.descriptions.load_metadata`; a photo is looked up by its path in the
            folder, tar or list, by its path as given, then by its base name.

    Raises:
        UsageError: at once, before the first source: a PATH that is missing or unreadable, without any image, a
            compressed tar, a URL.
    """
    for path in paths:
        next(_named(path, peek=True), None)
    return _with_metadata(paths, metadata or {})


def _with_metadata(paths: Sequence[str], metadata: Metadata) -> Iterator[Source]:
    taken: dict[str, tuple[str, str | None]] = {}
    for path in paths:
        for key, source in _named(path):
            names = (os.path.normpath(key), os.path.normpath(source.path), os.path.basename(key))
            entry = next((metadata[name] for name in names if name in metadata), None)
            if entry is not None:
                merged = {**source.metadata, **entry.get("metadata", {})}
                source = replace(source, **{**entry, "metadata": merged})
            if source.id is not None:
                # One "file": "a.jpg" fits every a.jpg below the folder; a shared id would let only one survive.
                this = (os.path.abspath(os.path.join(source.base, source.path)), source.member)
                first = taken.setdefault(source.id, this)
                if first != this:
                    other = printable("/".join(part for part in first if part))
                    source = replace(source, problem=f"its id {source.id!r} is already the id of {other}")
            yield source


def _named(path: str, *, peek: bool = False) -> Iterator[tuple[str, Source]]:
    """A PATH of the command line: (name to look up in the metadata, source). ``peek``: the first is enough."""
    name = printable(path)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        if _URL.match(path):
            raise UsageError(f"{name}: URLs are not supported yet: download the files first") from None
        if not glob.has_magic(path):
            raise UsageError(f"{name}: no such file or folder") from None
    except OSError as error:
        raise UsageError(f"{name}: {reason(error)}") from error
    else:
        yield from _existing(path, peek)
        return
    matches = sorted(glob.glob(path, recursive=True))
    if "**" in path:  # matches the folders and what is in them: each file once is enough
        matches = [match for match in matches if not os.path.isdir(match)]
    if not matches:
        raise UsageError(f"{name}: no file fits this pattern")
    for match in matches:
        yield from _one_of_many(match, match, peek)


def _existing(path: str, peek: bool = False) -> Iterator[tuple[str, Source]]:
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isdir(path):
        found = _folder(path)
    elif _COMPRESSED_TAR.search(path):
        raise UsageError(f"{printable(path)}: a compressed tar: unpack it, or use an uncompressed .tar")
    elif suffix == ".tar":
        found = _tar(path, peek)
    elif suffix == ".txt":
        found = _list(path, peek)
    else:
        found = iter([(path, _source(path))])
    empty = True
    for item in found:
        empty = False
        yield item
    if empty:
        raise UsageError(f"{printable(path)}: no image in it (looked for {' '.join(SUFFIXES)})")


def _source(path: str, **fields: Any) -> Source:
    return Source(path, base="" if os.path.isabs(path) else os.getcwd(), **fields)


def _folder(root: str) -> Iterator[tuple[str, Source]]:
    prefix, inside = os.path.join(root, ""), os.path.join(os.path.realpath(root), "")
    try:
        todo = _entries(root)
    except OSError as error:
        raise UsageError(f"{printable(root)}: {reason(error)}") from error
    while todo:
        entry = todo.pop()
        key = entry.path.removeprefix(prefix)
        is_folder = _is_folder(entry)
        if not is_folder and os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
            continue
        if entry.is_symlink() and not os.path.join(os.path.realpath(entry.path), "").startswith(inside):
            yield key, _source(entry.path, problem="a link out of the folder is not followed: name its target itself")
        elif not is_folder:
            yield key, _source(entry.path)
        elif not entry.is_symlink():  # a linked folder is listed where it really is; following could go in circles
            try:
                todo += _entries(entry.path)
            except OSError as error:
                yield key, _source(entry.path, problem=f"the folder cannot be listed: {reason(error)}")


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden, last name first, since the caller takes from the end."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name, reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _tar(path: str, peek: bool) -> Iterator[tuple[str, Source]]:
    try:
        tar = tarfile.open(path, "r:")  # noqa: SIM115
    except (tarfile.TarError, OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "not an uncompressed tar"
        raise UsageError(f"{printable(path)}: {why}") from error
    photos: list[tarfile.TarInfo] = []
    sidecars: dict[str, tarfile.TarInfo] = {}
    with tar:
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
                elif suffix.lower() == ".json":
                    sidecars[stem] = member
            else:
                # tarfile stops at a damaged header as if the tar ended there; a whole tar ends in zeros.
                damaged = bool(_block_at(path, tar.offset).strip(b"\0"))
        except (tarfile.TarError, OSError, ValueError):
            damaged = True
        for member in photos:
            place = {"member": member.name, "offset": member.offset_data, "size": member.size}
            if not member.isreg() or member.issparse():
                yield member.name, _source(path, **place, problem="a link or a sparse file in a tar is not followed")
                continue
            try:
                yield member.name, _source(path, **place, **_sidecar(tar, sidecars, member.name))
            except ValueError as error:
                yield member.name, _source(path, **place, problem=f"its .json file: {error}")
    if damaged:
        last = f" after {printable(photos[-1].name)}" if photos else ""
        yield path, _source(path, problem=f"the tar is damaged or truncated{last}")


def _block_at(path: str, offset: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE)


def _sidecar(tar: tarfile.TarFile, sidecars: Mapping[str, tarfile.TarInfo], name: str) -> dict[str, Any]:
    member = sidecars.get(os.path.splitext(name)[0])
    file = tar.extractfile(member) if member is not None and member.isreg() else None
    if file is None:
        return {}
    try:
        return described(json_object(file.read(2**20)), {})  # more than a MiB is cut, and no JSON any more
    except (tarfile.TarError, OSError) as error:
        raise ValueError("cannot be read") from error


def _list(path: str, peek: bool) -> Iterator[tuple[str, Source]]:
    name = printable(path)
    try:
        with open(path, "rb") as file:
            text = file.read().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UsageError(f"{name}: {reason(error)}") from error
    if b"\0" in text:
        raise UsageError(f"{name}: not a list of paths in UTF-8, one a line")
    folder = os.path.dirname(path)
    numbered = enumerate(text.decode("utf-8", "surrogateescape").split("\n"), 1)
    lines = [(n, line) for n, raw in numbered if (line := raw.strip()) and not line.startswith("#")]
    for number, line in lines:
        if _URL.match(line):
            raise UsageError(f"{name}:{number}: URLs are not supported yet: download the files first")
    if lines and not any(os.path.lexists(os.path.join(folder, line)) for _, line in lines):
        raise UsageError(f"{name}: none of its {len(lines)} lines is the path of a file: is it a list of paths?")
    for _, line in lines:
        target = os.path.join(folder, line)
        if target.lower().endswith(".txt") and os.path.isfile(target):  # it could name itself
            yield line, _source(target, problem="a list inside a list is not read: name it itself")
        else:
            yield from _one_of_many(target, line, peek)


def _one_of_many(path: str, key: str, peek: bool) -> Iterator[tuple[str, Source]]:
    """One line of a list or match of a pattern: trouble with it is its own, and the others go on."""
    try:
        for inner, source in _existing(path, peek):
            yield (key if inner == path else inner), source
    except UsageError as error:
        yield key, _source(path, problem=str(error).removeprefix(f"{printable(path)}: "))
