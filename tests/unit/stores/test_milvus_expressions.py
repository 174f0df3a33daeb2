"""Expressions that servers of every supported version understand, and that match no fewer rows than the filter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ldot_milvus.stores import filter_patterns
from ldot_milvus.stores.filters import parse
from ldot_milvus.stores.milvus.expressions import EVERYTHING, Expression, to_milvus
from tests.drawn_filters import PATTERNS, WORDS

VERSIONS = [(2, 3), (2, 4), (2, 6), (3, 0)]


def compiled(filter: dict[str, Any], version: tuple[int, int] = (2, 3), lite: bool = False) -> Expression:
    return to_milvus(parse(filter), version, lite=lite)


class Text(str):
    """Evaluates ``text @ pattern`` as Milvus evaluates ``text like pattern``."""

    def __matmul__(self, pattern: str) -> bool:
        return filter_patterns.predicate(filter_patterns.tokens(pattern))(str(self))


@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_no_fewer_texts(pattern: str, version: tuple[int, int], negated: bool) -> None:
    condition = {"caption": {"$like": pattern}}
    expression = compiled({"$not": condition} if negated else condition, version)
    python = expression.text.replace(" like ", " @ ").replace(EVERYTHING, "True")
    matches = filter_patterns.predicate(filter_patterns.tokens(pattern))
    for word in (*WORDS, pattern, "aab", "a\nb", "2024-05-01T10:00"):
        found, expected = eval(python, {"caption": Text(word)}), matches(word) != negated
        assert found == expected if expression.exact else found >= expected, (expression, word)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_milvus_2_3_gets_no_pattern(pattern: str) -> None:
    """It refuses all but prefixes, which are compared instead."""
    assert " like " not in compiled({"caption": {"$like": pattern}}).text
    assert " like " not in compiled({"metadata.a": {"$like": pattern}}).text


@pytest.mark.parametrize(
    ("filter", "text"),
    [
        ({"caption": {"$like": "a%"}}, '(caption >= "a" and caption < "b")'),
        ({"caption": {"$like": "a"}}, '(caption == "a")'),
        ({"metadata.a": {"$contains": 5}}, '(json_contains(metadata["a"], 5.0))'),
        ({"metadata.a": {"$contains": "x"}}, '(json_contains(metadata["a"], "x"))'),
        ({'metadata["x.y"].z': True}, '(metadata["x.y"]["z"] == true)'),
        ({"metadata.a[0]": "x"}, '(metadata["a"]["0"] == "x")'),
        (
            {"metadata.a": {"$in": [1, True, "x", 2.5, False, "y", 1.0]}},
            '(metadata["a"] in [true, false] or metadata["a"] in [1.0, 2.5] or metadata["a"] in ["x", "y"])',
        ),
        ({"metadata.a": {"$in": []}}, "(id in [])"),
        ({"width": {"$in": [5, 2**63 - 1, 0.5]}}, "(width in [5])"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_exact_expressions(filter: dict[str, Any], text: str, version: tuple[int, int]) -> None:
    assert compiled(filter, version) == Expression(text)


@pytest.mark.parametrize(
    "filter",
    [
        {"metadata.a": None},
        {"metadata.a": {"$contains": None}},
        {"metadata.a": 2**53},
        {"metadata.a": {"$in": ["x", None]}},
        {'metadata["q\\"q"]': 1},
        {'metadata["back\\\\slash"]': 1},
        {"metadata.a": {"$ne": "2024-05-01"}},
        {"metadata.a": {"$not": {"$like": "%_%"}}},
    ],
)
def test_what_no_server_evaluates_as_we_do_is_evaluated_here(filter: dict[str, Any]) -> None:
    for version in VERSIONS:
        assert compiled(filter, version) == Expression(EVERYTHING, exact=False)


def test_presence_is_asked_of_servers_that_count_null_as_present() -> None:
    assert compiled({"metadata.a": {"$exists": True}}, (2, 3)) == Expression('(exists metadata["a"])')
    assert compiled({"metadata.a": {"$exists": True}}, (2, 4)) == Expression(EVERYTHING, exact=False)


def test_a_time_asks_for_the_texts_of_the_days_around_it() -> None:
    since = compiled({"metadata.a": {"$gte": "2024-05-01T10:00:00Z"}})
    assert since == Expression('(metadata["a"] >= "2024-04-30" and metadata["a"] < ":")', exact=False)
    equal = compiled({"metadata.a": "2024-05-01T10:00:00Z"})
    assert equal == Expression('((metadata["a"] >= "2024-04-30" and metadata["a"] < "2024-05-03"))', exact=False)


def test_milvus_lite_evaluates_no_metadata() -> None:
    assert compiled({"metadata.a": 1, "width": 5}, lite=True) == Expression(
        f"({EVERYTHING} and (width == 5))", exact=False
    )


@pytest.mark.parametrize("value", ['"', '" or id != "', "\\", "\n", "é", "𝄞"])
def test_values_are_literals(value: str) -> None:
    assert compiled({"metadata.a": value}).text == f'(metadata["a"] == {json.dumps(value, ensure_ascii=False)})'
