"""Filters compared with a naive evaluator in Python, their meaning spelt out, and every kind of invalid filter."""

from __future__ import annotations

import datetime as dt
import enum
import json
import sqlite3
import time
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldot_milvus.errors import FilterError
from ldot_milvus.stores.base import Record
from ldot_milvus.stores.filter_match import predicate
from ldot_milvus.stores.filter_values import Time, microseconds
from ldot_milvus.stores.filters import MAX_CONDITIONS, And, Compare, Field, In, Not, parse
from ldot_milvus.stores.local.conditions import add_functions, to_sql
from tests.drawn_filters import NOT_TIMES, NUMBERS, TEXT, TIMES, filters, passes, row_dicts, time_of


def rows_that_pass(rows: list[dict[str, Any]], filter: dict[str, Any] | None) -> list[int]:
    """Return the positions of the rows that match according to SQLite."""
    clause, params = to_sql(parse(filter))
    with sqlite3.connect(":memory:") as connection:
        add_functions(connection)
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


@settings(max_examples=300, deadline=None, database=None)
@given(rows=st.lists(row_dicts, min_size=1, max_size=6), filter=filters)
def test_sql_and_the_predicate_agree_with_a_naive_evaluator(rows: list[dict[str, Any]], filter: dict[str, Any]) -> None:
    expected = [n for n, row in enumerate(rows) if passes(row, filter)]
    matches = predicate(parse(filter))
    assert [n for n, row in enumerate(rows) if matches(Record(**row))] == expected
    assert rows_that_pass(rows, filter) == expected


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
        ({"metadata.a.0": 1}, [5]),
        ({"metadata.a[0]": {"$exists": True}}, [5]),
        ({"metadata.a": {"$contains": 1.0}}, [5]),
        ({"metadata.a": {"$contains": "1"}}, []),
        ({"metadata.a": {"$not": {"$contains": 1}}}, [0, 1, 2, 3, 4, 6]),
        ({"metadata.a": {"$exists": True}}, [0, 1, 2, 3, 5, 6]),
        ({"metadata.a": {"$exists": False}}, [4]),
        ({"metadata.a": {"$exists": True, "$ne": None}}, [0, 1, 2, 5, 6]),
        ({"metadata.a": {"$like": "_"}}, [2]),
        ({"id": {"$like": "%"}}, [0, 1, 2, 3, 4, 5, 6]),
        ({"id": {"$gt": "1", "$lte": "3"}}, [2, 3]),
        ({"id": {"$gt": "1"}, "metadata.a": {"$ne": 7}}, [2, 3, 4, 5, 6]),
        ({"$or": [{"id": "0"}, {"$and": [{"id": "4"}, {"width": {"$lt": 0.5}}]}]}, [0, 4]),
    ],
)
def test_meaning(filter: dict[str, Any] | None, expected: list[int]) -> None:
    assert rows_that_pass(ROWS, filter) == expected


@pytest.mark.parametrize(
    ("pattern", "matched", "others"),
    [
        ("dog", ["dog"], ["Dog", "a dog", "dogs", ""]),
        ("%dog", ["dog", "a dog", "\ndog"], ["dogs"]),
        ("dog%", ["dog", "dogs", "dog\nx"], ["a dog", "Dogs"]),
        ("%d_g%", ["a dug out", "d𝄞g"], ["dg", "doug"]),
        ("", [""], ["x"]),
        ("%", ["", "x"], []),
        (r"50\%", ["50%"], ["50", "500", r"50\%"]),
        (r"a\_b", ["a_b"], ["axb"]),
        (r"C:\\%", ["C:\\x"], ["C:x"]),
        ("a%a", ["aa", "aba"], ["a"]),
        ("%ab%ba%", ["abba", "xab-bax"], ["aba", "baab"]),
        ("[a-z]*?", ["[a-z]*?"], ["a*?"]),
        ("é%", ["été"], ["Été", "e\u0301"]),
    ],
)
def test_patterns(pattern: str, matched: list[str], others: list[str]) -> None:
    rows = [{"caption": text, "metadata": {"a": text}} for text in [*matched, *others]]
    expected = list(range(len(matched)))
    for field in ("caption", "metadata.a"):
        assert rows_that_pass(rows, {field: {"$like": pattern}}) == expected
        matches = predicate(parse({field: {"$like": pattern}}))
        assert [n for n, row in enumerate(rows) if matches(Record("x", **row))] == expected


def test_a_pattern_takes_no_exponential_time() -> None:
    """Nor the square of what a text of the largest size takes, times the number of its wildcards."""
    rows = [{"caption": "a" * 8000}]
    begun = time.monotonic()
    filter = {"caption": {"$like": "%a" * 400 + "b%"}}
    assert rows_that_pass(rows, filter) == []
    assert not predicate(parse(filter))(Record("x", **rows[0]))
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("text", TIMES)
def test_times(text: str) -> None:
    read = time_of(text)
    assert read is not None
    since = read.replace(tzinfo=None) - dt.datetime(1970, 1, 1) - (read.utcoffset() or dt.timedelta(0))
    assert microseconds(text) == since // dt.timedelta(microseconds=1)


@pytest.mark.parametrize(
    "text", [*NOT_TIMES, "2024-05-01T10:00:60", "2024-05-01T10:00+24:00", "2024-05-01\n", "0000-01-01"]
)
def test_other_texts_are_no_times(text: str) -> None:
    assert microseconds(text) is None


