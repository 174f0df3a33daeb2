"""What goes into a collection, from wherever it comes: what PATH... names becomes sources, one a photo or text.

:func:`expand` opens nothing but tars, lists and files of region features; :func:`read` opens a photo, perhaps in
another process on another day.
"""

from ldot_milvus.sources.base import MAX_BYTES, Source
from ldot_milvus.sources.listing import expand
from ldot_milvus.sources.reading import locate, read, read_all

__all__ = ["MAX_BYTES", "Source", "expand", "locate", "read", "read_all"]
