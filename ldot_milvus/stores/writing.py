"""A check that a folder can be written, which leaves nothing behind."""

from __future__ import annotations

import errno
import os
from tempfile import TemporaryFile

from ldot_milvus.errors import StoreError

ROOM = 2**20
"""Bytes that are written to find out whether there is room: a disk or a quota that is full refuses them."""


def check_folder(folder: str, what: str, remedy: str) -> None:
    """Write :data:`ROOM` bytes to a file without a name in a folder, or in the nearest one above it that exists.

    Args:
        folder: absolute path, which need not exist.
        what: what is in the folder, for the message.
        remedy: what to do if it cannot be written, besides freeing space.

    Raises:
        StoreError: it cannot be written.
    """
    existing = folder
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    try:
        with TemporaryFile(dir=existing, buffering=0) as file:
            rest = ROOM
            while rest > 0:  # an unbuffered file may write less than it is given
                rest -= file.write(bytes(rest))
            os.fsync(file.fileno())  # network file systems refuse here
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise StoreError(
            f"{what} cannot be written ({error.strerror}): {'free some space' if full else remedy}"
        ) from error
