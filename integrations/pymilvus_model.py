"""Alias of :mod:`ldot_milvus.integrations.pymilvus_model`."""

from ldot_milvus.integrations.pymilvus_model import LightningDOTEmbeddingFunction, LightningDOTRerankFunction

__all__ = ["LightningDOTEmbeddingFunction", "LightningDOTRerankFunction"]
