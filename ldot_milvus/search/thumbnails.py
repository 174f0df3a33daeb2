"""Small JPEGs of photos in a collection, for pages, agents and vision-language models."""

from __future__ import annotations

import io


def thumbnail(source: str, longest: int) -> bytes:
    """Read the photo of a row and scale it down.

    Args:
        source: the row's source: a path, a URL or a member of a tar.
        longest: length of the longer side in pixels; a smaller photo keeps its size.

    Returns:
        An RGB JPEG of quality 82, with the EXIF rotation applied.

    Raises:
        InputError: the photo cannot be read or decoded.
    """
    from ldot_milvus.images import decode
    from ldot_milvus.sources import locate, read

    image = decode(read(locate(source)), name=source, draft_to=longest).image
    image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
