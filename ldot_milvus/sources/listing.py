"""What PATH... means on a command line: files, folders, globs, tars, lists and region features become sources."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ldot_milvus.errors import UsageError, printable, reason
from ldot_milvus.images import SUFFIXES
from ldot_milvus.settings import Settings
from ldot_milvus.sources import objects, region_files
from ldot_milvus.sources.base import Source, scheme, source_at
from ldot_milvus.sources.folders import folder_photos
from ldot_milvus.sources.lists import list_lines, manifest_lines
from ldot_milvus.sources.metadata import Metadata
from ldot_milvus.sources.tars import tar_members
from ldot_milvus.sources.urls import SCHEMES as URL_SCHEMES

_COMPRESSED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)


def expand(paths: Sequence[str], *, metadata: Metadata | None = None) -> Iterator[Source]:
    """The photos and texts that PATH... means, in order; folders and patterns sorted.

    A PATH is a file (whatever its suffix), a folder (recursive; image suffixes only, nothing hidden), a glob
    pattern, an uncompressed .tar of images with NAME.json beside them, a .txt with one path a line, relative to the
    list, a .jsonl with one photo or text a line, or region features: an LMDB, a .tsv, .npz files or a folder of them;
    all but the last may lie in an object store. A photo may be a URL. ``docs/ingestion.md`` tells more. What is wrong
    with a single photo becomes its ``problem`` and the others go on.

    Args:
        metadata: from :func:`~ldot_milvus.sources.metadata.load_metadata`; a photo is looked up by its path in the
            folder, tar or list, by its path as given, then by its base name.

    Raises:
        UsageError: at once, before the first source: a PATH that is missing or unreadable, without any image, a
            compressed tar, a URL where they are not allowed.
    """
    allow_urls = Settings().allow_urls
    for path in paths:
        next(_Listing(allow_urls, peek=True).named(path), None)
    return _with_metadata(paths, _Listing(allow_urls), metadata or {})


def _with_metadata(paths: Sequence[str], listing: _Listing, metadata: Metadata) -> Iterator[Source]:
    taken: dict[str, tuple[str, str | None]] = {}
    for path in paths:
        for key, source in listing.named(path):
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


Found = Iterator[tuple[str, Source]]
"""Sources, each with the name by which the metadata may know it."""


@dataclass(frozen=True)
class _Listing:
    """How PATHs are listed.

    Attributes:
        peek: only to see whether a PATH means anything: its first source is enough.
    """

    allow_urls: bool
    peek: bool = False

    def named(self, path: str) -> Found:
        """What a PATH of the command line means."""
        name = printable(path)
        self._check_allowed(path, name)
        try:
            if _is_there(path):
                yield from self._one(path)
                return
            if not glob.has_magic(path):
                raise UsageError(f"{name}: no such file or folder")
            matches = objects.matches(path) if scheme(path) else sorted(glob.glob(path, recursive=True))
        except OSError as error:
            raise UsageError(f"{name}: {reason(error)}") from error
        if "**" in path:  # matches the folders and what is in them: each file once is enough
            matches = [match for match in matches if not os.path.isdir(match)]
        if not matches:
            raise UsageError(f"{name}: no file fits this pattern")
        for match in matches:
            yield from self._one_of_many(match, match)

    def _one(self, path: str) -> Found:
        """What one path or address means; lines of lists and matches of patterns come here too."""
        empty = True
        for item in self._found(path):
            empty = False
            yield item
        if empty:
            raise UsageError(f"{printable(path)}: no image in it (looked for {' '.join(SUFFIXES)})")

    def _found(self, path: str) -> Found:
        name, suffix = printable(path), os.path.splitext(path)[1].lower()
        if scheme(path) in URL_SCHEMES:
            return iter([(path, _url(path))])
        if objects.is_object(path) and suffix in (".tsv", ".npz"):
            raise UsageError(f"{name}: region features are read from this machine: copy them here")
        if _is_folder(path, suffix):
            return self._folder(path)
        if _COMPRESSED_TAR.search(path):
            raise UsageError(f"{name}: a compressed tar: unpack it, or use an uncompressed .tar")
        if suffix == ".tar":
            return tar_members(path, self.peek)
        if suffix == ".txt":
            return self._list(path)
        if suffix == ".jsonl":
            return self._manifest(path)
        if suffix == ".tsv":
            return region_files.tsv_records(path)
        return iter([(path, region_files.npz_record(path) if suffix == ".npz" else source_at(path))])

    def _folder(self, path: str) -> Found:
        if objects.is_object(path):
            try:
                yield from objects.object_photos(path, anew=self.peek)
            except OSError as error:
                raise UsageError(f"{printable(path)}: {reason(error)}") from error
        elif region_files.is_lmdb(path):
            yield from region_files.lmdb_records(path)
        else:
            photos = folder_photos(path)
            first = next(photos, None)
            if first is None:
                yield from region_files.npz_records(path)
            else:
                yield first
                yield from photos

    def _check_allowed(self, path: str, where: str) -> None:
        """Told once, not for each of a million lines. In a manifest each line is read, and refused, by itself."""
        if scheme(path) in URL_SCHEMES and not self.allow_urls:
            raise UsageError(f"{where}: URLs are fetched only with LDOT_ALLOW_URLS=true: set it, or download the files")

    def _list(self, path: str) -> Found:
        name, folder, lines = printable(path), os.path.dirname(path), list_lines(path)
        for number, line in lines:
            self._check_allowed(line, f"{name}:{number}")
        targets = (_join(folder, line) for _, line in lines)
        if lines and not any(scheme(target) or os.path.lexists(target) for target in targets):
            raise UsageError(f"{name}: none of its {len(lines)} lines is the path of a file: is it a list of paths?")
        for _, line in lines:
            yield from self._line(folder, line)

    def _manifest(self, path: str) -> Found:
        folder = os.path.dirname(path)
        for number, target, fields in manifest_lines(path):
            if target is None:
                here = f"{path}:{number}"
                yield here, source_at(here, **fields)
                continue
            for key, source in self._line(folder, target):
                yield key, source.described_by(fields)

    def _line(self, folder: str, line: str) -> Found:
        """The path in a line of a list that lies in ``folder``."""
        path = _join(folder, line)
        if path.lower().endswith((".txt", ".jsonl")) and (scheme(path) or os.path.isfile(path)):  # it could name itself
            yield line, source_at(path, problem="a list inside a list is not read: name it itself")
        else:
            yield from self._one_of_many(path, line)

    def _one_of_many(self, path: str, key: str) -> Found:
        """One line of a list or match of a pattern: trouble with it is its own, and the others go on."""
        try:
            for inner, source in self._one(path):
                yield (key if inner == path else inner), source
        except UsageError as error:
            yield key, source_at(path, problem=str(error).removeprefix(f"{printable(path)}: "))


def _url(path: str) -> Source:
    if path.partition("?")[0].lower().endswith((".tar", ".txt", ".jsonl", ".tsv", ".npz")):
        raise UsageError(f"{printable(path)}: only photos are fetched by URL: download this file and name it here")
    return Source(path)


def _is_there(path: str) -> bool:
    if scheme(path) in URL_SCHEMES:
        return True
    try:
        if objects.is_object(path):
            objects.is_folder(path)
        else:
            os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return True


def _is_folder(path: str, suffix: str) -> bool:
    if not scheme(path):
        return os.path.isdir(path)
    if suffix in (*SUFFIXES, ".tar", ".txt", ".jsonl"):  # not worth a request for each line of a list
        return False
    try:
        return objects.is_folder(path)
    except OSError as error:
        raise UsageError(f"{printable(path)}: {reason(error)}") from error


def _join(folder: str, line: str) -> str:
    return line if scheme(line) else os.path.join(folder, line)
