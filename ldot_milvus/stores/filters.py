"""Filters: parsing of a dictionary into a checked tree, and compilation of the tree for a store.

The meaning is the same in every store (two-valued logic, as in MongoDB):

- All keys of a dictionary, and all operators on a field, must be true. A bare value means ``$eq``.
- ``metadata.a.b`` looks up key ``b`` inside key ``a``. A comparison with a missing key, or with a value of another
  type, is false. Numbers compare with numbers, strings with strings (by code point), booleans with booleans and only
  for equality. ``None`` equals an existing JSON null; a missing key is not null.
- ``$ne``, ``$nin`` and ``$not`` are exact complements, so a missing key satisfies ``{"metadata.a": {"$ne": 1}}``.
- ``{}`` at the top matches every row. An empty ``$in`` matches none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt
from typing import Any

from ldot_milvus.errors import FilterError
from ldot_milvus.stores.base import Record

TEXT_FIELDS = ("id", "kind", "namespace", "source", "caption")
NUMBER_FIELDS = ("width", "height")
COMPARISONS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin")
# SQLite refuses expressions deeper than 1,000, and a chain of ANDs is as deep as it is long.
MAX_CONDITIONS = 500
MAX_DEPTH = 32

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Field:
    """A column, or a value inside ``metadata``.

    Attributes:
        name: name of the column.
        path: keys that lead to a value inside ``metadata``; empty for other columns.
    """

    name: str
    path: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """True for a column of strings."""
        return self.name in TEXT_FIELDS


@dataclass(frozen=True)
class Compare:
    """A comparison of a field with a value; ``operator`` is one of $eq, $gt, $gte, $lt, $lte."""

    field: Field
    operator: str
    value: Scalar


@dataclass(frozen=True)
class In:
    """True if the field equals one of the values; false without values."""

    field: Field
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class And:
    """True if all parts are true; true without parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Or:
    """True if one of the parts is true; there is at least one part."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Not:
    """True if the part is false, and false if it is true."""

    part: Node


Node = Compare | In | And | Or | Not


def parse(filter: Mapping[str, Any] | None) -> Node:
    """Check a filter and parse it into a tree.

    Args:
        filter: the filter; None and ``{}`` become the empty ``And``, which matches every row.

    Raises:
        FilterError: an unknown field or operator, a value of the wrong type, or too many conditions or levels.
    """
    if filter is None or filter == {}:
        return And(())
    node = _parse_filter(filter, 1)
    if _conditions(node) > MAX_CONDITIONS:
        raise FilterError(f"a filter has at most {MAX_CONDITIONS} conditions: use $in for a long list of values")
    return node


def to_sql(node: Node) -> tuple[str, list[Any]]:
    """Compile a tree for SQLite.

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
    if node.field.name == "metadata":
        return _metadata_to_sql(node)
    if isinstance(node, In):
        return f"({node.field.name} IN (SELECT value FROM json_each(?)))", [_json(list(node.values))]
    return f"({node.field.name} {_SQL_OPERATORS[node.operator]} ?)", [node.value]


_SQL_OPERATORS = {"$eq": "=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


def _metadata_to_sql(node: Compare | In) -> tuple[str, list[Any]]:
    path = "$" + "".join(f'."{key}"' for key in node.field.path)
    if isinstance(node, Compare) and node.operator != "$eq":
        types = "= 'text'" if isinstance(node.value, str) else "IN ('integer', 'real')"
        # SQLite's own JSON parser reads both values, because it may read a float differently from Python in the last
        # bit. COALESCE: a missing key gives NULL, which NOT would leave NULL.
        clause = (
            f"COALESCE(json_type(metadata, ?) {types} AND "
            f"json_extract(metadata, ?) {_SQL_OPERATORS[node.operator]} json_extract(?, '$'), 0)"
        )
        return clause, [path, path, _json(node.value)]
    values = node.values if isinstance(node, In) else (node.value,)
    # json_extract returns 1 for true, so true, false and null are recognised by their type alone.
    names = [_json(value) for value in values if value is None or isinstance(value, bool)]
    plain = [value for value in values if not (value is None or isinstance(value, bool))]
    clause = (
        "COALESCE(json_type(metadata, ?) IN (SELECT value FROM json_each(?)) OR "
        "(json_type(metadata, ?) IN ('integer', 'real', 'text') AND "
        "json_extract(metadata, ?) IN (SELECT value FROM json_each(?))), 0)"
    )
    return clause, [path, _json(names), path, path, _json(plain)]


def matches(node: Node, record: Record) -> bool:
    """Whether a row in memory matches; the result is that of :func:`to_sql`."""
    if isinstance(node, Not):
        return not matches(node.part, record)
    if isinstance(node, And):
        return all(matches(part, record) for part in node.parts)
    if isinstance(node, Or):
        return any(matches(part, record) for part in node.parts)
    exists, value = _value_of(node.field, record)
    if not exists:
        return False
    if isinstance(node, In):
        return any(_compares("$eq", value, operand) for operand in node.values)
    return _compares(node.operator, value, node.value)


_PYTHON_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": eq, "$gt": gt, "$gte": ge, "$lt": lt, "$lte": le,
}  # fmt: skip


def _value_of(field: Field, record: Record) -> tuple[bool, Any]:
    """Return whether the row has the field, and its value."""
    value: Any = getattr(record, field.name)
    for key in field.path:
        if not isinstance(value, dict) or key not in value:
            return False, None
        value = value[key]
    return True, value


