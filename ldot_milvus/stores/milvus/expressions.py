"""Compilation of filters to Milvus expressions that match the same rows or, if that is impossible, more rows.

The JSON semantics of servers differ from ours (``docs/filters.md``) and from each other: Milvus 2.3 has no literal for
null; Milvus Lite treats ``true`` as 1 and drops rows without the key from a negation. Such a filter is compiled to an
expression that matches too many rows and is marked as inexact; the store then filters those rows itself.

Values enter an expression only through :meth:`_Compiler._literal`, field names only from the parsed tree.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from ldot_milvus.stores.filters import And, Compare, Field, In, Node, Not, Or, Scalar

EVERYTHING = 'id != ""'
NOTHING = "id in []"

_OPERATORS = {"$eq": "==", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_EXACT_FLOAT = 2**53  # above this, servers compare whole numbers as rounded floats
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


def to_milvus(node: Node, *, lite: bool) -> Expression:
    """Compile a parsed filter.

    Args:
        node: the parsed filter; the empty one compiles to :data:`EVERYTHING`.
        lite: compile for Milvus Lite instead of a server.
    """
    return _Compiler(lite).expression(node, negated=False)


@dataclass(frozen=True)
class _Compiler:
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
        if node.field.is_text:
            return self._text(node, negated)
        return _number(node, negated)

    def _text(self, node: Compare | In, negated: bool) -> Expression:
        values = node.values if isinstance(node, In) else (node.value,)
        literals = [self._literal(value) for value in values]
        if None in literals:
            return Expression(EVERYTHING, exact=False)
        name = node.field.name
        if isinstance(node, In):
            return Expression(_negate(f"{name} in [{', '.join(map(str, literals))}]", negated))
        return Expression(_negate(f"{name} {_OPERATORS[node.operator]} {literals[0]}", negated))

    def _metadata(self, node: Compare | In, negated: bool) -> Expression:
        values = node.values if isinstance(node, In) else (node.value,)
        path = self._path(node.field)
        operator = "==" if isinstance(node, In) else _OPERATORS[node.operator]
        tests = [self._json_test(path, operator, value) for value in values]
        if path is None or None in tests:
            return Expression(EVERYTHING, exact=False)
        if not tests:
            return Expression(EVERYTHING if negated else NOTHING)
        either = " or ".join(test for test in tests if test)
        # With a missing key our comparison is false; on some servers it is neither true nor false.
        return Expression(f"(not (exists {path}) or not ({either}))" if negated else f"({either})")

    def _json_test(self, path: str | None, operator: str, value: Scalar) -> str | None:
        if self.lite or value is None:
            return None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) > _EXACT_FLOAT:
            return None
        literal = self._literal(value)
        return None if literal is None else f"{path} {operator} {literal}"

    def _path(self, field: Field) -> str | None:
        keys = [self._literal(key) for key in field.path]
        return None if None in keys else field.name + "".join(f"[{key}]" for key in keys)

    def _literal(self, value: Scalar) -> str | None:
        """Return a value as Milvus parses it; None if this server cannot parse it."""
        text = json.dumps(value, ensure_ascii=False)
        if self.lite and isinstance(value, str) and "\\u" in text.replace("\\\\", ""):
            return None  # a control character: Milvus Lite does not support \u escapes
        return text


def _number(node: Compare | In, negated: bool) -> Expression:
    """Compile a condition on an integer column; fractions are rounded, since some servers refuse them."""
    name = node.field.name
    if isinstance(node, In):
        whole = [str(int(value)) for value in node.values if value is not None and _is_whole(value)]
        return Expression(_negate(f"{name} in [{', '.join(whole)}]", negated))
    value = node.value
    assert isinstance(value, (int, float))
    value = max(-_BEYOND_INT32, min(_BEYOND_INT32, value))
    if node.operator == "$eq" and not _is_whole(value):
        return Expression(EVERYTHING if negated else NOTHING)
    rounded = math.ceil(value) if node.operator in ("$gte", "$lt") else math.floor(value)
    return Expression(_negate(f"{name} {_OPERATORS[node.operator]} {rounded}", negated))


def _is_whole(value: Scalar) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) <= _BEYOND_INT32)


def _negate(text: str, negated: bool) -> str:
    return f"not ({text})" if negated else f"({text})"