class Colour(enum.Enum):
    RED = "red"


class Size(str, enum.Enum):
    L = "large"


BERLIN = dt.timezone(dt.timedelta(hours=2))
HALF_PAST_EIGHT = Time(microseconds("2024-05-01T08:30:00Z") or 0)


@pytest.mark.parametrize(
    ("value", "stands_for"),
    [
        (np.int64(5), 5),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array(5), 5),
        (Decimal("5"), 5),
        (Decimal("0.5"), 0.5),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Path("/a/b"), "/a/b"),
        (Colour.RED, "red"),
        (Size.L, "large"),
        ("2024-05-01T08:30:00Z", HALF_PAST_EIGHT),
        (dt.datetime(2024, 5, 1, 8, 30), HALF_PAST_EIGHT),
        (dt.datetime(2024, 5, 1, 10, 30, tzinfo=BERLIN), HALF_PAST_EIGHT),
        (np.datetime64("2024-05-01T08:30"), HALF_PAST_EIGHT),
        (np.datetime64("2024-05-01T08:30:00.000000000"), HALF_PAST_EIGHT),
        (dt.date(2024, 5, 1), Time(microseconds("2024-05-01") or 0)),
        (dt.datetime.min, Time(microseconds("0001-01-01") or 0)),
    ],
    ids=repr,
)
def test_values_of_pythons_types(value: Any, stands_for: Any) -> None:
    """As one value, as a member of any kind of collection, and in $contains."""
    field = Field("metadata", ("a",))
    node = parse({"metadata.a": value})
    assert node == Compare(field, "$eq", stands_for)
    assert isinstance(node, Compare)
    assert type(node.value) is type(stands_for)
    collections: list[Any] = [[value], (value,)]
    if not isinstance(value, np.ndarray):
        collections += [{value}, frozenset([value]), {value: 1}.keys(), np.array([value], dtype=object)]
    for members in collections:
        assert parse({"metadata.a": {"$in": members}}) == In(field, (stands_for,))


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
        ({"metadata.a.": 1}, ["metadata path"]),
        ({"metadata.[0]": 1}, ["metadata path", 'metadata["a.b"]']),
        ({"metadata.a[b]": 1}, ["metadata path"]),
        ({"metadata.a[01]": 1}, ["metadata path"]),
        ({"metadata.a[-1]": 1}, ["metadata path"]),
        ({'metadata["a': 1}, ["metadata path"]),
        ({'metadata["a"]b': 1}, ["metadata path"]),
        ({r'metadata["a\d"]': 1}, ["metadata path", "escape"]),
        ({'metadata["a\\u0000"]': 1}, ["NUL"]),
        ({'metadata["a\n"]': 1}, ["metadata path", "JSON string"]),
        ({"metadata['a.b']": 1}, ["metadata path", 'metadata["a.b"]']),
        ({"metadata": {"k": "x"}}, ["'metadata'", "metadata.KEY"]),
        ({"tags": "dog"}, ["'tags'", "metadata.tags"]),
        ({"exif.Make": "dog"}, ['metadata["exif.Make"]']),
        ({"captoin": "dog"}, ["did you mean caption?"]),
        ({"metadata.a": {"$contain": 1}}, ["did you mean $contains?"]),
        ({"metadata.a": {"$regex": "x"}}, ["did you mean $like?"]),
        ({"metadata.a": {"exists": True}}, ["did you mean $exists?"]),
        ({"metadata.a": {"b": 1}}, ["'metadata.a.b'"]),
        ({"metadata.a": ["x"]}, ["$in", "$contains"]),
        ({"metadata.a": {"$contains": ["x"]}}, ["$contains", "list"]),
        ({"metadata.a": {"$exists": 1}}, ["$exists takes true or false", "1 (int)"]),
        ({"caption": {"$contains": "dog"}}, ["$contains", "$like"]),
        ({"width": {"$contains": 3}}, ["$contains", "$in"]),
        ({"caption": {"$exists": True}}, ["$exists", "metadata.KEY"]),
        ({"width": {"$like": "6%"}}, ["width", "number"]),
        ({"caption": {"$like": 5}}, ["$like", "'%dog%'", "5 (int)"]),
        ({"caption": {"$like": "a\\"}}, ["$like", "backslash"]),
        ({"caption": {"$like": "C:\\photos"}}, ["$like", "backslash"]),
        ({"caption": {"$like": "x" * 8193}}, ["$like", "8192 bytes"]),
        ({"caption": dt.date(2024, 5, 1)}, ["caption", "string", "date"]),
        ({"width": dt.date(2024, 5, 1)}, ["width", "number", "date"]),
        ({"metadata.a": dt.time(10)}, ["metadata.a", "time"]),
        ({"metadata.a": np.datetime64("NaT")}, ["metadata.a", "NaT"]),
        ({"metadata.a": Decimal("Infinity")}, ["finite"]),
        ({"metadata.a": b"x"}, ["metadata.a", "bytes"]),
        ({"metadata.a": {"$in": (n for n in (1, 2))}}, ["$in takes a list", "generator"]),
        ({"metadata.a": {"$in": np.zeros((2, 2))}}, ["$in takes a list"]),
        ({"metadata.a": {"$in": {"b": 1}}}, ["$in takes a list", "dict"]),
        ({"metadata..a": 1}, ["metadata path"]),
        ({"metadata.\u202ea": {"$gt": True}}, ["\\u202ea: $gt"]),
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
    assert str(caught.value).isprintable()  # and one line
