"""The region store from which the region data of deleted photos is removed."""

from __future__ import annotations

import logging

from ldot_milvus.errors import ModelError, RegionStoreNotFound, UsageError
from ldot_milvus.models.registry import find_model, find_reranker
from ldot_milvus.stores import VectorStore
from ldot_milvus.stores.region_place import RegionPlace, open_region_store
from ldot_milvus.stores.regions import RegionStore

log = logging.getLogger(__name__)


def region_store_to_delete_from(
    store: VectorStore, model: str, reranker: str | None = None, address: str | None = None
) -> RegionStore | None:
    """Open the region store of a collection without loading the model or the re-ranker.

    A worker that only deletes rows may lack the model's files, or may not reach the region data. A warning is logged
    then, and the region data is not deleted. A collection of another model gets the region store that 0.1.0 named by
    that model's fingerprint.

    Args:
        store: the collection.
        model: packaged name, folder or hub id of the embedder.
        reranker: None for the model's own, "none" for none, else a folder or hub id.
        address: address of the region data, see :func:`~ldot_milvus.stores.region_place.open_region_store`.

    Returns:
        The region store; None without a re-ranker, or if this machine lacks a model or does not reach the region data.
    """
    try:
        files, stored = find_model(model), store.model
        if stored in (None, files.fingerprint) or stored in files.former_fingerprints:
            kept_by = find_reranker(reranker, files)
            return None if kept_by is None else open_region_store(store, kept_by, address)
        return RegionStore(RegionPlace(store, address).find(), stored)
    except (UsageError, ModelError) as error:
        log.warning("region data of deleted photos is not removed, because the model is not on this machine: %s", error)
    except RegionStoreNotFound as error:
        log.warning("region data of deleted photos is not removed: %s", error)
    return None
