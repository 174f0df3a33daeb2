"""Compilation of filters to SQL for SQLite."""

from __future__ import annotations

import json
import sqlite3
from functools import lru_cache
from typing import Any

from ldot_milvus.stores.filter_match import MISSING, at
from ldot_milvus.stores.filter_patterns import glob
from ldot_milvus.stores.filter_values import Time, Value, microseconds
from ldot_milvus.stores.filters import And, Compare, Condition, Contains, Exists, Field, In, Like, Node, Not, Or

Sql = tuple[str, list[Any]]
"""An SQL expression and its parameters."""

_OPERATORS = {"$eq": "=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


def add_functions(connection: sqlite3.Connection) -> None:
    """Define the functions that compiled filters call, in a new connection."""
    connection.create_function("ldot_time", 1, _time, deterministic=True)
    connection.create_function("ldot_at", 2, _at, deterministic=True)


def to_sql(node: Node) -> Sql:
    """Compile a tree.

    Returns:
        An SQL expression over the columns of the local store, whose value is 0 or 1, and its parameters.
    """
    if isinstance(node, Not):
        clause, params = to_sql(node.part)
        return f"NOT {clause}", params
    if isinstance(node, (And, Or)):
        if not node.parts:
            return "1", []
        compiled = [to_sql(part) for part in node.parts]
        word = " AND " if isinstance(node, And) else " OR "
        return f"({word.join(clause for clause, _ in compiled)})", [value for _, values in compiled for value in values]
    if node.field.path:
        return _metadata(node)
    name = node.field.name
    if isinstance(node, In):
        return f"({name} IN (SELECT value FROM json_each(?)))", [_json(list(node.values))]
    if isinstance(node, Like):
        return f"({name} GLOB ?)", [glob(node.pattern)]
    assert isinstance(node, Compare)
    return f"({name} {_OPERATORS[node.operator]} ?)", [node.value]


class _Place:
    """SQL for a place in ``metadata``, each piece with its parameters.

    SQLite's paths have no escapes and do not look for a list's element and an object's key at once; such a path is
    followed in Python.
    """

    def __init__(self, field: Field) -> None:
        simple = all(key and not key.isdigit() and not any(c in '"\\' or c < " " for c in key) for key in field.path)
        source, given = ("metadata", []) if simple else ("ldot_at(metadata, ?)", [_json(list(field.path))])
        path = "$" + "".join(f'."{key}"' for key in field.path) if simple else "$"
        self.params = [*given, path]
        self.type = f"json_type({source}, ?)"
        self.value = f"json_extract({source}, ?)"
        self.elements = f"json_each({source}, ?)"


def _metadata(node: Condition) -> Sql:
    place = _Place(node.field)
    if isinstance(node, Exists):
        return f"({place.type} IS NOT NULL)", place.params
    if isinstance(node, Contains):
        equal, params = _equal("type", "atom", [], (node.value,))
        clause = f"{place.type} = 'array' AND EXISTS (SELECT 1 FROM {place.elements} WHERE {equal})"
        return _truth(clause), [*place.params, *place.params, *params]
    if isinstance(node, Like):
        clause = f"{place.type} = 'text' AND {place.value} GLOB ?"
        return _truth(clause), [*place.params, *place.params, glob(node.pattern)]
    if isinstance(node, In):
        equal, params = _equal(place.type, place.value, place.params, node.values)
    elif node.operator == "$eq":
        equal, params = _equal(place.type, place.value, place.params, (node.value,))
    else:
        equal, params = _order(place, node.operator, node.value)
    return _truth(equal), params


def _truth(clause: str) -> str:
    """Return 1 or 0: a missing key gives NULL, which NOT would leave NULL. WHEN stops at the first false part."""
    return f"(CASE WHEN {clause} THEN 1 ELSE 0 END)"


def _order(place: _Place, operator: str, operand: Value) -> Sql:
    if isinstance(operand, Time):
        lowest, above = operand.bounds(operator)  # tested first, since ldot_time calls Python
        clause = (
            f"{place.type} = 'text' AND {place.value} >= ? AND {place.value} < ? AND "
            f"ldot_time({place.value}) {_OPERATORS[operator]} ?"
        )
        own = place.params
        return clause, [*own, *own, lowest, *own, above, *own, operand.microseconds]
    types = "= 'text'" if isinstance(operand, str) else "IN ('integer', 'real')"
    # SQLite's own JSON parser reads both values, because it may read a float differently from Python in the last bit.
    clause = f"{place.type} {types} AND {place.value} {_OPERATORS[operator]} json_extract(?, '$')"
    return clause, [*place.params, *place.params, _json(operand)]


def _equal(type: str, value: str, own: list[Any], values: tuple[Value, ...]) -> Sql:
    """Compile a comparison of one JSON value with several.

    Args:
        type: SQL for the type of the value.
        value: SQL for the value.
        own: parameters of each of the two.
        values: values of which one must be equal.
    """
    # json_extract returns 1 for true, so true, false and null are recognised by their type alone.
    names = [_json(one) for one in values if one is None or isinstance(one, bool)]
    plain = [one for one in values if not (one is None or isinstance(one, (bool, Time)))]
    moments = [one for one in values if isinstance(one, Time)]
    tests: list[str] = []
    params: list[Any] = []
    if plain or not values:
        tests.append(f"{type} IN ('integer', 'real', 'text') AND {value} IN (SELECT value FROM json_each(?))")
        params += [*own, *own, _json(plain)]
    if names:
        tests.append(f"{type} IN (SELECT value FROM json_each(?))")
        params += [*own, _json(names)]
    if moments:
        bounds = [moment.bounds("$eq") for moment in moments]
        tests.append(
            f"{type} = 'text' AND {value} >= ? AND {value} < ? AND "
            f"ldot_time({value}) IN (SELECT value FROM json_each(?))"
        )
        lowest, above = min(low for low, _ in bounds), max(high for _, high in bounds)
        params += [*own, *own, lowest, *own, above, *own, _json([moment.microseconds for moment in moments])]
    return f"({' OR '.join(f'({test})' for test in tests)})", params


def _time(value: Any) -> int | None:
    return microseconds(value) if isinstance(value, str) else None


@lru_cache(maxsize=16)  # a condition asks for the type and the value of one row after the other
def _at(metadata: str, path: str) -> str | None:
    found = at(json.loads(metadata), _path(path))
    return None if found is MISSING else _json(found)


@lru_cache(maxsize=256)
def _path(path: str) -> tuple[str, ...]:
    return tuple(json.loads(path))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
