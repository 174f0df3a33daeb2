"""Photos in a folder of this machine, however deep."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ldot_milvus.errors import UsageError, printable, reason
from ldot_milvus.images import SUFFIXES
from ldot_milvus.sources.base import Source, source_at


def folder_photos(root: str) -> Iterator[tuple[str, Source]]:
    """The photos below a folder with their paths in it, sorted; image suffixes only, nothing hidden.

    Raises:
        UsageError: it cannot be listed.
    """
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
            yield key, source_at(entry.path, problem="a link out of the folder is not followed: name its target itself")
        elif not is_folder:
            yield key, source_at(entry.path)
        elif not entry.is_symlink():  # a linked folder is listed where it really is; following could go in circles
            try:
                todo += _entries(entry.path)
            except OSError as error:
                yield key, source_at(entry.path, problem=f"the folder cannot be listed: {reason(error)}")


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden, last name first, since the caller takes from the end."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name, reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
