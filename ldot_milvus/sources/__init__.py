"""Inputs of ingestion: turn the PATH arguments of a command into sources, each a photo or a text, and read them.

:func:`expand` lists sources and opens only tars, lists and region feature files. :func:`read` reads one source,
possibly later and in another process.
"""

from ldot_milvus.sources.base import Source
from ldot_milvus.sources.listing import expand, join_descriptions
from ldot_milvus.sources.reading import locate, read, read_all

__all__ = ["Source", "expand", "join_descriptions", "locate", "read", "read_all"]
