"""The index of a new collection: a server builds it after the rows are written, and it is measured before its use."""

from __future__ import annotations

import logging
import time

from ldot_milvus.errors import StoreError
from ldot_milvus.stores.base import VectorStore
from ldot_milvus.stores.index_spec import choose_after
from ldot_milvus.stores.milvus.schema import VECTOR, Described, index_params
from ldot_milvus.stores.milvus.server import Server
from ldot_milvus.stores.recall import LEAST_RECALL, LEAST_ROWS, measure

log = logging.getLogger(__name__)

STALL_SECONDS = 1800.0
"""Seconds to wait while no more rows are indexed; a server counts the rows of a segment when all are indexed."""
_POLL_SECONDS = 0.5


def finish(store: VectorStore, server: Server, described: Described, *, auto: bool) -> None:
    """Wait until the index of a collection is built, and measure its recall; FLAT needs neither.

    Args:
        store: the collection, which nothing else searches meanwhile.
        server: its server.
        described: the collection on the server.
        auto: whether another type takes the place of one that cannot be built or whose recall is too low.

    Raises:
        StoreError: the index cannot be built, and ``auto`` is false.
    """
    spec = described.index
    if spec.index_type == "FLAT" or store.count() < LEAST_ROWS:
        return
    while True:
        problem = None if server.lite else _not_built(server, described.name)
        if problem is not None:
            problem = f"the server cannot build the index {spec} ({problem})"
            if not auto:
                raise StoreError(f"collection {store.collection!r} of {store.address}: {problem}: name another type")
        elif spec.index_type != "FLAT":
            recall = measure(store)
            if recall is not None and not recall.sufficient:
                problem = f"{recall}, below {LEAST_RECALL}"
        if problem is None:
            return
        following = choose_after(spec) if auto else None
        remedy = "run ldot reindex with another --index" if following is None else f"{following} is built instead"
        log.warning("collection %r of %s: %s: %s", store.collection, store.address, problem, remedy)
        if following is None:
            return
        spec = following
        server.call("release_collection", described.name)
        server.call("drop_index", described.name, VECTOR)
        server.call("create_index", described.name, index_params(spec, described.dim), sync=False)


def _not_built(server: Server, name: str) -> str | None:
    """Close the growing segments, wait for their indexes and load them; return why this fails, else None."""
    server.call("flush", name, timeout=STALL_SECONDS)
    indexed, deadline = -1, 0.0
    while True:
        state = server.call("describe_index", name, VECTOR)
        if str(state.get("state")) == "Failed":
            return str(state.get("index_state_fail_reason") or "its build failed")
        if str(state.get("state")) == "Finished" and not int(state.get("pending_index_rows") or 0):
            break
        if (rows := int(state.get("indexed_rows") or 0)) > indexed:
            indexed, deadline = rows, time.monotonic() + STALL_SECONDS
        if time.monotonic() > deadline:
            return f"{indexed:,} rows are indexed, and no more since {STALL_SECONDS:.0f} s"
        time.sleep(_POLL_SECONDS)
    try:  # a loaded collection goes on with the interim indexes of its growing segments
        server.call("release_collection", name)
        server.call("load_collection", name, timeout=STALL_SECONDS)
    except StoreError as error:  # such as a GPU without enough memory
        return str(error)
    return None
