"""Where what a re-ranker keeps of a collection's photos lies."""

from __future__ import annotations

from ldot_milvus.models.base import RerankerFiles
from ldot_milvus.models.registry import find_model, find_reranker
from ldot_milvus.stores import VectorStore
from ldot_milvus.stores.regions import RegionStore, open_region_store


def region_store_of(
    store: VectorStore, kept_by: RerankerFiles | None, address: str | None = None
) -> RegionStore | None:
    """The region store of a collection under a re-ranker; None without one.

    Args:
        address: of the region data; None takes the setting, else the place beside the store.
    """
    if kept_by is None:
        return None
    return open_region_store(store.address, kept_by.fingerprint, address, kept_by.former_fingerprints)


def region_store_of_names(
    store: VectorStore, model: str, reranker: str | None = None, address: str | None = None
) -> RegionStore | None:
    """The same by the names of model and re-ranker; for a collection of another model, what 0.1.0 kept of it.

    Raises:
        UsageError, ModelError: no such model or re-ranker.
    """
    files = find_model(model)
    if store.model in (None, files.fingerprint, *files.former_fingerprints):
        return region_store_of(store, find_reranker(reranker, files), address)
    return open_region_store(store.address, str(store.model), address)
