"""Batches that fit into one message to or from a Milvus server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ldot_milvus.stores import validation
from ldot_milvus.stores.base import Array, Record
from ldot_milvus.stores.milvus.schema import row

REQUEST_BYTES = 16 << 20
"""Bytes in one request: a quarter of a server's limit of 64 MB, since protobuf and the server's log need space too."""
PAGE = 1000
"""Rows without vectors in one response."""


def among(ids: Sequence[str]) -> str:
    """Return an expression that matches these ids."""
    return f"id in [{', '.join(json.dumps(id, ensure_ascii=False) for id in ids)}]"


def page_size(dim: int) -> int:
    """Return the number of rows with vectors of a dimension that fit into one response."""
    return max(1, min(PAGE, REQUEST_BYTES // (4 * dim + 4096)))


def requests(records: Sequence[Record], vectors: Array) -> Iterator[list[dict[str, Any]]]:
    """Yield rows, as pymilvus takes them, in batches that fit into one request.

    Args:
        records: checked records.
        vectors: their vectors, float32 (n, dim).
    """
    batch: list[dict[str, Any]] = []
    size = 0
    for kept, vector in zip(records, vectors, strict=True):
        weight = vector.nbytes + len(kept.source.encode()) + len(kept.caption.encode()) + 200
        weight += len(validation.metadata_json(kept).encode())
        if batch and size + weight > REQUEST_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(row(kept, vector))
        size += weight
    if batch:
        yield batch
