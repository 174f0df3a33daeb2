"""All stores return the same results and raise the same errors for the same calls: random ones, and one of each kind.

The rows, filters and calls are drawn from seeds. Scores agree within 1e-4, ids in order, ties aside.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldot_milvus.errors import CollectionNotFound, LdotError
from ldot_milvus.stores import Record, VectorStore, open_store, register_store
from ldot_milvus.stores.base import SCHEMA_VERSION, VERSION, Filter
from ldot_milvus.stores.milvus.store import MilvusStore
from ldot_milvus.stores.regions import RegionStore
from ldot_milvus.stores.upgrade import upgrade
from tests.integration.stores.test_upgrade import fill_version_1, ids

pytestmark = [pytest.mark.xdist_group("milvus"), pytest.mark.servers]

DIM = 12
CASES = 26  # a seed: 520 on each of the stores that are held against the local one, and four calls a case
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))]

Rng = np.random.Generator


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("lite") / "x.db")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    register_store("tests.integration.stores.toy_store:ToyAddress")
    return f"toy:{tmp_path_factory.mktemp('toy')}"


@pytest.fixture(scope="module", params=["toy", "lite", "milvus_url"])
def address(request: pytest.FixtureRequest) -> str:
    """Address of the store that is compared with the local one; a new store adds a fixture and its name here."""
    return str(request.getfixturevalue(request.param))


Pair = tuple[VectorStore, VectorStore]


@pytest.fixture
def pair(address: str, tmp_path: Path) -> Iterator[Pair]:
    """The local store and the other one, each with an empty collection of the same name."""
    yield from empty_pair(address, tmp_path)


@pytest.fixture(scope="module")
def standing_pair(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The same two stores, shared by calls that write nothing: creating a collection takes a server seconds."""
    yield from empty_pair(address, tmp_path_factory.mktemp("standing"))


def empty_pair(address: str, folder: Path) -> Iterator[Pair]:
    name = f"c{secrets.token_hex(6)}"
    with open_store(f"faiss:{folder}", name) as local, open_store(address, name) as other:
        local.bind("model-a", DIM)
        other.bind("model-a", DIM)
        yield local, other
        drop(other)


def drop(store: VectorStore) -> None:
    """Delete the collections of a test, since other tests use the same server."""
    if not isinstance(store, MilvusStore):
        return
    physical = store.server.call("describe_collection", store.collection)["collection_name"]
    store.server.call("drop_alias", store.collection)
    store.server.call("drop_collection", physical)


# ---- drawing rows, filters and calls

WORDS = [
    "",
    "dog",
    "a dog",
    "Dog",
    "dög",
    'dog\'s "ball"',
    "back\\slash",
    "50 %",
    "a_b",
    "snow\nice",
    "犬",
    "🐕",
    "zebra",
]
TENANTS = ["default", "anna", "bob", "ünï"]
VALUES: list[Any] = [
    0,
    1,
    -1,
    2,
    2.5,
    -0.5,
    1.0,
    True,
    False,
    None,
    "1",
    "",
    "x",
    "true",
    10**12,
    1e300,
    2**60 + 1,
    [1],
    {"b": 1},
]


