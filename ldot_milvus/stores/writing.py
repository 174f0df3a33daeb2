"""Files that are written as a whole, and a check that a folder can be written, which leaves nothing behind."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from tempfile import TemporaryFile

from ldot_milvus.errors import StoreError

ROOM = 2**20
"""Bytes that are written to find out whether there is room: a disk or a quota that is full refuses them."""


def write_file(path: str, data: bytes, *, durable: bool = False) -> None:
    """Write or replace a file atomically, and create its folder if it is missing.

    Args:
        path: of the file.
        data: its content.
        durable: whether it must survive a power failure from now on.

    Raises:
        OSError: it cannot be written; what was there is unchanged.
    """
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".{secrets.token_hex(8)}.tmp")
    try:
        try:
            file = open(temporary, "xb")  # noqa: SIM115  (tempfile makes files that only their owner may read)
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)
            file = open(temporary, "xb")  # noqa: SIM115
        with file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.remove(temporary)
        raise


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
