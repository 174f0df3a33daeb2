"""Read the bytes of one local photo: a regular file of bounded size."""

from __future__ import annotations

import os
import stat

MAX_BYTES = 256 * 2**20
"""Largest file of one photo, in bytes."""


def read_file(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """Read a file, or a part of it.

    Args:
        path: path of the file.
        offset: position of the part, in bytes.
        size: size of the part, in bytes; None for the whole file.

    Returns:
        The bytes; fewer than ``size`` if the file ends before.

    Raises:
        OSError: the file cannot be read, is a folder, a pipe or a device, or is larger than :data:`MAX_BYTES`.
        ValueError: the path contains a NUL.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
        raise OSError(f"this is {'a folder' if stat.S_ISDIR(status.st_mode) else 'a device or a pipe'}, not a file")
    size = check_size(status.st_size if size is None else size)
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def check_size(size: int) -> int:
    """Return ``size``, in bytes; raise OSError if it exceeds the limit."""
    if size > MAX_BYTES:
        raise OSError(too_large(size))
    return size


def too_large(size: int) -> str:
    """Format the reason why a file of ``size`` bytes is not read."""
    return f"{size:,} bytes are more than the limit of {MAX_BYTES:,} bytes"