def some(rng: Rng, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def draw_metadata(rng: Rng) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key in ("a", "n", "key with space", "ключ"):
        if rng.random() < 0.6:
            made[key] = some(rng, VALUES)
    if rng.random() < 0.5:
        made["deep"] = {"b": some(rng, VALUES), "c": {"d": some(rng, VALUES)}}
    return made


def draw_rows(rng: Rng, count: int, ids: int) -> list[Record]:
    return [
        Record(
            f"id-{int(rng.integers(ids)):03d}",
            (rng.normal(size=DIM) * rng.choice([0.1, 1, 10])).astype(np.float32),
            kind="text" if rng.random() < 0.2 else "image",
            namespace=some(rng, TENANTS),
            source=f"/photos/{some(rng, WORDS)}.jpg",
            caption=some(rng, WORDS),
            width=int(rng.integers(0, 6)) * 320,
            height=int(rng.integers(0, 2**31 - 1)),
            metadata=draw_metadata(rng),
        )
        for _ in range(count)
    ]


def draw_condition(rng: Rng) -> Filter:
    place = rng.random()
    if place < 0.5:
        key = some(rng, ["a", "n", "key with space", "ключ", "deep.b", "deep.c.d", "missing", "deep.missing", "deep"])
        field, values = f"metadata.{key}", [value for value in VALUES if not isinstance(value, (list, dict))]
    elif place < 0.75:
        field = some(rng, ["caption", "namespace", "source", "id", "kind"])
        values = {"namespace": TENANTS, "kind": ["image", "text"], "id": ["id-000", "id-010", "zz"]}.get(field, WORDS)
    else:
        field, values = some(rng, ["width", "height"]), [0, 320, 640.0, 639.5, 1600, -1, 2**31, 1e30, 2**30]
    operator = some(rng, ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", None])
    if operator in ("$in", "$nin"):
        return {field: {operator: [some(rng, values) for _ in range(int(rng.integers(0, 4)))]}}
    if operator in ("$gt", "$gte", "$lt", "$lte"):
        values = [value for value in values if not (value is None or isinstance(value, bool))]
    return {field: some(rng, values) if operator is None else {operator: some(rng, values)}}


def draw_filter(rng: Rng, depth: int = 0) -> Filter:
    kind = rng.random()
    if depth < 3 and kind < 0.15:
        return {"$not": draw_filter(rng, depth + 1)}
    if depth < 3 and kind < 0.5:
        return {some(rng, ["$and", "$or"]): [draw_filter(rng, depth + 1) for _ in range(int(rng.integers(1, 4)))]}
    return draw_condition(rng)


# ---- comparing


def assert_same_rows(ours: list[Record], theirs: list[Record], what: Any) -> None:
    assert [row.id for row in ours] == [row.id for row in theirs], what
    for one, other in zip(ours, theirs, strict=True):
        for name in ("kind", "namespace", "source", "caption", "width", "height", "metadata"):
            assert getattr(one, name) == getattr(other, name), (what, one.id, name)
        assert (one.embedding is None) == (other.embedding is None), what
        if one.embedding is not None and other.embedding is not None:
            np.testing.assert_array_equal(one.embedding, other.embedding)


def assert_same_matches(ours: list[Any], theirs: list[Any], what: Any) -> None:
    assert len(ours) == len(theirs), what
    np.testing.assert_allclose(
        [m.score for m in ours], [m.score for m in theirs], rtol=1e-5, atol=1e-4, err_msg=str(what)
    )
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one.record.id != other.record.id:  # only where another row has the same score
            near = [m.record.id for m in ours if abs(m.score - other.score) < 1e-3]
            assert other.record.id in near or place == len(ours) - 1, (what, one, other)
        else:
            assert_same_rows([one.record], [other.record], what)


def outcome(call: Callable[[VectorStore], Any], store: VectorStore) -> Any:
    """Return the result of a call, or the type of its error."""
    try:
        return call(store)
    except LdotError as error:
        return type(error).__name__


# ---- the tests


@pytest.mark.parametrize("seed", SEEDS)
def test_random_calls(pair: Pair, seed: int) -> None:
    local, other = pair
    rng = np.random.default_rng(seed)
    for store_rows in (draw_rows(rng, 60, 80), draw_rows(rng, 30, 80)):
        assert local.upsert(store_rows) == other.upsert(store_rows)
    for case in range(CASES):
        change = rng.random()
        if change < 0.15:
            fresh = draw_rows(rng, int(rng.integers(1, 8)), 80)
            assert local.upsert(fresh) == other.upsert(fresh)
        elif change < 0.25:
            going = [f"id-{int(n):03d}" for n in rng.integers(0, 90, 3)]
            assert local.delete(going) == other.delete(going), (seed, case, going)
        elif change < 0.3:
            filter = {"$and": [draw_filter(rng), {"id": {"$gt": "id-060"}}]}
            assert local.delete(filter=filter) == other.delete(filter=filter), (seed, case, filter)
        elif change < 0.4:
            rows = draw_rows(rng, 3, 90)
            assert local.update(rows) == other.update(rows), (seed, case)
        filter = None if rng.random() < 0.1 else draw_filter(rng)
        what = (seed, case, filter)
        assert local.count(filter) == other.count(filter), what
        size = 7 if rng.random() < 0.1 else 1000  # many pages now and then: each one waits for the server's clock
        assert_same_rows(list(local.iterate(filter)), list(other.iterate(filter, batch_size=size)), what)
        queries = rng.normal(size=(int(rng.integers(1, 4)), DIM)).astype(np.float32)
        k, kind = int(some(rng, [1, 3, 10, 100, 1000])), str(some(rng, ["image", "image", "text"]))
        for ours, theirs in zip(
            local.search(queries, k, kind=kind, filter=filter),
            other.search(queries, k, kind=kind, filter=filter),
            strict=True,
        ):
            assert_same_matches(ours, theirs, (*what, k, kind))
        asked = [f"id-{int(n):03d}" for n in rng.integers(0, 90, 5)]
        with_embeddings = bool(rng.random() < 0.5)
        assert_same_rows(
            local.get(asked, with_embeddings=with_embeddings), other.get(asked, with_embeddings=with_embeddings), what
        )


VECTOR = np.ones(DIM, np.float32)
QUOTED = "a\"b' or 1==1"

CALLS: dict[str, Callable[[VectorStore], Any]] = {
    "k of 0": lambda store: store.search(VECTOR[None], 0),
    "k too large": lambda store: store.search(VECTOR[None], 16385),
    "unknown kind": lambda store: store.search(VECTOR[None], 1, kind="video"),
    "query of another width": lambda store: store.search(np.ones((1, DIM + 1), np.float32), 1),
    "query with NaN": lambda store: store.search(np.full((1, DIM), np.nan, np.float32), 1),
    "no query": lambda store: store.search(np.zeros((0, DIM), np.float32), 1),
    "unknown field": lambda store: store.count({"colour": "red"}),
    "unknown operator": lambda store: store.count({"width": {"$near": 3}}),
    "row with infinity": lambda store: store.upsert([Record("a", VECTOR * np.inf)]),
    "row of another width": lambda store: store.upsert([Record("a", np.ones(DIM + 1, np.float32))]),
    "row without an id": lambda store: store.upsert([Record("", VECTOR)]),
    "caption too long": lambda store: store.upsert([Record("a", VECTOR, caption="é" * 5000)]),
    "no rows": lambda store: store.upsert([]),
    "another model": lambda store: store.bind("model-b", DIM),
    "another width": lambda store: store.bind("model-a", DIM + 1),
    "the same model": lambda store: store.bind("model-a", DIM),
    "delete nothing": lambda store: store.delete(),
    "delete everything": lambda store: store.delete(filter={}),
    "delete the absent": lambda store: store.delete(["nobody"]),
    "get nothing": lambda store: store.get([]),
    "get one string": lambda store: store.get("id-001"),
    "an id with quotes": lambda store: [store.upsert([Record(QUOTED, VECTOR)]), store.count(), store.delete([QUOTED])],
    "an injected value": lambda store: store.count({"caption": '" or id != "'}),
    "count of nothing": lambda store: store.count({"id": {"$in": []}}),
    "model and dim": lambda store: (store.model, store.dim),
    "batch size of 0": lambda store: list(store.iterate(batch_size=0)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_one_of_each(standing_pair: Pair, name: str) -> None:
    local, other = standing_pair
    expected, got = (outcome(CALLS[name], store) for store in (local, other))
    assert got == expected


def test_a_collection_that_is_not_there(address: str, tmp_path: Path) -> None:
    name = f"c{secrets.token_hex(6)}"
    calls: list[Callable[[VectorStore], Any]] = [
        lambda store: store.count(),
        lambda store: store.get(["a"]),
        lambda store: store.delete(["a"]),
        lambda store: store.update([Record("a")]),
        lambda store: list(store.iterate()),
        lambda store: store.search(VECTOR[None], 3),
        lambda store: (store.model, store.dim),
    ]
    with open_store(f"faiss:{tmp_path}", name) as local, open_store(address, name) as other:
        assert [outcome(call, other) for call in calls] == [outcome(call, local) for call in calls]


def test_rows_without_a_model_adopt_one(address: str, tmp_path: Path) -> None:
    name = f"c{secrets.token_hex(6)}"
    with open_store(f"faiss:{tmp_path}", name) as local, open_store(address, name) as other:
        for store in (local, other):
            assert store.upsert([Record("a", VECTOR)]) == 1
            assert (store.model, store.dim) == (None, DIM)
            store.bind("model-a", DIM)
            assert store.model == "model-a"
        assert outcome(lambda s: s.bind("model-b", DIM), other) == outcome(lambda s: s.bind("model-b", DIM), local)
        drop(other)


def test_what_one_writes_another_finds(address: str) -> None:
    name = f"c{secrets.token_hex(6)}"
    with open_store(address, name) as one, open_store(address, name) as two:
        one.bind("model-a", DIM)
        one.upsert([Record("a", VECTOR)])
        assert [m.record.id for m in two.search(VECTOR[None], 5)[0]] == ["a"]
        two.upsert([Record("b", 2 * VECTOR)])
        assert [m.record.id for m in two.search(VECTOR[None], 5)[0]] == ["b", "a"]
        one.delete(["a"])
        assert [m.record.id for m in one.search(VECTOR[None], 5)[0]] == ["b"]
        drop(one)


def test_properties(pair: Pair) -> None:
    """Each store keeps them beside the model, and a collection that does not exist has none."""
    for store in pair:
        assert store.properties == {VERSION: str(SCHEMA_VERSION)}
        store.set_properties({"a": '{"b": "ü \\"c\\""}', VERSION: "1"})
        store.set_properties({"a": "d"})
        assert store.properties == {VERSION: "1", "a": "d"}
        assert (store.schema_version, store.model, store.dim) == (1, "model-a", DIM)
        with open_store(store.address, "none") as missing:
            assert (missing.properties, missing.schema_version) == ({}, None)
            with pytest.raises(CollectionNotFound):
                missing.set_properties({"a": "b"})


def test_an_upgrade_in_place(pair: Pair, tmp_path: Path) -> None:
    for number, store in enumerate(pair):
        regions = RegionStore(str(tmp_path / f"regions{number}"), "r" * 32)
        expected = fill_version_1(store, regions, model="model-a")
        assert upgrade(store, [regions]).changed == 11
        assert ids(store) == expected
    assert list(pair[0].iterate()) == list(pair[1].iterate())
