"""Decide which files of a folder, a tar or a pattern are ingested, and count the others by reason."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from unicodedata import normalize

from typing_extensions import override

from ldot_milvus.errors import printable
from ldot_milvus.images import RAW_SUFFIXES, can_read

MAX_NAMES = 3
"""Number of names that are kept as examples of a reason."""

SYSTEM_FOLDERS = frozenset({
    "@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot",  # Synology
    "@recycle", "@recently-snapshot", "@__thumb",  # QNAP
    "~snapshot",  # NetApp
    "$recycle.bin", "recycler", "recycled", "system volume information",  # Windows
    "__macosx",  # zip archives of macOS
    "lost+found",
    "ldot-data",  # our own, in the folder that is ingested with "enqueue ."
})  # fmt: skip
"""Names, in lower case, of folders in which systems keep thumbnails, deleted files and snapshots."""


@dataclass(frozen=True)
class Reason:
    """Why something that a listing saw is not ingested.

    Attributes:
        what: what was seen, in the plural.
        remedy: what to do to ingest it; empty if nothing can be done.
    """

    what: str
    remedy: str = ""


HIDDEN = Reason("hidden files and folders")
SYSTEM = Reason("system folders", "give such a folder as PATH to ingest its photos")
EXCLUDED = Reason("excluded files and folders")
REGION_FILES = Reason("files of region features", "give them as PATH")
NO_PHOTO = Reason("metadata lines that fit no photo")
SIDECARS = Reason(".json and .txt files in tars that fit no photo")
OTHER = Reason("other files")

_BY_SUFFIX: dict[str, Reason] = {
    suffix: reason
    for reason, suffixes in (
        (Reason("HEIC photos", "pip install 'ldot-milvus[heic]', here and for each worker"), ".heic .heif .hif"),
        (Reason("AVIF photos", "install a Pillow with AVIF, here and for each worker"), ".avif"),
        (Reason("RAW photos", "export them as JPEG"), " ".join(sorted(RAW_SUFFIXES))),
        (
            Reason("pictures of other formats", "convert them to JPEG or PNG"),
            ".jxl .jp2 .j2k .jxr .psd .psb .xcf .svg .eps .ai .pdf .ico .tga .exr .hdr .ppm .pgm .pbm .pcx .dds .fits",
        ),
        (Reason("videos"), ".mp4 .mov .avi .mkv .m4v .webm .3gp .mts .m2ts .mpg .mpeg .wmv"),
        (Reason("archives", "unpack them"), ".zip .rar .7z .gz .tgz .bz2 .tbz .tbz2 .xz .txz .zst"),
        (Reason("tar files", "give them as PATH"), ".tar"),
        (REGION_FILES, ".npz .tsv"),
    )
    for suffix in suffixes.split()
}


@dataclass
class Skipped:
    """What a listing saw and did not yield.

    Attributes:
        counts: number of files, folders or lines by reason.
        names: printable names of the first :data:`MAX_NAMES` of each reason.
    """

    counts: dict[Reason, int] = field(default_factory=dict)
    names: dict[Reason, list[str]] = field(default_factory=dict)

    def add(self, reason: Reason, name: str) -> None:
        """Count one file, folder or line by its name."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        names = self.names.setdefault(reason, [])
        if len(names) < MAX_NAMES:
            names.append(printable(name))

    def take_back(self, reason: Reason, name: str) -> None:
        """Undo one :meth:`add`."""
        self.counts[reason] -= 1
        if not self.counts[reason]:
            del self.counts[reason], self.names[reason]
        elif printable(name) in self.names[reason]:
            self.names[reason].remove(printable(name))

    def lines(self) -> list[str]:
        """Format each reason as one line: what was seen, how often, examples and the remedy."""
        return [
            f"{reason.what}: {count:,} ({', '.join(self.names[reason])}{', ...' * (count > len(self.names[reason]))})"
            + (f": {reason.remedy}" if reason.remedy else "")
            for reason, count in self.counts.items()
        ]


@dataclass(frozen=True)
class Selection:
    """Selects files by name and counts those that it rejects.

    Attributes:
        exclude: patterns of the names, or of the paths relative to PATH, of files and folders to leave out.
        skipped: receives what is rejected.
    """

    exclude: tuple[str, ...] = ()
    skipped: Skipped = field(default_factory=Skipped)

    def enters(self, key: str, shown: str) -> bool:
        """Whether an entry of a folder is looked at. Its folder has passed already.

        Args:
            key: path relative to PATH.
            shown: name to count it under.
        """
        name = _name(key)
        return self._passes(_hidden(name) or _system(name) or self._excluded(key), shown)

    def enters_all(self, key: str, shown: str) -> bool:
        """Whether a member of a tar is looked at, for which all its folders must pass too."""
        keys = _ancestors(key)
        return self._passes_all((_hidden(_name(k)) or _system(_name(k)) or self._excluded(k) for k in keys), shown)

    def matches(self, path: str, pattern: str) -> bool:
        """Whether a match of a glob pattern is looked at. Names that the pattern spells out pass."""
        spelt = pattern.split("/")
        wild = next(n for n, part in enumerate(spelt) if any(c in part for c in "*?["))
        keys = (key for key in _ancestors("/".join(path.split("/")[wild:])) if _name(key) not in spelt)
        return self._passes_all((_system(_name(key)) or self._excluded(key) for key in keys), path)

    def names(self, line: str) -> bool:
        """Whether a line of a list is looked at: only ``exclude`` counts, since the line names its file."""
        return not self.exclude or self._passes_all(map(self._excluded, _ancestors(line)), line)

    def takes(self, key: str, shown: str) -> bool:
        """Whether a file is a photo, by its suffix."""
        suffix = os.path.splitext(key)[1].lower()
        return can_read(suffix) or self._passes(_BY_SUFFIX.get(suffix, OTHER), shown)

    def _passes(self, reason: Reason | None, shown: str) -> bool:
        if reason is not None:
            self.skipped.add(reason, shown)
        return reason is None

    def _passes_all(self, reasons: Iterable[Reason | None], shown: str) -> bool:
        return self._passes(next(filter(None, reasons), None), shown)

    def _excluded(self, key: str) -> Reason | None:
        if not self.exclude:  # as for most of the million files of a folder
            return None
        key = normalize("NFC", key)
        name = _name(key)
        patterns = [normalize("NFC", pattern).rstrip("/") for pattern in self.exclude]
        return EXCLUDED if any(fnmatchcase(name, p) or fnmatchcase(key, p) for p in patterns) else None


class Unfiltered(Selection):
    """Selects every member of a tar: a row may come from a time when its name was not rejected."""

    @override
    def enters_all(self, key: str, shown: str) -> bool:
        return True

    @override
    def takes(self, key: str, shown: str) -> bool:
        return True


def _hidden(name: str) -> Reason | None:
    return HIDDEN if name.startswith(".") and name.strip(".") else None  # not "." and ".."


def _system(name: str) -> Reason | None:
    return SYSTEM if name.lower() in SYSTEM_FOLDERS else None


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _ancestors(key: str) -> Iterable[str]:
    """Return ``a``, ``a/b`` and ``a/b/c`` of ``a/b/c``."""
    parts = key.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
