"""Checks of the arguments of every store, made before anything is written.

Lengths are in bytes of UTF-8, as Milvus counts VARCHAR.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np

from ldot_milvus.arguments import described, listed, shown, to_array, whole_number
from ldot_milvus.errors import CollectionNotFound, ModelMismatch, RowNotFound, UsageError
from ldot_milvus.json_values import json_value
from ldot_milvus.settings import COLLECTION_NAME
from ldot_milvus.stores.base import KINDS, MODEL_SOURCE, Array, Filter, Record, VectorStore

MAX_ID = 64
MAX_NAMESPACE = 64
MAX_SOURCE = 4096
MAX_CAPTION = 8192
MAX_METADATA = 65536
MAX_K = 16384
MAX_SIDE = 2**31 - 1


def collection_name(name: str) -> str:
    """Return the name, or raise UsageError if Milvus would not accept it."""
    if not isinstance(name, str) or not COLLECTION_NAME.fullmatch(name):
        raise UsageError(
            f"bad collection name {name!r}: use at most 255 letters, digits and underscores, and no digit first"
        )
    return name


def model_and_dim(model: str, dim: int) -> int:
    """Return ``dim``, or raise UsageError unless it is at least 1 and ``model`` a non-empty string."""
    if not isinstance(model, str) or not model:
        raise UsageError(f"a model's fingerprint is a non-empty string, not {model!r}")
    return whole_number(dim, "the dimension of the vectors", 1)


def same_model(
    store: VectorStore, stored: tuple[str | None, int], model: str, dim: int, properties: Mapping[str, str]
) -> None:
    """Raise ModelMismatch unless a collection belongs to a model or can be bound to it.

    Args:
        store: the collection, for the message.
        stored: fingerprint (None if no model is bound) and dimension of the collection.
        model: fingerprint of the model.
        dim: dimension of the model's vectors.
        properties: properties of the collection, for the message.
    """
    stored_model, stored_dim = stored
    if stored_dim != dim or stored_model not in (None, model):
        raise ModelMismatch(
            filled_with(store, properties)
            or f"collection {store.collection!r} of {store.address} contains vectors of model "
            f"{stored_model or 'unknown'} ({stored_dim} dimensions), not of {model} ({dim}): choose another "
            "collection name, or ingest again with the new model into a new collection"
        )


def filled_with(store: VectorStore, properties: Mapping[str, str]) -> str | None:
    """Return the message for another model than the hub model that filled a collection; None if none is recorded."""
    source = properties.get(MODEL_SOURCE)
    if source is None:
        return None
    return (
        f"collection {store.collection!r} of {store.address} was filled with {source}: set LDOT_MODEL={source} (or "
        "--model), or ingest into another collection"
    )


def same_width(store: VectorStore, stored_dim: int, records: Sequence[Record], vectors: Array) -> None:
    """Raise ModelMismatch unless the vectors have the dimension of the collection.

    Args:
        store: the collection, for the message.
        stored_dim: dimension of the collection.
        records: checked records, at least one.
        vectors: their vectors, float32 (n, dim).
    """
    if stored_dim != vectors.shape[1]:
        raise ModelMismatch(
            f"record {records[0].id!r} has {vectors.shape[1]} dimensions and collection {store.collection!r} of "
            f"{store.address} has {stored_dim}: use the model that filled it, or another collection name"
        )


def not_found(store: VectorStore, names: Iterable[str]) -> CollectionNotFound:
    """Return the error for a search in a collection that does not exist.

    Args:
        store: the collection.
        names: names of the existing collections, for the message.
    """
    existing = ", ".join(sorted(names))
    return CollectionNotFound(
        f"{store.address} has no collection {store.collection!r} yet: ingest into it first"
        + (f" (existing collections: {existing})" if existing else "")
    )


def row_not_found(id: str) -> RowNotFound:
    """Return the error for an id that no row of a collection has."""
    return RowNotFound(f"the collection has no row {shown(repr(id))}: give the id of an earlier hit")


def existing_dim(store: VectorStore) -> int:
    """Return the dimension of a collection, or raise CollectionNotFound if it does not exist."""
    dim = store.dim
    if dim is None:
        raise CollectionNotFound(f"{store.address} has no collection {store.collection!r}: name it with --collection")
    return dim


def ids_or_filter(ids: Sequence[str] | None, filter: Filter | None) -> None:
    """Raise UsageError unless exactly one of the arguments of ``delete`` is given, and the filter is not empty."""
    if (ids is None) == (filter is None):
        raise UsageError("delete takes either ids or a filter: give exactly one of them")
    if filter == {}:
        raise UsageError("an empty filter would delete every row: to delete every row, use {'id': {'$ne': ''}}")


def kind(value: str, where: str) -> None:
    """Raise UsageError unless the value is one of :data:`KINDS`; the message begins with ``where``."""
    if value not in KINDS:
        raise UsageError(f"{where}: kind is one of {', '.join(KINDS)}, not {value!r}")


def ids(values: Iterable[str]) -> list[str]:
    """Return the ids as a list, or raise UsageError if one of them is not a valid id; they need not exist."""
    if isinstance(values, (str, bytes)):
        raise UsageError(f"ids are a list of strings, not the single value {values!r}")
    return [an_id(value) for value in listed(values, "ids")]


def an_id(value: str | UUID) -> str:
    """Return an id as a string; a UUID becomes its text. Numbers are refused, since 7 and "7" would be one id."""
    return text(str(value) if isinstance(value, UUID) else value, "an id", MAX_ID)


def text(value: str, where: str, limit: int) -> str:
    """Return a string of at most ``limit`` bytes that every store accepts, or raise UsageError."""
    if not isinstance(value, str):
        raise UsageError(f"{where} is a string, not {described(value)}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"{where} is not valid Unicode: {value[:60]!a}") from error
    if "\0" in value:
        raise UsageError(f"{where} contains a NUL character: {value[:60]!r}")
    if size > limit:
        raise UsageError(f"{where} has {size} bytes of UTF-8, and at most {limit} are allowed: {value[:60]!r}...")
    return str(value)  # NumPy has a subclass


def k(value: int, name: str = "k") -> int:
    """Return a number of rows, or raise UsageError, with the argument's name, if it is out of range."""
    return whole_number(value, name, 1, MAX_K)


