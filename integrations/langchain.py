"""Alias of :mod:`ldot_milvus.integrations.langchain`."""

from ldot_milvus.integrations.langchain import (
    LightningDOTCompressor,
    LightningDOTEmbeddings,
    LightningDOTRetriever,
    LightningDOTTool,
    LightningDOTVectorStore,
    Query,
    photo_blocks,
)

__all__ = [
    "LightningDOTCompressor", "LightningDOTEmbeddings", "LightningDOTRetriever", "LightningDOTTool",
    "LightningDOTVectorStore", "Query", "photo_blocks",
]  # fmt: skip
