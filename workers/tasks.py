"""What a worker does: one task, one chunk of sources."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from .app import app


@app.task(name="ldot.ingest_chunk")  # type: ignore[untyped-decorator]
def ingest_chunk(target: dict[str, Any], sources: list[dict[str, Any]]) -> dict[str, Any]:
    """Ingest a chunk and return its report.

    Args:
        target: where to: store, collection, model, region_store.
        sources: :class:`ldot_milvus.sources.Source` as dictionaries.
    """
    from ldot_milvus.sources import Source

    ingestor = _ingestor(os.getpid(), **target)
    report: dict[str, Any] = ingestor.ingest([Source.from_dict(source) for source in sources]).to_dict()
    return report


# One model and one connection a process, made by its first task: neither survives a fork.
@lru_cache(maxsize=4)
def _ingestor(pid: int, store: str, collection: str, model: str, region_store: str | None) -> Any:
    from ldot_milvus.ingestion import Ingestor
    from ldot_milvus.settings import Settings
    from ldot_milvus.stores import open_store

    settings = Settings()
    # A worker's own setting wins: a server may have another address from where it stands.
    if "store" in settings.model_fields_set:
        store = settings.store
    if "region_store" in settings.model_fields_set:
        region_store = settings.region_store
    return Ingestor(
        open_store(store, collection), model, region_store=region_store, device=settings.device, dtype=settings.dtype
    )
