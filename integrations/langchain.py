"""Alias of :mod:`ldot_milvus.integrations.langchain`."""

from ldot_milvus.integrations.langchain import LightningDOTEmbeddings, LightningDOTRetriever

__all__ = ["LightningDOTEmbeddings", "LightningDOTRetriever"]
