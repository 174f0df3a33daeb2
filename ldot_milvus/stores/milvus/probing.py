"""Probing of what a server can do, with a small temporary collection and a time limit."""

from __future__ import annotations

import logging
import secrets
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ldot_milvus.errors import StoreError
from ldot_milvus.stores.index_spec import AUTO, CPU_TYPES, GPU_TYPES, IndexSpec, choose
from ldot_milvus.stores.milvus.schema import VECTOR, index_params, schema
from ldot_milvus.stores.milvus.server import Server
from ldot_milvus.stores.registry import IndexSupport

log = logging.getLogger(__name__)

PROBE_SECONDS = 20.0
"""Seconds to wait for an index; some servers accept a GPU index and never build it."""
_PROBE_DIM = 32
_PROBE_ROWS = 2048  # a server builds no index over a segment of fewer than 1,024 rows, whatever its type


def settle_index(server: Server, spec: IndexSpec, *, fallback: bool = True, rows: int = 0, dim: int = 0) -> IndexSpec:
    """Return the index to build on a server.

    An index type that needs a GPU is tried first. If the server cannot build it, the nearest CPU type is used, and a
    warning is logged.

    Args:
        server: the server.
        spec: requested index; ``AUTO`` is resolved by ``rows`` and the server.
        fallback: whether another type may be used.
        rows: expected number of rows.
        dim: dimension of the vectors.

    Raises:
        StoreError: the server cannot build the index and ``fallback`` is false.
    """
    if spec.index_type == AUTO:
        if server.lite:
            return IndexSpec("FLAT")  # its graphs lose rows under a filter
        return choose(rows, dim, gpu=refusal(server, IndexSpec("GPU_BRUTE_FORCE")) is None)
    if not spec.needs_gpu:
        return spec
    why = "Milvus Lite has no GPU indexes" if server.lite else refusal(server, spec)
    if why is None:
        return spec
    if not fallback:
        raise StoreError(
            f"Milvus at {server.address} cannot build the index {spec} ({why}): use a server with a GPU, another "
            "LDOT_INDEX, or LDOT_INDEX_FALLBACK=true to use the nearest one without a GPU"
        )
    log.warning("Milvus at %s cannot build the index %s (%s): %s is used instead",
                server.address, spec, why, spec.on_cpu())  # fmt: skip
    return spec.on_cpu()


def index_support(server: Server) -> IndexSupport:
    """Return the index types that a server can build; the types that need a GPU are tried concurrently.

    Raises:
        StoreError: the server does not answer.
    """
    server.call("list_collections")  # an unreachable server fails here, not once for each type
    if server.lite:
        return IndexSupport(CPU_TYPES, "Milvus Lite has no GPU indexes")
    with ThreadPoolExecutor(len(GPU_TYPES)) as threads:  # some servers do not answer for some types before the limit
        refusals = threads.map(lambda name: refusal(server, IndexSpec(name)), GPU_TYPES)
        refused = dict(zip(GPU_TYPES, refusals, strict=True))
    on_gpu = tuple(name for name, why in refused.items() if why is None)
    version = f"server {server.version[0]}.{server.version[1]}"
    return IndexSupport(CPU_TYPES + on_gpu, version if on_gpu else f"none on a GPU ({refused['GPU_CAGRA']}); {version}")


def check_creation(server: Server) -> None:
    """Create and drop a collection.

    Raises:
        StoreError: the server refuses to create collections.
    """
    name = f"ldot_probe_{secrets.token_hex(8)}"
    server.call("create_collection", name, schema=schema(8, None))
    server.call("drop_collection", name)


def refusal(server: Server, spec: IndexSpec) -> str | None:
    """Return why the server cannot build an index; None if it built one over a few rows within ``PROBE_SECONDS``."""
    name, seconds = f"ldot_probe_{secrets.token_hex(8)}", PROBE_SECONDS
    deadline = time.monotonic() + seconds
    try:
        server.call("create_collection", name, schema=schema(_PROBE_DIM, None))
        # Before the rows are inserted: most servers have no GPU and refuse the index of an empty collection at once.
        server.call("create_index", name, index_params(spec, _PROBE_DIM), timeout=seconds, sync=False)
        vectors = np.random.default_rng(0).normal(size=(_PROBE_ROWS, _PROBE_DIM)).astype(np.float32)
        plain = {"kind": "image", "namespace": "", "source": "", "caption": "", "width": 0, "height": 0, "metadata": {}}
        entities = [{"id": str(n), VECTOR: vector.tolist(), **plain} for n, vector in enumerate(vectors)]
        server.call("insert", name, entities)
        server.call("flush", name, timeout=seconds)
        while True:  # at least once: a slow server may have used the time for the rows
            state = server.call("describe_index", name, VECTOR)
            if str(state.get("state")) == "Failed":
                return str(state.get("index_state_fail_reason") or "its build failed")
            if str(state.get("state")) == "Finished" and int(state.get("indexed_rows") or 0) >= _PROBE_ROWS:
                return None
            if time.monotonic() >= deadline:
                return f"it did not finish within {seconds:.0f} s"
            time.sleep(0.2)
    except StoreError as error:
        return str(error).rpartition(": ")[2]
    finally:
        try:
            server.call("drop_collection", name)
        except StoreError as error:
            log.warning("the temporary collection %s could not be dropped, drop it by hand: %s", name, error)
