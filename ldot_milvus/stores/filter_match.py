"""The meaning of filters, as a predicate on a row in memory. Every store finds the rows for which it is true.

It is also what a store falls back to where its database cannot evaluate a condition as we define it.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import eq, ge, gt, le, lt
from typing import Any

from ldot_milvus.stores import filter_patterns
from ldot_milvus.stores.base import Record
from ldot_milvus.stores.filter_values import Time, Value, microseconds
from ldot_milvus.stores.filters import And, Condition, Contains, Exists, Field, In, Like, Node, Not, Or

Test = Callable[[Any], bool]
MISSING = object()
"""Stands for the value of a field that a row does not have."""

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {"$eq": eq, "$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}


def predicate(node: Node) -> Callable[[Record], bool]:
    """Return a function that tells whether a row matches."""
    if isinstance(node, Not):
        inner = predicate(node.part)
        return lambda record: not inner(record)
    if isinstance(node, (And, Or)):
        parts = [predicate(part) for part in node.parts]
        join = all if isinstance(node, And) else any
        return lambda record: join(part(record) for part in parts)
    field, test = node.field, _test(node)
    return lambda record: test(value_of(field, record))


def value_of(field: Field, record: Record) -> Any:
    """Return the value of a field, or :data:`MISSING`."""
    return at(getattr(record, field.name), field.path)


def at(value: Any, path: tuple[str, ...]) -> Any:
    """Return what a path leads to from a JSON value, or :data:`MISSING`; digits are also the index into a list."""
    for key in path:
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and _is_index(key) and int(key) < len(value):
            value = value[int(key)]
        else:
            return MISSING
    return value


def type_name(value: Any) -> str:
    """Return the type within which a JSON value compares; values of other types never match."""
    if isinstance(value, bool):
        return "boolean"
    names = {int: "number", float: "number", str: "text", type(None): "null", list: "list", dict: "object"}
    return names.get(type(value), "time" if isinstance(value, Time) else "missing")


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdigit() and (key[0] != "0" or key == "0") and len(key) < 10


def _test(node: Condition) -> Test:
    if isinstance(node, Exists):
        return lambda value: value is not MISSING
    if isinstance(node, Like):
        matches = filter_patterns.predicate(node.pattern)
        return lambda value: isinstance(value, str) and matches(value)
    if isinstance(node, Contains):
        same = _equals((node.value,))
        return lambda value: isinstance(value, list) and any(map(same, value))
    if isinstance(node, In):
        return _equals(node.values)
    if node.operator == "$eq":
        return _equals((node.value,))
    compare, operand = _OPERATORS[node.operator], node.value
    if isinstance(operand, Time):
        moment = operand.microseconds
        return lambda value: (then := _moment(value)) is not None and compare(then, moment)
    kind = type_name(operand)
    return lambda value: type_name(value) == kind and compare(value, operand)


def _equals(values: tuple[Value, ...]) -> Test:
    plain = {(type_name(value), value) for value in values if not isinstance(value, Time)}
    moments = {value.microseconds for value in values if isinstance(value, Time)}

    def test(value: Any) -> bool:
        kind = type_name(value)
        if kind in ("list", "object", "missing"):
            return False
        return (kind, value) in plain or (bool(moments) and _moment(value) in moments)

    return test


def _moment(value: Any) -> int | None:
    return microseconds(value) if isinstance(value, str) else None
