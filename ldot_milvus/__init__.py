"""Image-text retrieval with LightningDOT: offline image vectors, dot-product search, cross-attention re-ranking."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldot_milvus.integrations.langchain import LightningDOTRetriever as LightningDOTRetriever
    from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder as LightningDOTEmbedder
    from ldot_milvus.models.loading import load_model as load_model
    from ldot_milvus.search.retriever import Hit as Hit
    from ldot_milvus.search.retriever import Retriever as Retriever
    from ldot_milvus.settings import Settings as Settings
    from ldot_milvus.stores import open_store as open_store

__version__ = "0.1.0"

# Loaded when first asked for: importing ldot_milvus alone loads neither torch nor LangChain.
_WHERE = {
    "Hit": "ldot_milvus.search.retriever",
    "LightningDOTEmbedder": "ldot_milvus.models.lightningdot.embedder",
    "LightningDOTRetriever": "ldot_milvus.integrations.langchain",
    "Retriever": "ldot_milvus.search.retriever",
    "Settings": "ldot_milvus.settings",
    "load_model": "ldot_milvus.models.loading",
    "open_store": "ldot_milvus.stores",
}

__all__ = sorted([*_WHERE, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
