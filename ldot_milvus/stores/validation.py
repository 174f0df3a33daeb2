"""Checks of everything that a caller hands to a store, made before anything is written; the same for every store.

Lengths are in UTF-8 bytes, as Milvus counts VARCHAR.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ldot_milvus.errors import CollectionNotFound, ModelMismatch, UsageError
from ldot_milvus.stores.base import KINDS, Array, Filter, Record, VectorStore

MAX_ID = 64
MAX_NAMESPACE = 64
MAX_SOURCE = 4096
MAX_CAPTION = 8192
MAX_METADATA = 65536
MAX_METADATA_DEPTH = 64
MAX_K = 16384
MAX_SIDE = 2**31 - 1


def collection_name(name: str) -> str:
    """Return the name if Milvus would accept it, else raise UsageError."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name):
        raise UsageError(
            f"bad collection name {name!r}: letters, digits and underscores, not starting with a digit, at most 255"
        )
    return name


def model_and_dim(model: str, dim: int) -> None:
    """Raise UsageError unless these can describe a collection."""
    if not isinstance(model, str) or not model:
        raise UsageError(f"a model's fingerprint is a non-empty string, not {model!r}")
    if not _is_int(dim) or dim < 1:
        raise UsageError(f"the width of the vectors is a whole number of at least 1, not {dim!r}")


def same_model(store: VectorStore, stored: tuple[str | None, int], model: str, dim: int) -> None:
    """Raise ModelMismatch unless the collection, whose model and width are ``stored``, is or can become the model's."""
    stored_model, stored_dim = stored
    if stored_dim != dim or stored_model not in (None, model):
        raise ModelMismatch(
            f"collection {store.collection!r} of {store.address} holds vectors of model "
            f"{stored_model or 'unknown'} ({stored_dim} dimensions), not of {model} ({dim}): choose another "
            "collection name, or ingest again with the new model into a new collection"
        )


def same_width(store: VectorStore, stored_dim: int, records: Sequence[Record], vectors: Array) -> None:
    """Raise ModelMismatch unless checked records, at least one, have the width of the collection."""
    if stored_dim != vectors.shape[1]:
        raise ModelMismatch(
            f"record {records[0].id!r} has {vectors.shape[1]} dimensions and collection {store.collection!r} of "
            f"{store.address} {stored_dim}: use the model that it was made with, or another collection name"
        )


def not_found(store: VectorStore, names: Iterable[str]) -> CollectionNotFound:
    """The error of a search in a collection that does not exist; ``names`` are those that do."""
    there = ", ".join(sorted(names))
    return CollectionNotFound(
        f"{store.address} has no collection {store.collection!r} yet: ingest into it first"
        + (f" (there are: {there})" if there else "")
    )


def ids_or_filter(ids: Sequence[str] | None, filter: Filter | None) -> None:
    """Raise UsageError unless one of them says which rows to delete."""
    if (ids is None) == (filter is None):
        raise UsageError("delete takes either ids or a filter")
    if filter == {}:
        raise UsageError("an empty filter would delete every row: if that is meant, say so with {'id': {'$ne': ''}}")


def kind(value: str, where: str) -> None:
    """Raise UsageError unless the value is one of KINDS; ``where`` begins the message."""
    if value not in KINDS:
        raise UsageError(f"{where}: kind is one of {', '.join(KINDS)}, not {value!r}")


def ids(values: Iterable[str]) -> list[str]:
    """Return the ids as a list of strings that a store can look up (they need not exist)."""
    if isinstance(values, (str, bytes)):
        raise UsageError(f"ids are a list of strings, not the single value {values!r}")
    listed = list(values)
    for value in listed:
        text(value, "an id", MAX_ID)
    return listed


def text(value: str, where: str, limit: int) -> None:
    """Raise UsageError unless the value is a string of at most ``limit`` UTF-8 bytes that every store can keep."""
    if not isinstance(value, str):
        raise UsageError(f"{where} is a string, not {value!r} ({type(value).__name__})")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"{where} is not valid Unicode: {value[:60]!a}") from error
    if "\0" in value:
        raise UsageError(f"{where} holds a NUL character: {value[:60]!r}")
    if size > limit:
        raise UsageError(f"{where} has {size} bytes of UTF-8, at most {limit} are kept: {value[:60]!r}...")


