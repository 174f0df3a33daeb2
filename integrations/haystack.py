"""Alias of :mod:`ldot_milvus.integrations.haystack`."""

from ldot_milvus.integrations.haystack import LightningDOTRetriever

__all__ = ["LightningDOTRetriever"]
