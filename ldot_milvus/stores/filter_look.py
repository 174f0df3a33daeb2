"""A look at the rows for filters that cannot match: a misspelt field of ``metadata``, or values of another type.

Rows have no schema for ``metadata``, so such a filter is no error, and finds nothing without a word. Each field of a
collection is looked up once in a process. The store reads at most :data:`SAMPLE` rows, and its database looks no
further than these; if no row has the field, that is one pass over the rows, as for any filter.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from itertools import islice

from ldot_milvus.errors import UnknownField, printable
from ldot_milvus.stores.base import Record, VectorStore
from ldot_milvus.stores.filter_match import MISSING, type_name, value_of
from ldot_milvus.stores.filter_values import Time, microseconds
from ldot_milvus.stores.filters import Condition, Contains, Exists, Field, In, Like, Node, conditions

SAMPLE = 20
"""Rows with the field that are looked at."""
_MOST = 10_000
"""Fields remembered; a service may pass filters of its users on."""

RowsWith = Callable[[Field, int], list[Record]]
"""Returns up to a number of rows that have a value in a field."""

_looked: dict[tuple[str, str, Field], object] = {}


def look(store: VectorStore, node: Node, rows_with: RowsWith) -> None:
    """Warn with :class:`~ldot_milvus.errors.UnknownField` of fields for which a filter cannot match.

    Args:
        store: the collection that is filtered.
        node: the parsed filter.
        rows_with: reads rows of the collection.
    """
    by_field: dict[Field, list[Condition]] = {}
    for condition in conditions(node):
        if condition.field.path:
            by_field.setdefault(condition.field, []).append(condition)
    for field, about in by_field.items():
        key = (store.address, store.collection, field)
        if key in _looked:
            continue
        rows = rows_with(field, SAMPLE)
        others = [] if rows else list(islice(store.iterate(batch_size=SAMPLE), SAMPLE))
        if not rows and not others:
            continue  # an empty collection says nothing
        if len(_looked) >= _MOST:
            _looked.clear()
        mine = object()
        if _looked.setdefault(key, mine) is not mine:  # another thread was first; a lock would not survive a fork
            continue
        told = _absent(store, field, others) if others else _of_other_types(field, about, rows)
        if told:
            warnings.warn(printable(told), UnknownField, stacklevel=_callers_level())


def _absent(store: VectorStore, field: Field, rows: list[Record]) -> str:
    near = _with_dots(field, rows) or _similar(field, rows)
    hint = f"did you mean {near}? " if near else ""
    return (
        f"no row of collection {store.collection!r} has a value in {field}: {hint}a missing field matches only $ne, "
        "$nin, $not and $exists: false"
    )


def _similar(field: Field, rows: list[Record]) -> Field | None:
    *parents, last = field.path
    near = get_close_matches(last, sorted(_keys(field, tuple(parents), rows)), 1)
    return Field(field.name, (*parents, near[0])) if near else None


def _with_dots(field: Field, rows: list[Record]) -> Field | None:
    """Return the field if its path is a key with dots."""
    for place in range(len(field.path) - 1):
        parents, key = field.path[:place], ".".join(field.path[place:])
        if key in _keys(field, parents, rows):
            return Field(field.name, (*parents, key))
    return None


def _keys(field: Field, parents: tuple[str, ...], rows: list[Record]) -> set[str]:
    values = (value_of(Field(field.name, parents), row) for row in rows)
    return {key for value in values if isinstance(value, dict) for key in value}


def _of_other_types(field: Field, about: list[Condition], rows: list[Record]) -> str | None:
    values = [value for row in rows if (value := value_of(field, row)) is not MISSING]
    stored = {type_name(value) for value in values}
    if any(isinstance(value, str) and microseconds(value) is not None for value in values):
        stored.add("time")
    if not stored:
        return None
    dotted = _with_dots(field, rows)
    if dotted is not None:
        return f"{field} is a nested key here, and some rows also have a key with dots: write {dotted} for that one"
    has_lists = "list" in stored and not any(isinstance(one, (Contains, Exists)) for one in about)
    for condition in about:
        wanted = _types_of(condition)
        if wanted is None or (wanted & stored and not has_lists):
            continue
        if has_lists:
            return f"{field} is a list in some rows, which only $contains looks into: use it to find an element"
        return (
            f"{field}: the filter compares with a {_or(wanted)}, and each of {len(rows)} rows looked at has a "
            f"{_or(stored)} there: values of different types never match"
        )
    return None


def _types_of(condition: Condition) -> set[str] | None:
    """Return the types of values that can match a condition; None if any can."""
    if isinstance(condition, Contains):
        return {"list"}
    if isinstance(condition, Like):
        return {"text"}
    if isinstance(condition, Exists):
        return None
    values = condition.values if isinstance(condition, In) else (condition.value,)
    types = {"time" if isinstance(value, Time) else type_name(value) for value in values}
    return None if not types or "null" in types else types


def _or(types: set[str]) -> str:
    return " or ".join(sorted(types - {"text"} if "time" in types else types))


def _callers_level() -> int:
    """Return the stack level, for ``warnings.warn`` in :func:`look`, of the first caller outside this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("ldot_milvus"):
        level, frame = level + 1, frame.f_back
    return level
