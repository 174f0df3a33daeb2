"""Expand the PATH arguments of a command: files, folders, patterns, tars, lists and region features to sources."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ldot_milvus.arguments import listed, path_text
from ldot_milvus.errors import UsageError, printable, reason
from ldot_milvus.images import SUFFIXES, can_read
from ldot_milvus.settings import Settings
from ldot_milvus.sources import objects, region_files
from ldot_milvus.sources.base import Source, scheme, source_at
from ldot_milvus.sources.folders import folder_photos
from ldot_milvus.sources.lists import list_lines, manifest_lines
from ldot_milvus.sources.metadata import Metadata
from ldot_milvus.sources.names import Descriptions, existing
from ldot_milvus.sources.selection import REGION_FILES, Selection, Skipped
from ldot_milvus.sources.tars import tar_members
from ldot_milvus.urls import SCHEMES as URL_SCHEMES

_COMPRESSED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)
_ARCHIVE = (".zip", ".rar", ".7z")


def expand(
    paths: Iterable[str | os.PathLike[str]],
    *,
    metadata: Metadata | None = None,
    exclude: Sequence[str] = (),
    skipped: Skipped | None = None,
) -> Iterator[Source]:
    """Expand paths to the photos and texts that they name.

    A path is one of the following, of which all but region features may be in an object store (``docs/ingestion.md``):

    - a photo, with any suffix, or its URL;
    - a folder, searched recursively for visible files with an image suffix, but not in system folders;
    - a glob pattern;
    - an uncompressed .tar of photos, each described by NAME.json and NAME.txt beside NAME.jpg;
    - a .txt list with one path or URL per line, relative to the list;
    - a .jsonl manifest with one photo or text per line;
    - region features: an LMDB, a .tsv, an .npz file, or a folder of .npz files.

    An error in a single photo becomes the ``problem`` of its source.

    Args:
        paths: paths, patterns and addresses; also :class:`pathlib.Path` and other path objects.
        metadata: descriptions from :func:`~ldot_milvus.sources.metadata.load_metadata`. A photo is looked up by its
            path in the folder, tar or list, by its path as given, then by its base name; Unicode's composed and
            decomposed letters are the same.
        exclude: patterns such as ``*.gif`` of names, or of paths relative to the folder, to leave out.
        skipped: receives the counts, by reason, of what was seen and not yielded. It is complete when the returned
            iterator is exhausted.

    Returns:
        The sources, in the order of ``paths``; those of a folder or a pattern are sorted. A photo that is described
        several times comes several times, see :func:`join_descriptions`.

    Raises:
        UsageError: a single path is given instead of a list; a path does not exist, cannot be read, contains no photo,
            is a compressed tar, or is a URL although URLs are not allowed. It is raised before the first source is
            yielded.
    """
    allow_urls, exclude = Settings().allow_urls, (exclude,) if isinstance(exclude, str) else tuple(exclude)
    # A ~ comes from Python, or from --option=~/x, where no shell expands it.
    given = [os.path.expanduser(path_text(path)) for path in listed(paths, "paths")]
    for path in given:
        next(_Listing(allow_urls, Selection(exclude), peek=True).expand(path), None)
    skipped = Skipped() if skipped is None else skipped
    listing = _Listing(allow_urls, Selection(exclude, skipped))
    return _with_metadata(given, listing, Descriptions(metadata) if metadata else None, skipped)


def join_descriptions(sources: Iterable[Source]) -> list[Source]:
    """Join the descriptions of a photo that comes several times, such as in one line of a manifest for each caption.

    Call this before sources are divided into chunks, so that no chunk has only some of the captions.

    Args:
        sources: the sources of :func:`expand`; all are held in memory.

    Returns:
        The sources, in the order of their first occurrence, each described photo once. Captions that are together too
        long are the ``problem`` of their source.
    """
    joined: dict[object, Source] = {}
    for source in sources:
        key: object = len(joined)
        if (source.caption or source.metadata) and source.kind != "text" and source.problem is None:
            key = (source.source, source.offset, source.kind, source.id, source.namespace)
        joined[key] = joined[key].also_described_by(source) if key in joined else source
    return list(joined.values())


def _with_metadata(
    paths: Sequence[str], listing: _Listing, descriptions: Descriptions | None, skipped: Skipped
) -> Iterator[Source]:
    owners: dict[str, tuple[str, str | None]] = {}  # of each id: the file, and the member of a tar
    for path in paths:
        for key, source in listing.expand(path):
            if descriptions:
                names = (os.path.normpath(key), os.path.normpath(source.path), os.path.basename(key))
                source = source.described_by(descriptions.of(*names) or {})
            if source.id is not None:
                # A description of "a.jpg" matches every a.jpg in the folder, of which a shared id would keep only one.
                owner = (os.path.abspath(os.path.join(source.base, source.path)), source.member)
                first = owners.setdefault(source.id, owner)
                if first != owner:
                    other = printable("/".join(part for part in first if part))
                    source = replace(source, problem=f"duplicate id: {source.id!r} is already the id of {other}")
            yield source
    if descriptions:
        descriptions.count_unused(skipped)


NamedSources = Iterator[tuple[str, Source]]
"""Sources, each with the name under which the metadata may describe it."""


@dataclass(frozen=True)
class _Listing:
    """Expands paths.

    Attributes:
        allow_urls: whether URLs are allowed.
        selection: selects the files of folders, tars and patterns, and counts the others.
        peek: whether only the first source of each path is needed, to check that the path is valid.
    """

    allow_urls: bool
    selection: Selection = field(default_factory=Selection)
    peek: bool = False

    def expand(self, path: str) -> NamedSources:
        """Expand a path, pattern or address of the command line."""
        path = existing(path)
        name = printable(path)
        self._check_url(path, name)
        try:
            if _exists(path):
                yield from self._expand_one(path)
                return
            if not glob.has_magic(path):
                raise UsageError(f"{name}: no such file or folder")
            matches = objects.matches(path) if scheme(path) else sorted(glob.glob(path, recursive=True))
        except OSError as error:
            raise UsageError(f"{name}: {reason(error)}") from error
        if "**" in path:  # matches both folders and their files: skip the folders, so that each file occurs once
            matches = [match for match in matches if not os.path.isdir(match)]
        if not matches:
            raise UsageError(f"{name}: no file matches this pattern")
        empty = True
        for match in matches:
            if self.selection.matches(match, path):
                empty = False
                yield from self._expand_item(match, match)
        if empty:
            raise UsageError(f"{name}: every match of this pattern is excluded")

    def _expand_one(self, path: str) -> NamedSources:
        """Expand one path or address; raise UsageError if it contains no photo."""
        empty = True
        for item in self._dispatch(path):
            empty = False
            yield item
        if empty:
            seen = Skipped()  # of this path alone
            list(replace(self, selection=replace(self.selection, skipped=seen))._dispatch(path))
            instead = f", but {'; '.join(seen.lines())}" if seen.counts else ""
            supported = " ".join(filter(can_read, SUFFIXES))
            raise UsageError(f"{printable(path)}: it contains no image{instead} (supported: {supported})")

    def _dispatch(self, path: str) -> NamedSources:
        """Expand a path by its scheme and suffix."""
        name, suffix = printable(path), os.path.splitext(path)[1].lower()
        if scheme(path) in URL_SCHEMES:
            return iter([(path, _url(path))])
        if objects.is_object(path) and suffix in (".tsv", ".npz"):
            raise UsageError(f"{name}: region features are read from local files only: copy the file to this machine")
        if _is_folder(path, suffix):
            return self._folder(path)
        if _COMPRESSED_TAR.search(path):
            raise UsageError(f"{name}: the tar is compressed: unpack it, or use an uncompressed .tar")
        if suffix in _ARCHIVE:
            raise UsageError(f"{name}: archives are not read: unpack it, or use an uncompressed .tar")
        if suffix == ".tar":
            return tar_members(path, self.selection, peek=self.peek)
        if suffix == ".txt":
            return self._list(path)
        if suffix == ".jsonl":
            return self._manifest(path)
        if suffix == ".tsv":
            return region_files.tsv_records(path)
        return iter([(path, region_files.npz_record(path) if suffix == ".npz" else source_at(path))])

    def _folder(self, path: str) -> NamedSources:
        if objects.is_object(path):
            try:
                yield from objects.object_photos(path, self.selection, refresh=self.peek)
            except OSError as error:
                raise UsageError(f"{printable(path)}: {reason(error)}") from error
        elif region_files.is_lmdb(path):
            yield from region_files.lmdb_records(path)
        else:
            photos = folder_photos(path, self.selection)
            first = next(photos, None)
            if first is None:
                for name, record in region_files.npz_records(path):
                    self.selection.skipped.take_back(REGION_FILES, os.path.join(path, name))
                    yield name, record
            else:
                yield first
                yield from photos

    def _check_url(self, path: str, where: str) -> None:
        """Refuse the whole list at a URL that is not allowed. In a manifest, each such line fails when it is read."""
        if scheme(path) in URL_SCHEMES and not self.allow_urls:
            raise UsageError(f"{where}: URLs are fetched only with LDOT_ALLOW_URLS=true: set it, or download the files")

    def _list(self, path: str) -> NamedSources:
        name, folder, lines = printable(path), os.path.dirname(path), list_lines(path)
        for number, line in lines:
            self._check_url(line, f"{name}:{number}")
        targets = (existing(_join(folder, line)) for _, line in lines)
        if lines and not any(scheme(target) or os.path.lexists(target) for target in targets):
            raise UsageError(f"{name}: none of its {len(lines)} lines is the path of an existing file: check the list")
        for _, line in lines:
            yield from self._line(folder, line)

    def _manifest(self, path: str) -> NamedSources:
        folder = os.path.dirname(path)
        for number, target, fields in manifest_lines(path):
            if target is None:
                name = f"{path}:{number}"
                yield name, source_at(name, **fields)
                continue
            for key, source in self._line(folder, target):
                yield key, source.described_by(fields)

    def _line(self, folder: str, line: str) -> NamedSources:
        """Expand the path in a line of a list in ``folder``."""
        if not self.selection.names(line):
            return
        path = existing(_join(folder, line))
        # Lists in lists are not read, since a list could contain itself.
        if path.lower().endswith((".txt", ".jsonl")) and (scheme(path) or os.path.isfile(path)):
            yield line, source_at(path, problem="a list inside a list is not read: give it as PATH")
        else:
            yield from self._expand_item(path, line)

    def _expand_item(self, path: str, key: str) -> NamedSources:
        """Expand a line of a list or a match of a pattern; an error in it becomes a source with a ``problem``."""
        try:
            for inner, source in self._expand_one(path):
                yield (key if inner == path else inner), source
        except UsageError as error:
            yield key, source_at(path, problem=str(error).removeprefix(f"{printable(path)}: "))


def _url(path: str) -> Source:
    if path.partition("?")[0].lower().endswith((".tar", ".txt", ".jsonl", ".tsv", ".npz")):
        raise UsageError(f"{printable(path)}: only photos are fetched by URL: download this file and give its path")
    return Source(path)


def _exists(path: str) -> bool:
    """Return whether a path or an object exists; a URL always counts as existing."""
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
    if suffix in (*SUFFIXES, ".tar", ".txt", ".jsonl"):  # saves a request for each line of a list
        return False
    try:
        return objects.is_folder(path)
    except OSError as error:
        raise UsageError(f"{printable(path)}: {reason(error)}") from error


def _join(folder: str, line: str) -> str:
    return line if scheme(line) else os.path.join(folder, line)
