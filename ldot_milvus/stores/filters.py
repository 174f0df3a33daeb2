"""Filters: parsing of a dictionary into a checked tree, which each store compiles.

``docs/filters.md`` defines the meaning, which is the same in every store (two-valued logic, as in MongoDB);
:mod:`~ldot_milvus.stores.filter_match` is the reference.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ldot_milvus.errors import FilterError, printable
from ldot_milvus.stores.filter_patterns import Tokens, tokens
from ldot_milvus.stores.filter_values import Scalar, Time, Value, listed, microseconds, plain

TEXT_FIELDS = ("id", "kind", "namespace", "source", "caption")
NUMBER_FIELDS = ("width", "height")
OPERATORS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$like", "$contains", "$exists", "$not")
"""Operators on a field."""
# SQLite refuses expressions deeper than 1,000, and a chain of ANDs is as deep as it is long.
MAX_CONDITIONS = 500
MAX_DEPTH = 32
MAX_PATTERN = 8192  # bytes; SQLite takes 50,000 after each of them may have become three

_KEY = r"""[^.\[\]"'\\\x00-\x1f\x7f]+"""
_PART = re.compile(rf"""\.(?P<key>{_KEY})|\[(?P<index>0|[1-9][0-9]*)\]|\[(?P<quoted>"(?:[^"\\]|\\.)*")\]""")


@dataclass(frozen=True)
class Field:
    """A column, or a value inside ``metadata``.

    Attributes:
        name: name of the column.
        path: keys that lead to a value inside ``metadata``, of which digits are also the index into a list; empty for
            other columns.
    """

    name: str
    path: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """True for a column of strings."""
        return self.name in TEXT_FIELDS

    def __str__(self) -> str:
        keys = (
            f".{key}" if re.fullmatch(_KEY, key) else f"[{json.dumps(key, ensure_ascii=False)}]" for key in self.path
        )
        return self.name + "".join(keys)


@dataclass(frozen=True)
class Compare:
    """A comparison of a field with a value; ``operator`` is one of $eq, $gt, $gte, $lt, $lte."""

    field: Field
    operator: str
    value: Value


@dataclass(frozen=True)
class In:
    """True if the field equals one of the values; false without values."""

    field: Field
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Contains:
    """True if the field is a list with an element that equals the value."""

    field: Field
    value: Value


@dataclass(frozen=True)
class Exists:
    """True if the row has the field, be it null."""

    field: Field


@dataclass(frozen=True)
class Like:
    """True if the field is a text that the whole pattern matches."""

    field: Field
    pattern: Tokens


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


Condition = Compare | In | Contains | Exists | Like
Node = Condition | And | Or | Not


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
    if sum(1 for _ in conditions(node)) > MAX_CONDITIONS:
        raise FilterError(f"a filter has at most {MAX_CONDITIONS} conditions: use $in for a long list of values")
    return node


def conditions(node: Node) -> Iterator[Condition]:
    """Yield the conditions of a tree from left to right."""
    if isinstance(node, Not):
        yield from conditions(node.part)
    elif isinstance(node, (And, Or)):
        for part in node.parts:
            yield from conditions(part)
    else:
        yield node


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
    return _parse_operators(field, printable(key), value if isinstance(value, Mapping) else {"$eq": value}, depth)


def _parse_field(key: Any) -> Field:
    if key in TEXT_FIELDS or key in NUMBER_FIELDS:
        return Field(key)
    if isinstance(key, str) and key.startswith("$"):
        raise FilterError(
            f"unknown operator {key!r} where a field is expected: use $and, $or or $not, "
            f"or put {', '.join(OPERATORS)} inside a field"
        )
    if isinstance(key, str) and re.match(r"metadata[.\[]", key):
        path = _parse_path(key)
        for part in path:
            _check_text(part, "a field name")
        return Field("metadata", path)
    fields = (*TEXT_FIELDS, *NUMBER_FIELDS)
    raise FilterError(
        f"unknown field {key!r}{_meant(key, fields)}: use {', '.join(fields)} or metadata.KEY (dots for nested keys)"
    )


def _meant(key: Any, fields: tuple[str, ...]) -> str:
    """Return what an unknown field was probably meant to be."""
    if not isinstance(key, str) or not key or key == "metadata":
        return ""
    near = get_close_matches(key, fields, 1, 0.75)
    return f" (did you mean {near[0]}?)" if near else f" (a field of your own is {Field('metadata', (key,))})"


def _parse_path(key: str) -> tuple[str, ...]:
    """Split ``metadata.a["b.c"][0]`` into its keys."""
    path: list[str] = []
    place = len("metadata")
    while place < len(key):
        found = _PART.match(key, place)
        if found is None:
            raise FilterError(
                f"bad metadata path {key!r}: join keys with dots, and write a key with dots, quotes or brackets as in "
                'metadata["a.b"]'
            )
        path.append(found["key"] or found["index"] or _unquoted(found["quoted"], key))
        place = found.end()
    return tuple(path)


def _unquoted(quoted: str, key: str) -> str:
    try:
        return str(json.loads(quoted))
    except ValueError as error:
        raise FilterError(f"bad metadata path {key!r}: a key in quotes is a JSON string ({error})") from error


def _parse_operators(field: Field, key: str, operators: Mapping[Any, Any], depth: int) -> Node:
    if not operators:
        raise FilterError(f"{key}: no operator given; use {', '.join(OPERATORS)}")
    if depth > MAX_DEPTH:
        raise FilterError(f"a filter is nested more than {MAX_DEPTH} deep")
    return _all([_parse_operator(field, key, operator, value, depth) for operator, value in operators.items()])


def _parse_operator(field: Field, key: str, operator: Any, value: Any, depth: int) -> Node:
    where = f"{key}: {operator}"
    if operator not in OPERATORS:
        raise FilterError(
            f"{key}: unknown operator {operator!r}{_hint(field, key, operator)}; use {', '.join(OPERATORS)}"
        )
    if operator == "$not":
        if not isinstance(value, Mapping):
            raise FilterError(f'{key}: $not takes operators such as {{"$gt": 5}}, not {_describe(value)}; or use $ne')
        return Not(_parse_operators(field, key, value, depth + 1))
    if operator in ("$contains", "$exists") and not field.path:
        other = "$like" if operator == "$contains" and field.is_text else "$eq or $in"
        raise FilterError(f"{where} applies to metadata.KEY, not to a column: use {other}")
    if operator == "$exists":
        value = plain(value)
        if not isinstance(value, bool):
            raise FilterError(f"{where} takes true or false, not {_describe(value)}")
        return Exists(field) if value else Not(Exists(field))
    if operator == "$like":
        return Like(field, _parse_pattern(field, where, value))
    if operator in ("$in", "$nin"):
        members = listed(value)
        if members is None:
            raise FilterError(f"{where} takes a list, not {_describe(value)}")
        among = In(field, tuple(_check_value(field, where, item) for item in members))
        return among if operator == "$in" else Not(among)
    checked = _check_value(field, where, value)
    if operator == "$contains":
        return Contains(field, checked)
    if operator == "$ne":
        return Not(Compare(field, "$eq", checked))
    if operator != "$eq" and (checked is None or isinstance(checked, bool)):
        raise FilterError(f"{where} takes a number, a string or a time, not {_describe(value)}")
    return Compare(field, operator, checked)


def _hint(field: Field, key: str, operator: Any) -> str:
    """Return what an unknown operator was probably meant to be."""
    if not isinstance(operator, str):
        return ""
    if not operator.startswith("$") and field.path and "$" + operator not in OPERATORS:
        return f" (for a nested key, write {str(Field(field.name, (*field.path, operator)))!r})"
    name = "$" + operator.lstrip("$").lower()
    near = ["$like"] if name in ("$regex", "$ilike", "$glob") else get_close_matches(name, OPERATORS, 1, 0.75)
    return f" (did you mean {near[0]}?)" if near else ""


def _parse_pattern(field: Field, where: str, value: Any) -> Tokens:
    value = plain(value)
    if not field.path and not field.is_text:
        raise FilterError(f"{where} applies to texts, and {field} is a number: use $eq, $gt or $lt")
    if not isinstance(value, str):
        raise FilterError(f"{where} takes a pattern such as '%dog%', not {_describe(value)}")
    _check_text(value, where)
    if len(value.encode()) > MAX_PATTERN:
        raise FilterError(f"{where} takes a pattern of at most {MAX_PATTERN} bytes, not of {len(value.encode())}")
    try:
        return tokens(value)
    except ValueError as error:
        raise FilterError(f"{where}: bad pattern {_describe(value)}: {error}") from error


def _check_value(field: Field, where: str, given: Any) -> Value:
    value = plain(given)
    if field.is_text:
        allowed, accepted = "a string", isinstance(value, str)
    elif field.path:
        allowed = "a string, a number, a time, true, false or null"
        accepted = value is None or isinstance(value, (str, int, float, Time))
    else:
        allowed, accepted = "a number", isinstance(value, (int, float)) and not isinstance(value, bool)
    if not accepted:
        lists = field.path and listed(given) is not None
        hint = ": use $in for one of several values, and $contains for an element of a stored list" if lists else ""
        raise FilterError(f"{where} takes {allowed}, not {_describe(given)}{hint}")
    if isinstance(value, str):
        _check_text(value, where)
        moment = microseconds(value) if field.path else None
        return value if moment is None else Time(moment)
    if isinstance(value, float) and not math.isfinite(value):
        raise FilterError(f"{where} takes a finite number, not {value}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        # No row can contain such a number; SQLite and Milvus would round it silently.
        raise FilterError(f"{where}: {value} does not fit in 64 bits: give a smaller number")
    checked: Scalar | Time = value
    return checked


def _check_text(value: str, where: str) -> None:
    # No row contains a NUL (SQLite's JSON functions cut a string there) or half a surrogate pair.
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise FilterError(f"{where}: {_describe(value)} contains a NUL character or is not valid Unicode")


def _all(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _describe(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) else " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
