"""What PATH... means on a command line: files, folders, globs, tars, lists and region features become sources."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..descriptions import Metadata
from ..errors import UsageError, printable, reason
from ..images import SUFFIXES
from . import region_files
from .base import Source, local, scheme
from .folders import folder_photos
from .manifests import manifest_lines
from .tars import tar_members

_COMPRESSED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)


def expand(paths: Sequence[str], *, metadata: Metadata | None = None) -> Iterator[Source]:
    """The photos and texts that PATH... means, in order; folders and patterns sorted.

    A PATH is a file (whatever its suffix), a folder (recursive; image suffixes only, nothing hidden), a glob
    pattern, an uncompressed .tar of images with NAME.json beside them, a .txt with one path a line, relative to the
    list, a .jsonl with one photo or text a line, or region features: an LMDB, a .tsv, .npz files or a folder of them.
    ``docs/ingestion.md`` tells more. What is wrong with a single photo becomes its ``problem`` and the others go on.

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
                source = source.described_by(entry)
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
        if scheme(path) is not None:
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
    """What one path names that is there; a list's lines and a pattern's matches come here too."""
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isdir(path):
        found = _folder(path)
    elif _COMPRESSED_TAR.search(path):
        raise UsageError(f"{printable(path)}: a compressed tar: unpack it, or use an uncompressed .tar")
    elif suffix == ".tar":
        found = tar_members(path, peek)
    elif suffix == ".txt":
        found = _list(path, peek)
    elif suffix == ".jsonl":
        found = _manifest(path, peek)
    elif suffix == ".tsv":
        found = region_files.tsv_records(path)
    elif suffix == ".npz":
        found = iter([(path, region_files.npz_record(path))])
    else:
        found = iter([(path, local(path))])
    empty = True
    for item in found:
        empty = False
        yield item
    if empty:
        raise UsageError(f"{printable(path)}: no image in it (looked for {' '.join(SUFFIXES)})")


def _folder(path: str) -> Iterator[tuple[str, Source]]:
    if region_files.is_lmdb(path):
        yield from region_files.lmdb_records(path)
        return
    photos = folder_photos(path)
    first = next(photos, None)
    if first is None:
        yield from region_files.npz_records(path)
    else:
        yield first
        yield from photos


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
        if scheme(line) is not None:
            raise UsageError(f"{name}:{number}: URLs are not supported yet: download the files first")
    if lines and not any(os.path.lexists(os.path.join(folder, line)) for _, line in lines):
        raise UsageError(f"{name}: none of its {len(lines)} lines is the path of a file: is it a list of paths?")
    for _, line in lines:
        yield from _line(folder, line, peek)


def _manifest(path: str, peek: bool) -> Iterator[tuple[str, Source]]:
    folder = os.path.dirname(path)
    for number, target, fields in manifest_lines(path):
        if target is None:
            here = f"{path}:{number}"
            yield here, local(here, **fields)
            continue
        for key, source in _line(folder, target, peek):
            yield key, source.described_by(fields)


def _line(folder: str, line: str, peek: bool) -> Iterator[tuple[str, Source]]:
    """The path in a line of a list that lies in ``folder``."""
    path = os.path.join(folder, line)
    if path.lower().endswith((".txt", ".jsonl")) and os.path.isfile(path):  # it could name itself
        yield line, local(path, problem="a list inside a list is not read: name it itself")
    else:
        yield from _one_of_many(path, line, peek)


def _one_of_many(path: str, key: str, peek: bool) -> Iterator[tuple[str, Source]]:
    """One line of a list or match of a pattern: trouble with it is its own, and the others go on."""
    try:
        for inner, source in _existing(path, peek):
            yield (key if inner == path else inner), source
    except UsageError as error:
        yield key, local(path, problem=str(error).removeprefix(f"{printable(path)}: "))
