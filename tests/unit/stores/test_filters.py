"""Filters compared with a naive evaluator in Python, and every kind of invalid filter."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldot_milvus.errors import FilterError
from ldot_milvus.stores.filters import MAX_CONDITIONS, And, Compare, Field, In, Not, parse, to_sql

TEXT = ("id", "kind", "namespace", "source", "caption")
NUMBERS = ("width", "height")


def rows_that_pass(rows: list[dict[str, Any]], filter: dict[str, Any] | None) -> list[int]:
    """Return the positions of the rows that match according to SQLite."""
    clause, params = to_sql(parse(filter))
    with sqlite3.connect(":memory:") as connection:
        connection.execute(
            "CREATE TABLE records (n INTEGER, id TEXT, kind TEXT, namespace TEXT, source TEXT, caption TEXT, "
            "width INTEGER, height INTEGER, metadata TEXT)"
        )
        for n, row in enumerate(rows):
            values = [row.get(name, "") for name in TEXT] + [row.get(name, 0) for name in NUMBERS]
            metadata = json.dumps(row.get("metadata", {}), ensure_ascii=False)
            connection.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (n, *values, metadata))
        found = connection.execute(f"SELECT n, {clause} FROM records ORDER BY n", params).fetchall()
    assert all(verdict in (0, 1) for _, verdict in found), "a filter must be true or false, never NULL"
    return [n for n, verdict in found if verdict]


# ---- an evaluator that shares nothing with the code under test

MISSING = object()


def look_up(row: dict[str, Any], key: str) -> Any:
    if not key.startswith("metadata."):
        return row[key]
    value: Any = row["metadata"]
    for part in key.split(".")[1:]:
        if not isinstance(value, dict) or part not in value:
            return MISSING
        value = value[part]
    return value


def type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    return {int: "number", float: "number", str: "text", type(None): "null"}.get(type(value), "other")


def holds(operator: str, stored: Any, value: Any) -> bool:
    if operator == "$ne":
        return not holds("$eq", stored, value)
    if operator == "$nin":
        return not holds("$in", stored, value)
    if operator == "$in":
        return any(holds("$eq", stored, item) for item in value)
    if operator == "$not":
        return not all(holds(inner, stored, item) for inner, item in value.items())
    if type_of(stored) != type_of(value):
        return False
    match operator:
        case "$eq":
            return bool(stored == value)
        case "$gt":
            return bool(stored > value)
        case "$gte":
            return bool(stored >= value)
        case "$lt":
            return bool(stored < value)
        case "$lte":
            return bool(stored <= value)
    raise AssertionError(operator)


def passes(row: dict[str, Any], filter: dict[str, Any]) -> bool:
    for key, value in filter.items():
        if key == "$and":
            verdict = all(passes(row, part) for part in value)
        elif key == "$or":
            verdict = any(passes(row, part) for part in value)
        elif key == "$not":
            verdict = not passes(row, value)
        else:
            operators = value if isinstance(value, dict) else {"$eq": value}
            verdict = all(holds(operator, look_up(row, key), item) for operator, item in operators.items())
        if not verdict:
            return False
    return True


# ---- random rows and filters, from few values, so that filters match

KEYS = ("a", "b", "sp ace", "é", "[0]", "$x")
texts = st.sampled_from(["", "a", "A", "b", "1", "é", "𝄞", "'; DROP TABLE records; --", '"', "\\", "%", "line\nbreak"])
numbers = st.one_of(
    st.sampled_from([0, 1, -1, 2, 1.0, 0.5, 0.1, 0.1 + 0.2, 1e300, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)]),
    st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False, width=32),
)
scalars = st.one_of(texts, numbers, st.booleans(), st.none())
metadata = st.dictionaries(
    st.sampled_from(KEYS),
    st.one_of(scalars, st.lists(scalars, max_size=2), st.dictionaries(st.sampled_from(KEYS), scalars, max_size=3)),
    max_size=4,
)
row_dicts = st.fixed_dictionaries(
    {**dict.fromkeys(TEXT, texts), **dict.fromkeys(NUMBERS, st.integers(0, 3)), "metadata": metadata}
)


def operators_for(values: st.SearchStrategy[Any], ordered: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    plain = st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("$eq", "$ne"), values),
            **dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), ordered),
            **dict.fromkeys(("$in", "$nin"), st.lists(values, max_size=3)),
        },
    ).filter(bool)
    return st.one_of(values, plain, st.fixed_dictionaries({"$not": plain}))


conditions = st.one_of(
    st.dictionaries(st.sampled_from(TEXT), operators_for(texts, texts), min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(NUMBERS), operators_for(numbers, numbers), min_size=1, max_size=2),
    st.dictionaries(
        st.lists(st.sampled_from(KEYS), min_size=1, max_size=2).map(lambda path: ".".join(["metadata", *path])),
        operators_for(scalars, st.one_of(texts, numbers)),
        min_size=1,
        max_size=2,
    ),
)
filters = st.recursive(
    conditions,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$not": inner}),
        st.dictionaries(st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3), min_size=1),
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None, database=None)
@given(rows=st.lists(row_dicts, min_size=1, max_size=6), filter=filters)
def test_sql_agrees_with_a_naive_evaluator(rows: list[dict[str, Any]], filter: dict[str, Any]) -> None:
    assert rows_that_pass(rows, filter) == [n for n, row in enumerate(rows) if passes(row, filter)]


@settings(max_examples=100, deadline=None, database=None)
@given(rows=st.lists(row_dicts, min_size=1, max_size=6), filter=filters)
def test_not_is_the_exact_complement(rows: list[dict[str, Any]], filter: dict[str, Any]) -> None:
    passing, others = rows_that_pass(rows, filter), rows_that_pass(rows, {"$not": filter})
    assert sorted(passing + others) == list(range(len(rows)))


# ---- the meaning, spelt out

ROWS = [
    {"id": "0", "metadata": {"a": 1}},
    {"id": "1", "metadata": {"a": True}},
    {"id": "2", "metadata": {"a": "1"}},
    {"id": "3", "metadata": {"a": None}},
    {"id": "4", "metadata": {}},
    {"id": "5", "metadata": {"a": [1]}},
    {"id": "6", "metadata": {"a": {"b": 1.0}}},
]


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6]),
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"metadata.a": 1}, [0]),
        ({"metadata.a": 1.0}, [0]),
        ({"metadata.a": True}, [1]),
        ({"metadata.a": "1"}, [2]),
        ({"metadata.a": None}, [3]),
        ({"metadata.a": {"$ne": None}}, [0, 1, 2, 4, 5, 6]),
        ({"metadata.a": {"$ne": 1}}, [1, 2, 3, 4, 5, 6]),
        ({"metadata.a": {"$in": []}}, []),
        ({"metadata.a": {"$nin": []}}, [0, 1, 2, 3, 4, 5, 6]),
        ({"metadata.a": {"$in": [True, None, "1"]}}, [1, 2, 3]),
        ({"metadata.a": {"$gte": 0}}, [0]),
        ({"metadata.a": {"$not": {"$gte": 0}}}, [1, 2, 3, 4, 5, 6]),
        ({"metadata.a": {"$gte": ""}}, [2]),
        ({"metadata.a.b": 1}, [6]),
        ({"metadata.a.0": 1}, []),
        ({"id": {"$gt": "1", "$lte": "3"}}, [2, 3]),
        ({"id": {"$gt": "1"}, "metadata.a": {"$ne": 7}}, [2, 3, 4, 5, 6]),
        ({"$or": [{"id": "0"}, {"$and": [{"id": "4"}, {"width": {"$lt": 0.5}}]}]}, [0, 4]),
    ],
)
def test_meaning(filter: dict[str, Any] | None, expected: list[int]) -> None:
    assert rows_that_pass(ROWS, filter) == expected


def test_the_tree_is_independent_of_sql() -> None:
    node = parse({"width": {"$gte": 5}, "metadata.a.b": {"$nin": ["x"]}})
    assert node == And((Compare(Field("width"), "$gte", 5), Not(In(Field("metadata", ("a", "b")), ("x",)))))


def test_values_are_never_spliced() -> None:
    clause, params = to_sql(parse({"caption": "EVIL", "metadata.EVIL": {"$in": ["EVIL"]}, "id": {"$nin": ["EVIL"]}}))
    assert "EVIL" not in clause
    assert clause.count("?") == len(params)


def test_an_in_list_longer_than_sqlite_has_parameters() -> None:
    long = [f"x{n}" for n in range(100_000)]
    assert rows_that_pass(ROWS, {"id": {"$in": [*long, "3"]}}) == [3]
    assert rows_that_pass(ROWS, {"metadata.a": {"$in": [*long, "1"]}}) == [2]


def test_the_longest_filter_runs_and_a_longer_one_is_refused() -> None:
    parts = [{"metadata.a": {"$gt": n}} for n in range(MAX_CONDITIONS)]
    assert rows_that_pass(ROWS, {"$or": parts}) == [0]
    with pytest.raises(FilterError, match="use \\$in"):
        parse({"$or": [*parts, {"id": "x"}]})


def nested(depth: int) -> dict[str, Any]:
    filter: dict[str, Any] = {"id": "3"}
    for _ in range(depth):
        filter = {"$not": filter}
    return filter


def test_depth() -> None:
    assert rows_that_pass(ROWS, nested(30)) == [3]
    with pytest.raises(FilterError, match="deep"):
        parse(nested(5000))
    operators: dict[str, Any] = {"$eq": 1}
    for _ in range(5000):
        operators = {"$not": operators}
    with pytest.raises(FilterError, match="deep"):
        parse({"width": operators})


@pytest.mark.parametrize(
    ("filter", "words"),
    [
        ([], ["dictionary"]),
        ("id", ["dictionary"]),
        ({"colour": 1}, ["'colour'", "width", "metadata.KEY"]),
        ({"embedding": 1}, ["'embedding'"]),
        ({1: 1}, ["unknown field 1"]),
        ({"metadata": {"$eq": 1}}, ["'metadata'", "metadata.KEY"]),
        ({"id) OR (1": "x"}, ["unknown field"]),
        ({"$nor": []}, ["'$nor'", "$or"]),
        ({"$gt": 1}, ["'$gt'"]),
        ({"width": {"$regex": "a"}}, ["width", "'$regex'", "$gte"]),
        ({"width": {}}, ["width", "no operator"]),
        ({"width": {"$gt": 1, "x": 2}}, ["'x'"]),
        ({"width": {1: 2}}, ["unknown operator 1"]),
        ({"$and": []}, ["$and", "at least one"]),
        ({"$or": []}, ["$or", "at least one"]),
        ({"$or": {"id": "x"}}, ["$or", "list"]),
        ({"$or": [{}]}, ["empty filter"]),
        ({"$not": {}}, ["empty filter"]),
        ({"$not": "x"}, ["dictionary"]),
        ({"width": {"$not": 5}}, ["width", "$not", "$ne"]),
        ({"width": {"$in": 5}}, ["width", "$in", "list"]),
        ({"caption": {"$nin": "abc"}}, ["caption", "$nin", "list"]),
        ({"caption": 5}, ["caption", "string", "5 (int)"]),
        ({"caption": None}, ["caption", "string"]),
        ({"id": {"$in": ["a", 5]}}, ["id", "$in", "string"]),
        ({"width": "640"}, ["width", "number"]),
        ({"width": True}, ["width", "number"]),
        ({"width": None}, ["width", "number"]),
        ({"width": float("nan")}, ["width", "finite"]),
        ({"metadata.a": {"$lt": float("inf")}}, ["metadata.a", "finite"]),
        ({"width": 2**63}, ["width", "64 bits"]),
        ({"metadata.a": {"$in": [-(2**63) - 1]}}, ["metadata.a", "64 bits"]),
        ({"metadata.a": {"$gt": True}}, ["metadata.a", "$gt"]),
        ({"metadata.a": {"$lte": None}}, ["metadata.a", "$lte"]),
        ({"metadata.a": [1]}, ["metadata.a", "list"]),
        ({"metadata.a": {"$eq": {"b": 1}}}, ["metadata.a", "dict"]),
        ({"metadata.": 1}, ["metadata path"]),
        ({"metadata.a..b": 1}, ["metadata path"]),
        ({"metadata..a": 1}, ["metadata path"]),
        ({'metadata.a"b': 1}, ["metadata path"]),
        ({"metadata.a'b": 1}, ["metadata path"]),
        ({"metadata.a\\b": 1}, ["metadata path"]),
        ({"metadata.a\nb": 1}, ["metadata path"]),
        ({"metadata.\ud800": 1}, ["Unicode"]),
        ({"caption": "a\0b"}, ["caption", "NUL"]),
        ({"caption": "\udcff"}, ["caption", "Unicode"]),
    ],
)
def test_refusals_say_what_is_wrong(filter: Any, words: list[str]) -> None:
    with pytest.raises(FilterError) as caught:
        parse(filter)
    for word in words:
        assert word in str(caught.value)
    str(caught.value).encode()  # it can be printed
