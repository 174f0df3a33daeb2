"""The largest number of pixels of a photo, and Pillow's global settings while it decodes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ldot_milvus.forks import Lock
from ldot_milvus.settings import current

# The size at which Pillow itself raises an error instead of a warning (twice its MAX_IMAGE_PIXELS).
MAX_PIXELS = 178_956_970
"""Default of LDOT_MAX_PIXELS."""

# No camera takes more, and stitched panoramas seldom have more. A file that claims more is likely an attack.
LARGEST_CAMERA = 10**9

_NO_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_strict_lock = Lock()
_strict_users = 0
_lenient_before = False
_pixels_before: int | None = None


def max_pixels() -> int:
    """The largest number of pixels of a photo, from the setting LDOT_MAX_PIXELS."""
    return int(current("max_pixels"))


def limit_named(limit: int, pixels: int) -> str:
    """The limit, and how to raise it if it is the setting's, not Pillow's, and the photo may be one of a camera."""
    remedy = ": set LDOT_MAX_PIXELS to read it" if limit == max_pixels() and pixels <= LARGEST_CAMERA else ""
    return f"the limit of {limit:,} pixels{remedy}"


@contextmanager
def strict_and_quiet() -> Iterator[None]:
    """Make truncated files errors regardless of LOAD_TRUNCATED_IMAGES, and suppress Pillow's warnings.

    A higher LDOT_MAX_PIXELS raises Pillow's own limit, which the decoder then checks.

    All settings are global to the process. Flag and limit are restored when the last thread leaves. The warning filter
    is inserted and removed directly, because ``warnings.catch_warnings`` would overwrite the filters of other threads
    and repeat warnings.
    """
    global _strict_users, _lenient_before, _pixels_before
    from PIL import Image, ImageFile

    pixels = max_pixels()  # before anything changes, since the setting may be invalid
    filters: Any = warnings.filters
    filters.insert(0, _NO_PILLOW_WARNINGS)
    with _strict_lock:
        if _strict_users == 0:
            _lenient_before = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            _pixels_before = Image.MAX_IMAGE_PIXELS
            if _pixels_before is not None and pixels > MAX_PIXELS:  # a lower limit of the caller holds otherwise
                Image.MAX_IMAGE_PIXELS = max(_pixels_before, pixels)
        _strict_users += 1
    try:
        yield
    finally:
        with _strict_lock:
            _strict_users -= 1
            if _strict_users == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = _lenient_before
                Image.MAX_IMAGE_PIXELS = _pixels_before
        with suppress(ValueError):  # other code may have replaced the list of filters in the meantime
            filters.remove(_NO_PILLOW_WARNINGS)
