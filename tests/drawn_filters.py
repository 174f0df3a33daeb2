"""Random rows and filters, and an evaluator that shares nothing with the code under test."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

from hypothesis import strategies as st

TEXT = ("id", "kind", "namespace", "source", "caption")
NUMBERS = ("width", "height")
MISSING = object()

# ---- rows and filters, from few values, so that filters match

KEYS = ("a", "b", "sp ace", "é", "[0]", "$eq", "x.y", 'q"q', "it's", "back\\slash", "a/b", "~", "0", "00", "line\n")
PATHS = {
    "metadata.a": ("a",),
    'metadata["a"]': ("a",),
    "metadata.b": ("b",),
    "metadata.sp ace": ("sp ace",),
    "metadata.é": ("é",),
    'metadata["[0]"]': ("[0]",),
    "metadata.$eq": ("$eq",),
    'metadata["x.y"]': ("x.y",),
    "metadata.x.y": ("x", "y"),
    r'metadata["q\"q"]': ('q"q',),
    'metadata["it\'s"]': ("it's",),
    r'metadata["back\\slash"]': ("back\\slash",),
    "metadata.a/b": ("a/b",),
    "metadata.~": ("~",),
    r'metadata["line\n"]': ("line\n",),
    "metadata.0": ("0",),
    "metadata.a.0": ("a", "0"),
    "metadata.a[0]": ("a", "0"),
    'metadata.a["0"]': ("a", "0"),
    "metadata.a.00": ("a", "00"),
    "metadata.a[1].b": ("a", "1", "b"),
    "metadata.a.b": ("a", "b"),
    'metadata.a["x.y"]': ("a", "x.y"),
    "metadata.b.a": ("b", "a"),
    "metadata.none": ("none",),
}
"""How a filter names a field, and the keys that lead to it."""

TIMES = (
    "2024-05-01",
    "2024-05-01T00:00",
    "2024-05-01 00:00:00",
    "2024-05-01T10:00:00Z",
    "2024-05-01T12:00:00+02:00",
    "2024-05-01T08:00:00.000001Z",
    "2024-05-01T10:00:00-05:30",
    "2024-04-30T23:59:59.999999",
    "0001-01-01",
    "9999-12-31T23:59:59-23:59",
)
NOT_TIMES = (
    "2024-05-01T25:00",
    "2024-13-01",
    "2024-5-1",
    "20240501",
    "2024-05-01T10",
    "2024",
    "2024-05-01T10:00z",
    "２024-05-01",
)
WORDS = (
    "",
    "a",
    "A",
    "b",
    "1",
    "é",
    "É",
    "𝄞",
    "'; DROP TABLE records; --",
    '"',
    "\\",
    "%",
    "a_b",
    "ab",
    "a*b",
    "[a]",
    "true",
    "line\nbreak",
)
PATTERNS = (
    "%",
    "",
    "a",
    "a%",
    "A%",
    "%b",
    "%a%",
    "_",
    "__",
    "a_b",
    r"a\_b",
    r"\%",
    r"\\",
    "%_",
    "_%b",
    "[a]",
    "*",
    "a%b%",
    "2024-05%",
    "%T%",
    "𝄞",
    '"%',
    "%\n%",
)

texts = st.sampled_from(WORDS + TIMES + NOT_TIMES)
numbers = st.one_of(
    st.sampled_from(
        [0, 1, -1, 2, 1.0, 0.5, 0.1, 0.1 + 0.2, 1e300, 2**53 - 1, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63)]
    ),
    st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False, width=32),
)
scalars = st.one_of(texts, numbers, st.booleans(), st.none())
small = st.dictionaries(st.sampled_from(KEYS), scalars, max_size=3)
metadata = st.dictionaries(
    st.sampled_from((*KEYS, "x")),
    st.one_of(scalars, st.lists(st.one_of(scalars, small, st.lists(scalars, max_size=1)), max_size=3), small),
    max_size=5,
)
row_dicts = st.fixed_dictionaries(
    {**dict.fromkeys(TEXT, texts), **dict.fromkeys(NUMBERS, st.integers(0, 3)), "metadata": metadata}
)


def operators_for(
    values: st.SearchStrategy[Any], ordered: st.SearchStrategy[Any], more: dict[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[Any]:
    plain = st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("$eq", "$ne"), values),
            **dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), ordered),
            **dict.fromkeys(("$in", "$nin"), st.lists(values, max_size=3)),
            **more,
        },
    ).filter(bool)
    return st.one_of(values, plain, st.fixed_dictionaries({"$not": plain}))


patterns = {"$like": st.sampled_from(PATTERNS)}
conditions = st.one_of(
    st.dictionaries(st.sampled_from(TEXT), operators_for(texts, texts, patterns), min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(NUMBERS), operators_for(numbers, numbers, {}), min_size=1, max_size=2),
    *[
        st.dictionaries(
            st.sampled_from(list(PATHS)),
            operators_for(
                scalars,
                st.one_of(texts, numbers),
                {**patterns, "$contains": scalars, "$exists": st.booleans()},
            ),
            min_size=1,
            max_size=2,
        )
    ]
    * 3,
)
filters = st.recursive(
    conditions,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$not": inner}),
        st.dictionaries(st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3), min_size=1),
    ),
    max_leaves=5,
)

# ---- the evaluator


def look_up(row: dict[str, Any], key: str) -> Any:
    if key not in PATHS:
        return row[key]
    value: Any = row["metadata"]
    for part in PATHS[key]:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part in [str(n) for n in range(len(value))]:
            value = value[int(part)]
        else:
            return MISSING
    return value


def time_of(value: Any) -> dt.datetime | None:
    """Read a time; only what :data:`TIMES` and :data:`NOT_TIMES` contain need be right."""
    shape = r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{6})?)?(Z|[+-]\d\d:\d\d)?)?"
    if not isinstance(value, str) or not re.fullmatch(shape, value, re.ASCII):
        return None
    try:
        read = dt.datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError:
        return None
    return read if read.tzinfo else read.replace(tzinfo=dt.timezone.utc)


def type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    return {int: "number", float: "number", str: "text", type(None): "null"}.get(type(value), "other")


def like(pattern: str, text: str) -> bool:
    meaning = {"%": ".*", "_": "."}
    regex = "".join(meaning.get(part, re.escape(part[-1])) for part in re.findall(r"\\.|.", pattern, re.DOTALL))
    return re.fullmatch(regex, text, re.DOTALL) is not None


def holds(operator: str, stored: Any, value: Any, times: bool) -> bool:
    if operator == "$ne":
        return not holds("$eq", stored, value, times)
    if operator == "$nin":
        return not holds("$in", stored, value, times)
    if operator == "$in":
        return any(holds("$eq", stored, item, times) for item in value)
    if operator == "$not":
        return not all(holds(inner, stored, item, times) for inner, item in value.items())
    if operator == "$exists":
        return (stored is not MISSING) == value
    if operator == "$contains":
        return isinstance(stored, list) and any(holds("$eq", item, value, times) for item in stored)
    if operator == "$like":
        return isinstance(stored, str) and like(value, stored)
    if times and time_of(value) is not None:
        stored, value = time_of(stored), time_of(value)
        if stored is None:
            return False
    elif type_of(stored) != type_of(value) or type_of(stored) == "other":
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
            stored = look_up(row, key)
            verdict = all(holds(operator, stored, item, key in PATHS) for operator, item in operators.items())
        if not verdict:
            return False
    return True
