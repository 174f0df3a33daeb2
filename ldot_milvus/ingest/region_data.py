"""Where what a re-ranker keeps of a collection's photos lies."""

from __future__ import annotations

import logging

from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.models.base import RerankerFiles
from ldot_milvus.models.registry import find_model, find_reranker
from ldot_milvus.stores import VectorStore
from ldot_milvus.stores.regions import RegionStore, open_region_store

log = logging.getLogger(__name__)


def region_store_of(
    store: VectorStore, kept_by: RerankerFiles | None, address: str | None = None
) -> RegionStore | None:
    """The region store of a collection under a re-ranker; None without one.

    Args:
        store: the collection.
        kept_by: the files of the re-ranker.
        address: of the region data; None takes the setting, else the place beside the store.
    """
    if kept_by is None:
        return None
    return open_region_store(store.address, kept_by.fingerprint, address, kept_by.former_fingerprints)


def region_store_to_delete_from(
    store: VectorStore, model: str, reranker: str | None = None, address: str | None = None
) -> RegionStore | None:
    """The region store of a collection by the names of model and re-ranker, which are not loaded.

    A worker that only deletes may lack the model's files: then the region data stays, and a warning says so. For a
    collection of another model it is the region data that 0.1.0 kept under that model's fingerprint.
    """
    try:
        files = find_model(model)
        if store.model in (None, files.fingerprint, *files.former_fingerprints):
            return region_store_of(store, find_reranker(reranker, files), address)
    except (UsageError, ModelError) as error:
        log.warning("the region data of deleted photos stays, since its model is not on this machine: %s", error)
        return None
    return open_region_store(store.address, str(store.model), address)
