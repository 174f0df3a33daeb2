"""What fits into one message to or from a Milvus server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ldot_milvus.stores import validation
from ldot_milvus.stores.base import Array, Record
from ldot_milvus.stores.milvus.schema import row

REQUEST_BYTES = 16 << 20
"""A quarter of the 64 MB that a server takes in one message: protobuf and the log behind it need room too."""
PAGE = 1000
"""Rows of one answer, without their vectors."""


def among(ids: Sequence[str]) -> str:
    """An expression that is true for these ids."""
    return f"id in [{', '.join(json.dumps(id, ensure_ascii=False) for id in ids)}]"


def page_size(dim: int) -> int:
    """Rows with their vectors in one answer."""
    return max(1, min(PAGE, REQUEST_BYTES // (4 * dim + 4096)))


def requests(records: Sequence[Record], vectors: Array) -> Iterator[list[dict[str, Any]]]:
    """Rows in batches that fit into one message."""
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
