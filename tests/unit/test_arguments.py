"""Counts, numbers, lists, texts and JSON values: the usual types are taken, and the rest is told in one line."""

from __future__ import annotations

import datetime as dt
import enum
import re
import uuid
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from ldot_milvus.arguments import described, listed, real_number, whole_number
from ldot_milvus.errors import UsageError
from ldot_milvus.json_values import json_value
from ldot_milvus.models.inputs import text_list, words_only


def named(value: Any) -> str:
    """A name of a case that is the same in every process, as pytest-xdist needs it: no address, no order of a set."""
    text = f"{type(value).__name__} of {len(value)}" if isinstance(value, (set, frozenset)) else repr(value)
    return re.sub(r" at 0x[0-9a-f]+|\s+", " ", text)[:40]


COUNTS = [3, np.int64(3), np.uint8(3), np.int32(3), torch.tensor(3), np.array(3), enum.IntEnum("N", {"three": 3}).three]
NO_COUNTS = [
    3.0, np.float32(3), "3", b"3", None, True, np.bool_(True), torch.tensor(True), Decimal(3), [3], np.array([3]),
    torch.tensor([3]), torch.tensor(3.0), float("nan"), 0, -3, 101, object(),
]  # fmt: skip


@pytest.mark.parametrize("value", COUNTS, ids=named)
def test_counts(value: Any) -> None:
    assert type(whole_number(value, "k", 1, 100)) is int
    assert whole_number(value, "k", 1) == 3


