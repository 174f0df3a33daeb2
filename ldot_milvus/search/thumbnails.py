"""Small JPEGs of photos in a collection, for pages, agents and vision-language models."""

from __future__ import annotations

import io

from ldot_milvus.errors import InputError


def thumbnail(source: str, longest: int, content: str | None = None) -> bytes:
    """Read the photo of a row and scale it down.

    Args:
        source: the row's source: a path, a URL or a member of a tar.
        longest: length of the longer side in pixels; a smaller photo keeps its size.
        content: SHA-256 of the photo's bytes in hex; None accepts any photo.

    Returns:
        An RGB JPEG of quality 82, with the EXIF rotation applied and without metadata.

    Raises:
        InputError: the photo cannot be read or decoded, or the source has another content now.
    """
    from ldot_milvus.images import content_id, decode
    from ldot_milvus.sources import locate, read

    data = read(locate(source))
    if content not in (None, content_id(data)):
        raise InputError(f"{source} has another content than when it was ingested: ingest it again")
    image = decode(data, name=source, draft_to=longest).image
    image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
