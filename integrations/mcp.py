"""Alias of :mod:`ldot_milvus.integrations.mcp`."""

from ldot_milvus.integrations.mcp import photo_server

__all__ = ["photo_server"]