def _compares(operator: str, value: Any, operand: Scalar) -> bool:
    return _type_name(value) == _type_name(operand) is not None and _PYTHON_OPERATORS[operator](value, operand)


def _type_name(value: Any) -> str | None:
    """Return the type within which a JSON value compares; None for lists and objects, which never compare."""
    if value is None or isinstance(value, bool):
        return repr(type(value))
    return "number" if isinstance(value, (int, float)) else "text" if isinstance(value, str) else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _conditions(node: Node) -> int:
    if isinstance(node, Not):
        return _conditions(node.part)
    if isinstance(node, (And, Or)):
        return sum(_conditions(part) for part in node.parts)
    return 1


def _parse_filter(filter: Any, depth: int) -> Node:
    if not isinstance(filter, Mapping):
        raise FilterError(f'a filter is a dictionary such as {{"width": {{"$gte": 640}}}}, not {_describe(filter)}')
    if not filter:
        raise FilterError("a filter contains an empty filter: leave it out")
    if depth > MAX_DEPTH:
        raise FilterError(f"a filter is nested more than {MAX_DEPTH} deep")
    return _all([_parse_entry(key, value, depth) for key, value in filter.items()])


def _parse_entry(key: Any, value: Any, depth: int) -> Node:
    if key == "$not":
        return Not(_parse_filter(value, depth + 1))
    if key in ("$and", "$or"):
        if not isinstance(value, (list, tuple)) or not value:
            raise FilterError(f"{key} takes a list of at least one filter, not {_describe(value)}")
        parts = tuple(_parse_filter(part, depth + 1) for part in value)
        return And(parts) if key == "$and" else Or(parts)
    field = _parse_field(key)
    return _parse_operators(field, key, value if isinstance(value, Mapping) else {"$eq": value}, depth)


def _parse_field(key: Any) -> Field:
    if key in TEXT_FIELDS or key in NUMBER_FIELDS:
        return Field(key)
    if isinstance(key, str) and key.startswith("$"):
        raise FilterError(
            f"unknown operator {key!r} where a field is expected: use $and, $or or $not, "
            f"or put {', '.join(COMPARISONS)} inside a field"
        )
    if isinstance(key, str) and key.startswith("metadata."):
        path = tuple(key.split(".")[1:])
        if not all(path) or any(char in "'\"\\" or ord(char) < 32 or ord(char) == 127 for char in key):
            raise FilterError(
                f"bad metadata path {key!r}: join keys with dots; a key is not empty and has no quotes, "
                "backslashes or control characters"
            )
        _check_text(key, "a field name")
        return Field("metadata", path)
    raise FilterError(
        f"unknown field {key!r}: use {', '.join(TEXT_FIELDS + NUMBER_FIELDS)} or metadata.KEY (dots for nested keys)"
    )


def _parse_operators(field: Field, key: str, operators: Mapping[Any, Any], depth: int) -> Node:
    if not operators:
        raise FilterError(f"{key}: no operator given; use {', '.join(COMPARISONS)} or $not")
    if depth > MAX_DEPTH:
        raise FilterError(f"a filter is nested more than {MAX_DEPTH} deep")
    return _all([_parse_operator(field, key, operator, value, depth) for operator, value in operators.items()])


def _parse_operator(field: Field, key: str, operator: Any, value: Any, depth: int) -> Node:
    if operator == "$not":
        if not isinstance(value, Mapping):
            raise FilterError(f'{key}: $not takes operators such as {{"$gt": 5}}, not {_describe(value)}; or use $ne')
        return Not(_parse_operators(field, key, value, depth + 1))
    if operator not in COMPARISONS:
        raise FilterError(f"{key}: unknown operator {operator!r}; use {', '.join(COMPARISONS)} or $not")
    if operator in ("$in", "$nin"):
        if not isinstance(value, (list, tuple)):
            raise FilterError(f"{key}: {operator} takes a list, not {_describe(value)}")
        among = In(field, tuple(_check_value(field, f"{key}: {operator}", item) for item in value))
        return among if operator == "$in" else Not(among)
    checked = _check_value(field, f"{key}: {operator}", value)
    if operator == "$ne":
        return Not(Compare(field, "$eq", checked))
    if operator != "$eq" and (checked is None or isinstance(checked, bool)):
        raise FilterError(f"{key}: {operator} takes a number or a string, not {_describe(value)}")
    return Compare(field, operator, checked)


def _check_value(field: Field, where: str, value: Any) -> Scalar:
    if field.is_text:
        allowed, accepted = "a string", isinstance(value, str)
    elif field.path:
        allowed = "a string, a number, true, false or null"
        accepted = value is None or isinstance(value, (str, int, float))
    else:
        allowed, accepted = "a number", isinstance(value, (int, float)) and not isinstance(value, bool)
    if not accepted:
        raise FilterError(f"{where} takes {allowed}, not {_describe(value)}")
    if isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise FilterError(f"{where} takes a finite number, not {value}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        # No row can contain such a number; SQLite and Milvus would round it silently.
        raise FilterError(f"{where}: {value} does not fit in 64 bits: give a smaller number")
    checked: Scalar = value
    return checked


def _check_text(value: str, where: str) -> None:
    # No row contains a NUL (SQLite's JSON functions cut a string there) or half a surrogate pair.
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise FilterError(f"{where}: {_describe(value)} contains a NUL character or is not valid Unicode")


def _all(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _describe(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) else repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
