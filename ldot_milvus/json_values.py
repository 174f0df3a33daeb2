"""Python values as JSON values, for the metadata of rows: one documented form of each type (docs/collection.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from ldot_milvus.arguments import described
from ldot_milvus.errors import UsageError

MAX_DEPTH = 64


def json_value(value: Any, where: str, depth: int = 0) -> Any:
    """Return a value as plain JSON: ``None``, ``bool``, ``int``, ``float``, ``str``, ``list`` and ``dict`` of ``str``.

    Dates, times and datetimes become ISO 8601 text, with the offset from UTC that they have; sets become sorted lists;
    tuples and arrays lists; NumPy scalars, Decimals and members of an Enum the number or text that they stand for;
    UUIDs and paths text.

    Args:
        value: the value; plain JSON is returned as it is, so that a second call changes nothing.
        where: what it is, for the message.
        depth: how deep the value is nested.

    Raises:
        UsageError: a value has no such form, or is nested more than :data:`MAX_DEPTH` deep.
    """
    if depth > MAX_DEPTH:
        raise UsageError(f"{where} is nested more than {MAX_DEPTH} deep")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {
            _key(key, where): json_value(item, f"{where}.{key}" if depth < 3 else where, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [json_value(item, where, depth + 1) for item in value]
    if isinstance(value, Set):
        items = [json_value(item, where, depth + 1) for item in value]
        return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, Enum):
        return json_value(value.value, where, depth + 1)
    if isinstance(value, (datetime, date, time)) and value == value:  # pandas.NaT differs from itself
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, (UUID, PurePath)):
        return str(value)
    for plain in (bool, int, float, str):  # subclasses, such as of NumPy
        if isinstance(value, plain):
            return plain(value)
    kind_of_array = getattr(getattr(value, "dtype", None), "kind", None)
    if kind_of_array == "M" and getattr(value, "ndim", None) == 0 and value == value:  # numpy.datetime64
        return str(value)
    if kind_of_array in ("b", "i", "u", "f", "U") and callable(getattr(value, "tolist", None)):
        return value.tolist()
    raise UsageError(f"{where}: {described(value)} is not a JSON value: store a text, a number, a list or a dictionary")


def _key(key: Any, where: str) -> str:
    if isinstance(key, Enum):
        key = key.value
    if not isinstance(key, str):
        raise UsageError(f"{where}: a key is a string, not {described(key)}")
    return str(key)
