"""Every store finds the rows for which the reference predicate is true: random metadata and random filters.

``tests/unit/stores/test_filters.py`` compares the predicate with an evaluator that shares nothing with it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ldot_milvus.stores import Record, VectorStore, open_store
from ldot_milvus.stores.filter_match import predicate
from ldot_milvus.stores.filters import parse
from ldot_milvus.stores.milvus import expressions
from ldot_milvus.stores.milvus.store import MilvusStore
from tests.congruence.test_stores import drop
from tests.drawn_filters import NOT_TIMES, TIMES, WORDS, filters, metadata

pytestmark = [
    pytest.mark.xdist_group("milvus"),
    pytest.mark.servers,
    pytest.mark.filterwarnings("ignore::ldot_milvus.UnknownField"),
]

DIM = 4
ROWS = 150
K = 5
QUERY = np.eye(DIM, dtype=np.float32)[:1]


def drawn_metadata() -> list[dict[str, Any]]:
    """Draw once, from a fixed seed, since filling a collection takes a server seconds; and add every kind of value."""
    found: list[dict[str, Any]] = []

    @settings(
        max_examples=1,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(st.data())
    def draw(data: st.DataObject) -> None:
        found[:] = [data.draw(metadata) for _ in range(ROWS)]

    draw()
    values = [*WORDS, *TIMES, *NOT_TIMES, 0, 1, 1.0, True, None, 2**53, 2**53 + 1, 2**63 - 1, 0.1 + 0.2, 1e300]
    for value in values:
        found += [{"a": value}, {"b": [value, 1]}, {"a": {"b": value}}]
    lists = ([], {}, [[]], [{}], [1, [2]], [None], [True], [1.0], [{"b": 1}], [0, {"b": "x"}])
    return [*found, *({"a": value} for value in lists)]


@pytest.fixture(scope="module")
def rows() -> list[Record]:
    """Rows whose scores for :data:`QUERY` rise with their ids."""
    rng = np.random.default_rng(0)
    return [
        Record(
            f"id-{number:04d}",
            np.array([number / 16, *rng.normal(size=DIM - 1)], np.float32),
            namespace=str(rng.choice(["a", "A", "é"])),
            source=str(rng.choice(WORDS)),
            caption=str(rng.choice(WORDS)),
            width=int(rng.integers(4)),
            height=int(rng.integers(4)),
            metadata=drawn,
        )
        for number, drawn in enumerate(drawn_metadata())
    ]


@pytest.fixture(scope="module", params=["local", "lite", "milvus_url"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, rows: list[Record]
) -> Iterator[VectorStore]:
    folder = tmp_path_factory.mktemp("filters")
    address = {"local": f"faiss:{folder}", "lite": f"{folder}/x.db"}.get(request.param)
    with open_store(address or request.getfixturevalue(request.param), f"f{secrets.token_hex(6)}") as opened:
        opened.bind("model-a", DIM)
        opened.upsert(rows)
        assert opened.count() == len(rows)
        if isinstance(opened, MilvusStore):
            read = opened.server.read
            # A server makes a read that must see every write wait for its clock, a fifth of a second.
            opened.server.read = lambda *of, **options: read(*of, **{**options, "consistency_level": "Eventually"})  # type: ignore[method-assign]
        yield opened
        drop(opened)


def assert_found(store: VectorStore, filter: dict[str, Any], expected: list[str]) -> None:
    assert [row.id for row in store.iterate(filter)] == expected
    assert store.count(filter) == len(expected)
    best = [match.record.id for match in store.search(QUERY, K, filter=filter)[0]]
    assert best == expected[: -K - 1 : -1]


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(filter=filters)
def test_the_same_rows_as_the_reference(store: VectorStore, rows: list[Record], filter: dict[str, Any]) -> None:
    matches = predicate(parse(filter))
    assert_found(store, filter, [row.id for row in rows if matches(row)])


def test_long_lists(store: VectorStore, rows: list[Record]) -> None:
    """Of texts, numbers and ids, alone, negated, and beside other conditions."""
    words, numbers = [f"word {n}" for n in range(6_000)], list(range(10, 6_010))
    among = [*words, *numbers, "a", 1, True]
    nested = {"$or": [{"source": {"$in": [*words, "a"]}}, {"$not": {"id": {"$in": [*words, "id-0001"]}}}]}
    filters: list[dict[str, Any]] = [
        {"metadata.a": {"$in": among}},
        {"metadata.a": {"$nin": among}},
        {**nested, "width": {"$in": [2, *numbers]}},
    ]
    for filter in filters:
        matches = predicate(parse(filter))
        assert_found(store, filter, [row.id for row in rows if matches(row)])


def test_a_list_too_long_for_a_request(store: VectorStore, rows: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "MAX_LIST", 100)
    words = ["a", *(f"word {n}" for n in range(20))]
    for filter in ({"metadata.a": {"$in": words}}, {"metadata.a": {"$nin": words}}, {"source": {"$in": words}}):
        matches = predicate(parse(filter))
        assert_found(store, filter, [row.id for row in rows if matches(row)])
