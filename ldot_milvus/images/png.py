"""PNGs with damaged texts, or texts or colour profiles beyond Pillow's limits: editors store megabytes of them."""

from __future__ import annotations

import struct
import zlib

# What a PNG may carry besides its pixels without a bound.
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")

# Displays and scanners measured in detail have profiles of up to three megabytes.
MAX_PROFILE = 4 * 2**20
"""Largest colour profile that is used, in bytes."""


def may_be_texts(data: bytes, error: Exception) -> bool:
    """Return whether an error of Pillow may come from the texts of a PNG: from their size, or from damage in them."""
    return "MAX_TEXT_" in str(error) or (data.startswith(b"\x89PNG") and "truncated" not in str(error))


def without_texts(png: bytes) -> tuple[bytes, bytes | None]:
    """Return the same PNG without its texts and its colour profile, and the profile if it is within the limit."""
    kept, position, profile = [png[:8]], 8, None
    while position + 8 <= len(png):
        size, kind = struct.unpack_from(">I4s", png, position)
        end = position + size + 12  # length, type and checksum
        if kind not in _TEXTS:
            kept.append(png[position:end])
        elif kind == b"iCCP" and profile is None:
            profile = _profile(png[position + 8 : end - 4])
        position = end
    return b"".join(kept), profile


def _profile(chunk: bytes) -> bytes | None:
    """Unpack a colour profile; None if it is damaged or too large."""
    _, _, packed = chunk.partition(b"\0")
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed[1:], MAX_PROFILE)  # after the byte of the compression method
    except zlib.error:
        return None
    return profile if unpacker.eof else None
