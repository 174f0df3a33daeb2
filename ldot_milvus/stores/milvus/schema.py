"""The Milvus schema of a collection (``docs/collection.md``), and conversion of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldot_milvus.errors import StoreError
from ldot_milvus.stores import validation
from ldot_milvus.stores.base import SCHEMA_VERSION, VERSION, Array, Record
from ldot_milvus.stores.index_spec import IndexSpec

VECTOR = "embedding"
FIELDS = ("id", "kind", "namespace", "source", "caption", "width", "height", "metadata")
"""All fields except the vector."""

PREFIX = "ldot."
"""Prefix of the names of our properties on the server."""

MODEL = f"{PREFIX}model"
"""Name of the collection property with the model's fingerprint. The description has it too, but Milvus Lite stores no
description, and only a property can be set later."""


@dataclass(frozen=True)
class Described:
    """An existing collection.

    Attributes:
        name: name of the collection itself, also if an alias was asked for.
        dim: dimension of the vectors.
        model: fingerprint of the model; None if none is bound.
        index: index type, and search parameters where the caller gave them.
        properties: see :attr:`VectorStore.properties`.
    """

    name: str
    dim: int
    model: str | None
    index: IndexSpec
    properties: dict[str, str]


def new_properties(model: str | None) -> dict[str, str]:
    """Return the properties of a new collection on the server."""
    version = {PREFIX + VERSION: str(SCHEMA_VERSION)}
    return {**version, MODEL: model} if model else version


def schema(dim: int, model: str | None) -> Any:
    """Return the ``CollectionSchema`` of a new collection.

    Args:
        dim: dimension of the vectors.
        model: fingerprint of the model; None if none is bound.
    """
    from pymilvus import DataType, MilvusClient

    about = json.dumps({"model": model, "dim": dim, VERSION: SCHEMA_VERSION})
    made = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=about)
    made.add_field("id", DataType.VARCHAR, is_primary=True, max_length=validation.MAX_ID)
    made.add_field("kind", DataType.VARCHAR, max_length=8)
    made.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dim)
    made.add_field("namespace", DataType.VARCHAR, max_length=validation.MAX_NAMESPACE, is_partition_key=True)
    made.add_field("source", DataType.VARCHAR, max_length=validation.MAX_SOURCE)
    made.add_field("caption", DataType.VARCHAR, max_length=validation.MAX_CAPTION)
    made.add_field("width", DataType.INT32)
    made.add_field("height", DataType.INT32)
    made.add_field("metadata", DataType.JSON)
    return made


def index_params(spec: IndexSpec, dim: int) -> Any:
    """Return the ``IndexParams`` of the vector field, for vectors of dimension ``dim``."""
    from pymilvus import MilvusClient

    params = MilvusClient.prepare_index_params()
    params.add_index(VECTOR, index_type=spec.index_type, metric_type="IP", params=spec.build_params(dim))
    return params


def read_description(answer: Mapping[str, Any], index: Mapping[str, Any], address: str, asked: str) -> Described:
    """Parse a server's description of a collection.

    Args:
        answer: response of ``describe_collection``.
        index: response of ``describe_index``; empty without an index.
        address: address of the store, for messages.
        asked: requested name, possibly an alias, for messages.

    Raises:
        StoreError: the collection has another schema or metric, or a newer version wrote it.
    """
    fields = {field["name"]: field for field in answer["fields"]}
    missing = [name for name in (*FIELDS, VECTOR) if name not in fields]
    if missing:
        raise StoreError(
            f"collection {asked!r} of {address} is not one of ldot-milvus: it has no field {', '.join(missing)} "
            "(docs/collection.md lists them); choose another collection name"
        )
    metric = index.get("metric_type", "IP")
    if metric != "IP":
        raise StoreError(
            f"collection {asked!r} of {address} compares by {metric}: LightningDOT needs the inner product (IP); "
            "choose another collection name and ingest again"
        )
    about = _json_object(answer.get("description"))
    on_server = answer.get("properties") or {}
    properties = {VERSION: str(about.get(VERSION, 1))}
    properties |= {k.removeprefix(PREFIX): str(v) for k, v in on_server.items() if k.startswith(PREFIX) and k != MODEL}
    if int(properties[VERSION]) > SCHEMA_VERSION:
        raise StoreError(
            f"collection {asked!r} of {address} was made by a newer ldot-milvus (schema version {properties[VERSION]}; "
            f"this one reads up to {SCHEMA_VERSION}): upgrade ldot-milvus, or choose another collection name"
        )
    return Described(
        name=str(answer["collection_name"]),
        dim=int(fields[VECTOR]["params"]["dim"]),
        model=on_server.get(MODEL) or about.get("model") or None,
        index=IndexSpec(str(index.get("index_type", "FLAT"))),
        properties=properties,
    )


def next_name(name: str, alias: str, address: str) -> str:
    """Return the name of the collection that replaces one.

    Args:
        name: name of the collection that is replaced.
        alias: its alias.
        address: address of the server, for the message.

    Raises:
        StoreError: the collection has no number after its alias, because another program created it.
    """
    head, _, number = name.rpartition("__")
    if not (head == alias and number.isdigit()):
        raise StoreError(
            f"{alias!r} of {address} is a collection and not an alias, so it cannot be replaced atomically: migrate it "
            "into a collection that ldot-milvus creates"
        )
    return f"{head}__{int(number) + 1}"


def creation(dim: int, model: str | None, spec: IndexSpec, version: tuple[int, int]) -> dict[str, Any]:
    """Return the arguments of ``MilvusClient.create_collection``.

    Args:
        dim: dimension of the vectors.
        model: fingerprint of the model; None for none.
        spec: index to build.
        version: major and minor version of the server.
    """
    options: dict[str, Any] = {"properties": new_properties(model), "consistency_level": "Bounded"}
    if version < (2, 4):
        # Milvus 2.3 upserts rows into other partitions than those that filters on the partition key search.
        options["num_partitions"] = 1
    return {"schema": schema(dim, model), "index_params": index_params(spec, dim), **options}


def row(record: Record, vector: Array) -> dict[str, Any]:
    """Return a checked record and its vector, float32 (dim,), as pymilvus takes them."""
    return {**{name: getattr(record, name) for name in FIELDS}, VECTOR: vector.tolist()}


def output_fields(with_embeddings: bool = False) -> list[str]:
    """Return the names of the fields that :func:`record` reads."""
    return [*FIELDS, VECTOR] if with_embeddings else list(FIELDS)


def record(entity: Mapping[str, Any]) -> Record:
    """Return the record for an entity in the response of a query or a search."""
    metadata = entity["metadata"]
    if isinstance(metadata, (str, bytes)):
        metadata = json.loads(metadata)
    vector = entity.get(VECTOR)
    return Record(
        embedding=None if vector is None else np.asarray(vector, np.float32),
        metadata=metadata,
        **{name: entity[name] for name in FIELDS if name != "metadata"},
    )


def _json_object(text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
