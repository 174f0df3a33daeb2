"""List the photos in a local folder and its subfolders."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ldot_milvus.errors import UsageError, printable, reason
from ldot_milvus.sources.base import Source, source_at
from ldot_milvus.sources.selection import Selection


def folder_photos(root: str, selection: Selection) -> Iterator[tuple[str, Source]]:
    """List the photos in a folder and its subfolders, sorted.

    Args:
        root: path of the folder.
        selection: selects files and folders by name, and counts the others.

    Yields:
        Each photo's path relative to ``root``, and its source. A link out of the folder and a subfolder that cannot be
        listed are sources with a ``problem``.

    Raises:
        UsageError: ``root`` cannot be listed.
    """
    prefix, inside = os.path.join(root, ""), os.path.join(os.path.realpath(root), "")
    try:
        todo = _entries(root)
    except OSError as error:
        raise UsageError(f"{printable(root)}: {reason(error)}") from error
    while todo:
        entry = todo.pop()
        key = entry.path.removeprefix(prefix)
        if not selection.enters(key, entry.path):
            continue
        is_folder = _is_folder(entry)
        if not is_folder and not selection.takes(key, entry.path):
            continue
        if entry.is_symlink() and not os.path.join(os.path.realpath(entry.path), "").startswith(inside):
            yield (
                key,
                source_at(entry.path, problem="a link out of the folder is not followed: give its target as PATH"),
            )
        elif not is_folder:
            yield key, source_at(entry.path)
        elif not entry.is_symlink():  # a linked folder is listed at its real path, since links can form a cycle
            try:
                todo += _entries(entry.path)
            except OSError as error:
                yield key, source_at(entry.path, problem=f"the folder cannot be listed: {reason(error)}")


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Return the entries of a folder in descending order, since the caller pops from the end."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name, reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself raises ELOOP
        return False
