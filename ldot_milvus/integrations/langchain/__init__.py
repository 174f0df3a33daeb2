"""LangChain components over a collection of photos: retriever, embeddings, vector store, compressor and tool."""

from ldot_milvus.integrations.langchain.compressor import LightningDOTCompressor
from ldot_milvus.integrations.langchain.documents import photo_blocks
from ldot_milvus.integrations.langchain.embeddings import LightningDOTEmbeddings
from ldot_milvus.integrations.langchain.queries import Query
from ldot_milvus.integrations.langchain.retriever import LightningDOTRetriever
from ldot_milvus.integrations.langchain.tool import LightningDOTTool
from ldot_milvus.integrations.langchain.vector_store import LightningDOTVectorStore

__all__ = [
    "LightningDOTCompressor", "LightningDOTEmbeddings", "LightningDOTRetriever", "LightningDOTTool",
    "LightningDOTVectorStore", "Query", "photo_blocks",
]  # fmt: skip