@pytest.mark.parametrize("value", NO_COUNTS, ids=named)
def test_what_is_no_count(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^k is .*: give a whole number from 1 to 100$"):
        whole_number(value, "k", 1, 100)


@pytest.mark.parametrize("value", [
    0.5, np.float32(0.5), np.float64(0.5), np.float16(0.5), Decimal("0.5"), Fraction(1, 2), np.array(0.5),
    torch.tensor(0.5),
])  # fmt: skip
def test_numbers(value: Any) -> None:
    got = real_number(value, "min_probability", 0, 1)
    assert type(got) is float
    assert got == 0.5


@pytest.mark.parametrize("value", [
    "0.5", None, True, np.bool_(True), [0.5], np.array([0.5]), 1.1, -0.1, float("nan"), np.nan, Decimal("NaN"), 1 + 0j,
], ids=named)  # fmt: skip
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^min_probability is .*: give a number from 0 to 1$"):
        real_number(value, "min_probability", 0, 1)


@pytest.mark.parametrize(("value", "words"), [
    (None, "None"), (5, "5 (int)"), ("a\nb", "'a\\nb'"), ("x" * 100, "'" + "x" * 59 + "..."),
    (b"abc", "3 bytes (bytes)"),
    (np.zeros((3, 2)), "an array of shape (3, 2) and dtype float64 (ndarray)"), ([1, 2], "a list of 2"),
    ({}, "a dict of 0"),
    (torch.zeros(2, 3), "an array of shape (2, 3) and dtype float32 (torch.Tensor)"),
    (np.int64(3), "np.int64(3) (int64)"),
    (Path("a"), "a pathlib.PosixPath"), (object(), "an object"), (iter([]), "a list_iterator"), ("\ud83d", "'\\ud83d'"),
    ("\x1b[2J\u202e", "'\\x1b[2J\\u202e'"), (pandas.Series(["a"]), "an array of shape (1,) and dtype"),
])  # fmt: skip
def test_what_was_given_is_described_in_a_line(value: Any, words: str) -> None:
    assert words in described(value)
    assert described(value).isprintable()


TEXTS = ["a dog", "a cat"]


@pytest.mark.parametrize("texts", [
    TEXTS, tuple(TEXTS), (text for text in TEXTS), np.array(TEXTS), np.array(TEXTS, object), pandas.Series(TEXTS),
    pandas.Series(TEXTS, dtype="string"), pandas.Index(TEXTS),
    [np.str_(text) for text in TEXTS], map(str, TEXTS),
], ids=lambda texts: type(texts).__name__)  # fmt: skip
def test_several_texts(texts: Any) -> None:
    got = text_list(texts, 100)
    assert got == TEXTS
    assert all(type(text) is str for text in got)


@pytest.mark.parametrize("ids", [[[5, 6]], [(5, 6)], [np.array([5, 6])], [torch.tensor([5, 6])], np.array([[5, 6]])])
def test_token_ids(ids: Any) -> None:
    assert text_list(ids, 7) == [[5, 6]]
    with pytest.raises(UsageError, match="from 0 to 5"):
        text_list(ids, 6)
    with pytest.raises(UsageError, match="model 'm' reads texts, not token ids"):
        words_only("m", ids)


@pytest.mark.parametrize(("texts", "words"), [
    ("a dog", "give a list of texts, not 'a dog'"), (b"a dog", "give a list of texts, not 5 bytes"),
    (None, "give a list of texts, not None"), (5, "give a list of texts, not 5 (int)"),
    ({"a dog": 1}, "give a list of texts, not a dict"), ({"a dog"}, "give a list of texts, not a set"),
    (np.str_("a dog"), "give a list of texts, not"),
    (pandas.DataFrame({"text": TEXTS}), "give a list of texts, not"), (np.array("a dog"), "give a list of texts, not"),
    (["a", None], "text 2 is None: give a str"), (["a", 5], "text 2 is 5 (int)"),
    (["a", b"b"], "decode it, as in text.decode()"),
    (pandas.Series(["a", float("nan")], dtype=object), "text 2 is nan (float): give a str"),
    (["", "a"], "the text is empty"),
    ([" \t\n"], "the text is empty"), (["dog \ud83d"], "half a surrogate pair"),
    ([["a", "b"]], "text 1 is a list of 2"),
    ([[]], "token ids are at least one number"), ([[-1]], "token ids are at least one number"),
    ([[0.5]], "text 1 is a list"),
    ([np.zeros((2, 2))], "text 1 is an array of shape (2, 2)"),
], ids=named)  # fmt: skip
def test_what_is_no_list_of_texts(texts: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        text_list(texts, 100)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_no_text_is_an_empty_list() -> None:
    assert text_list([], 9) == text_list(iter(()), 9) == text_list(np.array([], str), 9) == []
    assert list(listed(range(3), "numbers")) == [0, 1, 2]


class Season(enum.Enum):
    WINTER = "winter"


class Level(enum.IntEnum):
    HIGH = 3


UTC = dt.timezone.utc
JSON: list[tuple[Any, Any]] = [
    (None, None), (True, True), (7, 7), (0.5, 0.5), ("a", "a"), ([1, [2]], [1, [2]]),
    ({"a": {"b": 1}}, {"a": {"b": 1}}),
    ((1, 2), [1, 2]), ({3, 1, 2}, [1, 2, 3]), (frozenset({"b", "a"}), ["a", "b"]), (np.int64(7), 7), (np.uint8(7), 7),
    (np.float32(0.5), 0.5), (np.float64(0.5), 0.5), (np.bool_(True), True), (np.str_("a"), "a"),
    (np.array([1, 2]), [1, 2]),
    (np.array([[0.5]]), [[0.5]]), (np.array(["a"]), ["a"]), (np.array(3), 3), (Decimal("12"), 12),
    (Decimal("12.50"), 12.5),
    (Decimal("1E+2"), 100), (Season.WINTER, "winter"), (Level.HIGH, 3), (dt.date(2026, 11, 26), "2026-11-26"),
    (dt.datetime(2026, 11, 26, 22, 5), "2026-11-26T22:05:00"),
    (dt.datetime(2026, 11, 26, 22, 5, 1, 500_000, UTC), "2026-11-26T22:05:01.500000+00:00"),
    (dt.datetime(2026, 11, 26, 22, 5, tzinfo=dt.timezone(dt.timedelta(hours=-5))), "2026-11-26T22:05:00-05:00"),
    (dt.time(22, 5), "22:05:00"), (np.datetime64("2026-11-26T22:05"), "2026-11-26T22:05"),
    (pandas.Timestamp("2026-11-26 22:05"), "2026-11-26T22:05:00"),
    (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    (PurePosixPath("/a/b"), "/a/b"), ({Season.WINTER: {"x": {1}}}, {"winter": {"x": [1]}}),
    ({np.str_("a"): 1}, {"a": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), JSON, ids=named)
def test_values_of_metadata(value: Any, expected: Any) -> None:
    got = json_value(value, "metadata")
    assert got == expected
    assert type(got) is type(expected)
    assert json_value(got, "metadata") == got  # so that a second run says "unchanged"


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth else 1


@pytest.mark.parametrize(("value", "words"), [
    (b"abc", "3 bytes (bytes) is not a JSON value"), (object(), "an object is not"), (1j, "1j (complex) is not"),
    (dt.timedelta(1), "a datetime.timedelta is not"), (pandas.NaT, "is not a JSON value"),
    (np.datetime64("NaT"), "is not a"),
    (pandas.NA, "is not a JSON value"), ({1: "a"}, "a key is a string, not 1 (int)"),
    ({"a": {"b": b""}}, "metadata.a.b: 0 bytes"),
    ({None: 1}, "a key is a string, not None"), (nested(70), "nested more than 64 deep"),
    (np.array([1j]), "is not a JSON value"),
    (lambda: 1, "a function is not"), (range(3), "a range is not"), ([{"a": {object()}}], "an object is not"),
], ids=named)  # fmt: skip
def test_what_has_no_form_in_json(value: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        json_value(value, "metadata")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