def k(value: int, name: str = "k") -> int:
    """Return how many rows are asked for, or raise UsageError naming the argument."""
    if not _is_int(value) or not 1 <= value <= MAX_K:
        raise UsageError(f"{name} is a whole number from 1 to {MAX_K}, not {value!r}")
    return value


def queries(values: Array, dim: int) -> Array:
    """Return the queries as contiguous float32 (n, dim), all finite."""
    matrix = _as_float32(values, "queries")
    if matrix.ndim != 2:
        raise UsageError(f"queries have the shape (n, {dim}), not {matrix.shape}")
    if matrix.shape[1] != dim:
        raise ModelMismatch(
            f"the queries have {matrix.shape[1]} dimensions and the collection {dim}: "
            "use the model that the collection was made with"
        )
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if bad.size:
        raise UsageError(f"query {bad[0]} holds NaN or infinite values")
    return matrix


def records(values: Sequence[Record]) -> tuple[list[Record], Array]:
    """Check a batch for writing; where an id comes twice the last record wins.

    Returns:
        The records, each id once, and their vectors: float32 (n, dim), in the same order.

    Raises:
        UsageError: names the id and what is wrong with it.
    """
    vectors: dict[str, Array] = {}
    kept: dict[str, Record] = {}
    dim = 0
    for record in values:
        fields(record)
        where = f"record {record.id!r}"
        if record.embedding is None:
            raise UsageError(f"{where} has no embedding")
        vector = _as_float32(record.embedding, f"{where}: the embedding")
        if vector.ndim != 1 or not vector.size:
            raise UsageError(f"{where}: the embedding has the shape (dim,), not {vector.shape}")
        if not np.isfinite(vector).all():
            raise UsageError(f"{where}: the embedding holds NaN or infinite values")
        dim = dim or vector.size
        if vector.size != dim:
            raise UsageError(f"{where} has {vector.size} dimensions, and those before it {dim}")
        kept[record.id] = record
        vectors[record.id] = vector
    if not kept:
        return [], np.zeros((0, 0), np.float32)
    return list(kept.values()), np.stack(list(vectors.values()))


def fields(record: Record) -> None:
    """Check everything in a record but its embedding."""
    if not isinstance(record, Record):
        raise UsageError(f"expected a Record, not {type(record).__name__}")
    text(record.id, "an id", MAX_ID)
    if not record.id:
        raise UsageError("an id is empty")
    where = f"record {record.id!r}"
    kind(record.kind, where)
    text(record.namespace, f"{where}: namespace", MAX_NAMESPACE)
    text(record.source, f"{where}: source", MAX_SOURCE)
    text(record.caption, f"{where}: caption", MAX_CAPTION)
    for name, side in (("width", record.width), ("height", record.height)):
        if not _is_int(side) or not 0 <= side <= MAX_SIDE:
            raise UsageError(f"{where}: {name} is a whole number from 0 to {MAX_SIDE}, not {side!r}")
    metadata_json(record)


def metadata_json(record: Record) -> str:
    """Return the record's metadata as JSON, with nothing escaped that need not be (filters compare keys as bytes)."""
    where = f"record {record.id!r}: metadata"
    if not isinstance(record.metadata, dict):
        raise UsageError(f"{where} is a dictionary, not {type(record.metadata).__name__}")
    _check_json(record.metadata, where, 0)
    encoded = json.dumps(record.metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if len(encoded.encode()) > MAX_METADATA:
        raise UsageError(f"{where} has {len(encoded.encode())} bytes as JSON, at most {MAX_METADATA} are kept")
    return encoded


def _check_json(value: Any, where: str, depth: int) -> None:
    if depth > MAX_METADATA_DEPTH:
        raise UsageError(f"{where} is nested more than {MAX_METADATA_DEPTH} deep")
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        text(value, where, MAX_METADATA)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise UsageError(f"{where}: {value} does not fit in 64 bits; store it as a string")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"{where}: {value} is not a JSON value; leave the key out or use None")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_json(item, where, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            text(key, f"{where}: a key", MAX_METADATA)
            _check_json(item, f"{where}.{key}" if depth < 3 else where, depth + 1)
    else:
        raise UsageError(f"{where}: a {type(value).__name__} is not a JSON value")


def _as_float32(values: Any, where: str) -> Array:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{where}: not an array of numbers ({error})") from error
    if array.dtype.kind not in "fiu":
        raise UsageError(f"{where}: expected numbers (float32), not {array.dtype}")
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
        return np.asarray(array, dtype=np.float32, order="C")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
