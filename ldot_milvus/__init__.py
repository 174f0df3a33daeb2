"""Image-text retrieval with LightningDOT: offline image vectors, dot-product search, cross-attention re-ranking.

Importing this package loads neither torch nor LangChain nor Celery: a public name is imported at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ldot_milvus.errors import (
    CollectionNotFound,
    FilterError,
    InputError,
    LdotError,
    ModelError,
    ModelMismatch,
    RegionStoreNotFound,
    RowNotFound,
    StoreError,
    TrainingError,
    UnknownField,
    UsageError,
)

if TYPE_CHECKING:
    from ldot_milvus.client import Client as Client
    from ldot_milvus.ingest.ingestor import Failure as Failure
    from ldot_milvus.ingest.ingestor import Ingestor as Ingestor
    from ldot_milvus.ingest.ingestor import Report as Report
    from ldot_milvus.integrations.langchain import LightningDOTEmbeddings as LightningDOTEmbeddings
    from ldot_milvus.integrations.langchain import LightningDOTRetriever as LightningDOTRetriever
    from ldot_milvus.models.base import Embedder as Embedder
    from ldot_milvus.models.base import Reranker as Reranker
    from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder as LightningDOTEmbedder
    from ldot_milvus.models.loading import load_embedder as load_embedder
    from ldot_milvus.models.loading import load_model as load_model
    from ldot_milvus.models.loading import load_reranker as load_reranker
    from ldot_milvus.models.registry import register_family as register_family
    from ldot_milvus.regions.base import Regions as Regions
    from ldot_milvus.search.retriever import Hit as Hit
    from ldot_milvus.search.retriever import Retriever as Retriever
    from ldot_milvus.settings import Settings as Settings
    from ldot_milvus.sources import Source as Source
    from ldot_milvus.sources import expand as expand
    from ldot_milvus.sources.metadata import load_metadata as load_metadata
    from ldot_milvus.stores import Match as Match
    from ldot_milvus.stores import Record as Record
    from ldot_milvus.stores import VectorStore as VectorStore
    from ldot_milvus.stores import open_store as open_store
    from ldot_milvus.stores import register_store as register_store

__version__ = "0.2.0"

_MODULES = {
    "Client": "ldot_milvus.client",
    "Embedder": "ldot_milvus.models.base",
    "Failure": "ldot_milvus.ingest.ingestor",
    "Hit": "ldot_milvus.search.retriever",
    "Ingestor": "ldot_milvus.ingest.ingestor",
    "LightningDOTEmbedder": "ldot_milvus.models.lightningdot.embedder",
    "LightningDOTEmbeddings": "ldot_milvus.integrations.langchain",
    "LightningDOTRetriever": "ldot_milvus.integrations.langchain",
    "Match": "ldot_milvus.stores",
    "Record": "ldot_milvus.stores",
    "Regions": "ldot_milvus.regions.base",
    "Report": "ldot_milvus.ingest.ingestor",
    "Reranker": "ldot_milvus.models.base",
    "Retriever": "ldot_milvus.search.retriever",
    "Settings": "ldot_milvus.settings",
    "Source": "ldot_milvus.sources",
    "VectorStore": "ldot_milvus.stores",
    "expand": "ldot_milvus.sources",
    "load_embedder": "ldot_milvus.models.loading",
    "load_metadata": "ldot_milvus.sources.metadata",
    "load_model": "ldot_milvus.models.loading",
    "load_reranker": "ldot_milvus.models.loading",
    "open_store": "ldot_milvus.stores",
    "register_family": "ldot_milvus.models.registry",
    "register_store": "ldot_milvus.stores",
}

__all__ = [
    "Client", "CollectionNotFound", "Embedder", "Failure", "FilterError", "Hit", "Ingestor", "InputError", "LdotError",
    "LightningDOTEmbedder", "LightningDOTEmbeddings", "LightningDOTRetriever", "Match", "ModelError", "ModelMismatch",
    "Record", "RegionStoreNotFound", "Regions", "Report", "Reranker", "Retriever", "RowNotFound", "Settings", "Source",
    "StoreError", "TrainingError", "UnknownField", "UsageError", "VectorStore", "__version__", "expand",
    "load_embedder", "load_metadata", "load_model", "load_reranker", "open_store", "register_family", "register_store",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
