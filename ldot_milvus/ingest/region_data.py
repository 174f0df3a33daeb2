"""The region store that belongs to a collection and a re-ranker."""

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
    """Open the region store of a collection and a re-ranker.

    Args:
        store: the collection.
        kept_by: files of the re-ranker; None without one.
        address: address of the region data; None takes the setting, else the default beside the store.

    Returns:
        The region store; None without a re-ranker.
    """
    if kept_by is None:
        return None
    return open_region_store(store.address, kept_by.fingerprint, address, kept_by.former_fingerprints)


def region_store_to_delete_from(
    store: VectorStore, model: str, reranker: str | None = None, address: str | None = None
) -> RegionStore | None:
    """Open the region store of a collection without loading the model or the re-ranker.

    A worker that only deletes rows may lack the model's files. A warning is logged then, and the region data is not
    deleted. A collection of another model gets the region store that 0.1.0 named by that model's fingerprint.

    Args:
        store: the collection.
        model: packaged name, folder or hub id of the embedder.
        reranker: None for the model's own, "none" for none, else a folder or hub id.
        address: address of the region data; None takes the setting, else the default beside the store.

    Returns:
        The region store; None without a re-ranker, or if the files of a model are not on this machine.
    """
    try:
        files = find_model(model)
        if store.model in (None, files.fingerprint, *files.former_fingerprints):
            return region_store_of(store, find_reranker(reranker, files), address)
    except (UsageError, ModelError) as error:
        log.warning("region data of deleted photos is not removed, because the model is not on this machine: %s", error)
        return None
    return open_region_store(store.address, str(store.model), address)
