"""Compilation of filters to Milvus expressions that match the same rows or, if that is impossible, more rows.

The JSON semantics of servers differ from ours (``docs/filters.md``) and from each other: Milvus 2.3 has no literal for
null and knows only prefixes in LIKE; later versions take an empty object for missing; Milvus Lite treats ``true`` as 1
and drops rows without the key from a negation. Such a filter is compiled to an expression that matches too many rows
and is marked as inexact; the store then filters those rows itself.

Values enter an expression only through :meth:`_Compiler._literal`, field names only from the parsed tree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from ldot_milvus.stores.filter_patterns import Wildcard, prefix_bounds
from ldot_milvus.stores.filter_values import Scalar, Time, Value
from ldot_milvus.stores.filters import And, Compare, Condition, Contains, Exists, Field, In, Like, Node, Not, Or

EVERYTHING = 'id != ""'
NOTHING = "id in []"
MAX_LIST = 8 << 20
"""Bytes of the values of one list in an expression; a server takes 64 MB in a request."""

_OPERATORS = {"$eq": "==", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_EXACT_FLOAT = 2**53  # from here on, servers compare whole numbers as rounded floats
_BEYOND_INT32 = 2**40


@dataclass(frozen=True)
class Expression:
    """A compiled filter.

    Attributes:
        text: the expression for Milvus.
        exact: True if it matches the same rows as the filter, False if it may match more.
    """

    text: str
    exact: bool = True


_ANY = Expression(EVERYTHING, exact=False)


def to_milvus(node: Node, version: tuple[int, int], *, lite: bool) -> Expression:
    """Compile a parsed filter.

    Args:
        node: the parsed filter; the empty one compiles to :data:`EVERYTHING`.
        version: major and minor version of the server.
        lite: compile for Milvus Lite instead of a server.
    """
    return _Compiler(version, lite).expression(node, negated=False)


def presence(field: Field, *, lite: bool) -> str | None:
    """Return an expression for the rows that have a value in ``metadata``; None if the server cannot parse it.

    Whether it matches null and empty lists and objects depends on the server.
    """
    path = _Compiler((0, 0), lite)._path(field)
    return None if path is None else f"exists {path}"


@dataclass(frozen=True)
class _Compiler:
    version: tuple[int, int]
    lite: bool

    def expression(self, node: Node, negated: bool) -> Expression:
        """Compile a node; negations move to the leaves, since the complement of a superset is not a superset."""
        if isinstance(node, Not):
            return self.expression(node.part, not negated)
        if isinstance(node, (And, Or)):
            parts = [self.expression(part, negated) for part in node.parts]
            if not parts:
                return Expression(NOTHING if negated else EVERYTHING)
            word = " and " if isinstance(node, And) != negated else " or "
            return Expression(f"({word.join(part.text for part in parts)})", all(part.exact for part in parts))
        if node.field.path:
            return self._metadata(node, negated)
        if isinstance(node, Like):
            return _negated(self._like(node.field.name, node), negated)
        assert isinstance(node, (Compare, In))
        if node.field.is_text:
            return self._text(node, negated)
        return _number(node, negated)

    def _text(self, node: Compare | In, negated: bool) -> Expression:
        literals = self._literals(node.values if isinstance(node, In) else [node.value])
        if literals is None:
            return _ANY
        name = node.field.name
        if isinstance(node, In):
            return Expression(_negate(f"{name} in [{', '.join(literals)}]", negated))
        return Expression(_negate(f"{name} {_OPERATORS[node.operator]} {literals[0]}", negated))

    def _metadata(self, node: Condition, negated: bool) -> Expression:
        path = self._path(node.field)
        if path is None or self.lite:
            return _ANY
        if isinstance(node, Exists):
            if self.version >= (2, 4):  # null and empty objects are missing there
                return _ANY
            return Expression(_negate(f"exists {path}", negated))
        if isinstance(node, Like):
            found = self._like(path, node)
        elif isinstance(node, Contains):
            found = self._contains(path, node.value)
        elif isinstance(node, In) or node.operator == "$eq":
            found = self._equal(path, node.values if isinstance(node, In) else (node.value,))
        else:
            found = self._order(path, node)
        if not negated or not found.exact:
            return _ANY if negated else found
        # With a missing key our comparison is false; on some servers it is neither true nor false.
        return Expression(f"(not (exists {path}) or not {found.text})")

    def _equal(self, path: str, values: tuple[Value, ...]) -> Expression:
        """Compile an equality with one of several values; servers want lists of one type."""
        tests, exact = [], True
        for value in values:
            if isinstance(value, Time):
                lowest, above = value.bounds("$eq")
                tests.append(f'({path} >= "{lowest}" and {path} < "{above}")')
                exact = False
            elif not _is_exact(value):
                return _ANY
        flags = [value for value in values if isinstance(value, bool)]
        # As floats, because a whole number equals one for a server, but not the other way round.
        numbers = [float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
        words = [value for value in values if isinstance(value, str)]
        for same in (flags, numbers, words):
            literals = self._literals(dict.fromkeys(same))
            if literals is None:
                return _ANY
            if len(literals) == 1:
                tests.append(f"{path} == {literals[0]}")
            elif literals:
                tests.append(f"{path} in [{', '.join(literals)}]")
        return Expression(f"({' or '.join(tests) or NOTHING})", exact)

    def _order(self, path: str, node: Compare) -> Expression:
        if isinstance(node.value, Time):
            lowest, above = node.value.bounds(node.operator)
            return Expression(f'({path} >= "{lowest}" and {path} < "{above}")', exact=False)
        literal = self._literal(node.value)
        if literal is None or not _is_exact(node.value):
            return _ANY
        return Expression(f"({path} {_OPERATORS[node.operator]} {literal})")

    def _contains(self, path: str, value: Value) -> Expression:
        if isinstance(value, Time) or not _is_exact(value):
            return _ANY
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = float(value)
        literal = self._literal(value)
        return _ANY if literal is None else Expression(f"(json_contains({path}, {literal}))")

    def _like(self, name: str, node: Like) -> Expression:
        """Compile a pattern: comparisons for a prefix, LIKE for what every server since 2.4 takes in the same way."""
        parts = node.pattern
        literals = [part for part in parts if isinstance(part, str)]
        ends = [part for part in parts if isinstance(part, Wildcard)]
        if not ends:
            literal = self._literal("".join(literals))
            return _ANY if literal is None else Expression(f"({name} == {literal})")
        prefix = parts[0] if isinstance(parts[0], str) else ""
        tests = self._with_prefix(name, prefix)
        if tests is None:
            return _ANY
        simple = set(ends) == {Wildcard.ANY}
        rest = literals[1:] if prefix else literals
        if rest and not self.lite and self.version >= (2, 4):
            longest = max(rest, key=len)
            pattern = self._literal(f"%{longest}" + "%" * (parts[-1] != longest))
            if pattern is not None and not any(char in longest for char in "%_\\"):
                tests.append(f"{name} like {pattern}")
                simple = simple and not prefix and len(rest) == 1
            else:
                simple = False
        else:
            simple = simple and not rest
        return Expression(f"({' and '.join(tests)})", simple)

    def _with_prefix(self, name: str, prefix: str) -> list[str] | None:
        lowest, above = prefix_bounds(prefix)
        tests = [(">=", lowest), *([] if above is None else [("<", above)])]
        literals = self._literals([bound for _, bound in tests])
        if literals is None:
            return None
        return [f"{name} {operator} {literal}" for (operator, _), literal in zip(tests, literals, strict=True)]

    def _path(self, field: Field) -> str | None:
        keys = self._literals(field.path)
        if keys is None or any(not key or any(c in "\"'\\" or c < " " for c in key) for key in field.path):
            return None
        return field.name + "".join(f"[{key}]" for key in keys)

    def _literals(self, values: Iterable[Value]) -> list[str] | None:
        """Return values as Milvus parses them; None if this server cannot parse one of them, or not so many."""
        literals: list[str] = []
        size = 0
        for value in values:
            literal = self._literal(value)
            if literal is None or size > MAX_LIST:
                return None
            literals.append(literal)
            size += len(literal.encode())
        return literals

    def _literal(self, value: Value) -> str | None:
        """Return a value as Milvus parses it; None if this server cannot parse it."""
        text = json.dumps(value, ensure_ascii=False)
        if self.lite and isinstance(value, str) and "\\u" in text.replace("\\\\", ""):
            return None  # a control character: Milvus Lite does not support \u escapes
        return text


def _number(node: Compare | In, negated: bool) -> Expression:
    """Compile a condition on an integer column; fractions are rounded, since some servers refuse them."""
    name = node.field.name
    if isinstance(node, In):
        whole = [str(int(value)) for value in node.values if isinstance(value, (int, float)) and _is_whole(value)]
        return Expression(_negate(f"{name} in [{', '.join(whole)}]", negated))
    value = node.value
    assert isinstance(value, (int, float))
    value = max(-_BEYOND_INT32, min(_BEYOND_INT32, value))
    if node.operator == "$eq" and not _is_whole(value):
        return Expression(EVERYTHING if negated else NOTHING)
    rounded = math.ceil(value) if node.operator in ("$gte", "$lt") else math.floor(value)
    return Expression(_negate(f"{name} {_OPERATORS[node.operator]} {rounded}", negated))


def _is_exact(value: Scalar) -> bool:
    """Whether servers compare a JSON value with this one as we do."""
    if value is None:
        return False
    return isinstance(value, (bool, str)) or abs(value) < _EXACT_FLOAT


def _is_whole(value: float) -> bool:
    return abs(value) <= _BEYOND_INT32 and float(value).is_integer()


def _negated(found: Expression, negated: bool) -> Expression:
    if not negated:
        return found
    return Expression(f"not {found.text}") if found.exact else _ANY


def _negate(text: str, negated: bool) -> str:
    return f"not ({text})" if negated else f"({text})"