def queries(values: Array, dim: int) -> Array:
    """Return the queries as contiguous float32 (n, dim).

    Raises:
        UsageError: the queries are not a finite matrix of numbers.
        ModelMismatch: the queries have another dimension.
    """
    matrix = _as_float32(values, "queries")
    if matrix.ndim != 2:
        raise UsageError(f"queries have the shape (n, {dim}), not {matrix.shape}")
    if matrix.shape[1] != dim:
        raise ModelMismatch(
            f"the queries have {matrix.shape[1]} dimensions and the collection has {dim}: "
            "use the model that filled the collection"
        )
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if bad.size:
        raise UsageError(f"query {bad[0]} contains NaN or infinite values")
    return matrix


def records(values: Iterable[Record]) -> tuple[list[Record], Array]:
    """Check records before they are written; the last record of an id wins.

    Returns:
        The records, each id once, and their vectors in the same order, float32 (n, dim).

    Raises:
        UsageError: a field or an embedding is not valid; the message names the id.
    """
    vectors: dict[str, Array] = {}
    kept: dict[str, Record] = {}
    dim = 0
    for record in plain(values):
        where = f"record {record.id!r}"
        if record.embedding is None:
            raise UsageError(f"{where} has no embedding")
        vector = _as_float32(record.embedding, f"{where}: the embedding")
        if vector.ndim != 1 or not vector.size:
            raise UsageError(f"{where}: the embedding has the shape (dim,), not {vector.shape}")
        if not np.isfinite(vector).all():
            raise UsageError(f"{where}: the embedding contains NaN or infinite values")
        dim = dim or vector.size
        if vector.size != dim:
            raise UsageError(f"{where} has {vector.size} dimensions, and those before it {dim}")
        kept[record.id] = record
        vectors[record.id] = vector
    if not kept:
        return [], np.zeros((0, 0), np.float32)
    return list(kept.values()), np.stack(list(vectors.values()))


def plain(values: Iterable[Record]) -> Iterator[Record]:
    """Iterate over records as :func:`fields` returns them."""
    return map(fields, listed(values, "records"))


def fields(record: Record) -> Record:
    """Return a record whose fields are plain values: an id as text, sides as ``int``, metadata as JSON values.

    Raises:
        UsageError: a field other than the embedding is not valid.
    """
    if not isinstance(record, Record):
        raise UsageError(f"expected a Record, not {described(record)}")
    id = an_id(record.id)
    if not id:
        raise UsageError("an id is empty")
    where = f"record {id!r}"
    kind(record.kind, where)
    checked = replace(
        record,
        id=id,
        namespace=text(record.namespace, f"{where}: namespace", MAX_NAMESPACE),
        source=text(record.source, f"{where}: source", MAX_SOURCE),
        caption=text(record.caption, f"{where}: caption", MAX_CAPTION),
        width=whole_number(record.width, f"{where}: width", 0, MAX_SIDE),
        height=whole_number(record.height, f"{where}: height", 0, MAX_SIDE),
        metadata=_json_object(record),
    )
    metadata_json(checked)
    return checked


def metadata_json(record: Record) -> str:
    """Return the plain metadata of a record as JSON, with as few escapes as possible: filters compare keys as bytes.

    Raises:
        UsageError: the metadata is not a JSON object, or is too long.
    """
    where = f"record {record.id!r}: metadata"
    _check_json(record.metadata, where, 0)
    encoded = json.dumps(record.metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if len(encoded.encode()) > MAX_METADATA:
        raise UsageError(f"{where} has {len(encoded.encode())} bytes as JSON, and at most {MAX_METADATA} are allowed")
    return encoded


def _json_object(record: Record) -> dict[str, Any]:
    where = f"record {record.id!r}: metadata"
    if not isinstance(record.metadata, Mapping):
        raise UsageError(f"{where} is a dictionary, not {described(record.metadata)}")
    plain: dict[str, Any] = json_value(record.metadata, where)
    return plain


def _check_json(value: Any, where: str, depth: int) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        text(value, where, MAX_METADATA)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise UsageError(f"{where}: {value} does not fit in 64 bits: store it as a string")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"{where}: {value} is not a JSON value: leave the key out or use None")
    elif isinstance(value, list):
        for item in value:
            _check_json(item, where, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            text(key, f"{where}: a key", MAX_METADATA)
            _check_json(item, f"{where}.{key}" if depth < 3 else where, depth + 1)


def _as_float32(values: Any, where: str) -> Array:
    try:
        array = to_array(values)
    except ValueError as error:
        raise UsageError(f"{where}: not an array of numbers ({error})") from error
    if array.dtype.kind not in "fiu":
        raise UsageError(f"{where}: expected numbers (float32), not {array.dtype}")
    with np.errstate(over="ignore"):  # values out of range become infinite, and are refused later
        return np.asarray(array, dtype=np.float32, order="C")
