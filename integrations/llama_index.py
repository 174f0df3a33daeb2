"""Alias of :mod:`ldot_milvus.integrations.llama_index`."""

from ldot_milvus.integrations.llama_index import LightningDOTRetriever

__all__ = ["LightningDOTRetriever"]
