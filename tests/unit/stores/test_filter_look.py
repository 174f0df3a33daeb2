"""A filter that cannot match, because a field of ``metadata`` is misspelt or has another type, is told once."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldot_milvus import UnknownField
from ldot_milvus.stores import Record, VectorStore, open_store

ROWS: list[dict[str, Any]] = [
    {"album": "a", "tags": ["dog", "snow"], "exif.Make": "Canon", "exif": {"Make": "Nikon"}, "year": 2020},
    {"album": "b", "tags": "cat", "lens.id": 5, "taken": "2024-05-01T10:00:00Z", "none": None},
    {"mixed": 1},
    {"mixed": "x"},
]
QUERY = np.eye(4, dtype=np.float32)[:1]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    with open_store(f"faiss:{tmp_path}", "photos") as opened:
        vectors = np.eye(4, dtype=np.float32)
        opened.upsert([Record(f"r{n}", vectors[n], metadata=one) for n, one in enumerate(ROWS)])
        yield opened


def told(call: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(one.category is UnknownField for one in caught)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("filter", "words"),
    [
        ({"metadata.albm": "a"}, ["no row", "'photos'", "metadata.albm", "did you mean metadata.album?"]),
        ({"metadata.albm": {"$ne": "a"}}, ["metadata.albm"]),
        ({"$not": {"$or": [{"metadata.albm": {"$exists": True}}]}}, ["metadata.albm"]),
        ({"metadata.lens.id": 5}, ['did you mean metadata["lens.id"]?']),
        ({"metadata.exif.Make": "Canon"}, ["metadata.exif.Make is a nested key", 'metadata["exif.Make"]']),
        ({"metadata.exif.Mkae": "Canon"}, ["did you mean metadata.exif.Make?"]),
        ({"metadata.album.name": "a"}, ["no row", "metadata.album.name"]),
        ({"metadata.tags": "dog"}, ["metadata.tags is a list", "$contains"]),
        ({"metadata.tags": {"$like": "d%"}}, ["metadata.tags is a list", "$contains"]),
        ({"metadata.year": "2020"}, ["metadata.year", "text", "number"]),
        ({"metadata.year": {"$gt": dt.date(2020, 1, 1)}}, ["metadata.year", "time", "number"]),
        ({"metadata.album": {"$gte": 1}}, ["metadata.album", "number", "text"]),
        ({"metadata.album": {"$contains": "a"}}, ["metadata.album", "list", "text"]),
    ],
)
def test_what_cannot_match_is_told_by_every_call(store: VectorStore, filter: dict[str, Any], words: list[str]) -> None:
    calls: list[Callable[[VectorStore], Any]] = [
        lambda store: store.search(QUERY, 2, filter=filter),
        lambda store: store.count(filter),
        lambda store: list(store.iterate(filter)),
        lambda store: store.delete(filter={"$and": [filter, {"id": "none"}]}),
    ]
    for number, call in enumerate(calls):
        with open_store(store.address, f"photos{number}") as other:
            other.upsert(list(store.iterate(with_embeddings=True)))
            (message,) = told(lambda call=call, other=other: call(other))  # type: ignore[misc]
            for word in words:
                assert word.replace("'photos'", f"'photos{number}'") in message
            assert told(lambda call=call, other=other: call(other)) == []  # type: ignore[misc]


@pytest.mark.parametrize(
    "filter",
    [
        {},
        {"caption": "x", "width": 5},
        {"metadata.album": "none of them"},
        {"metadata.tags": {"$contains": "dog"}},
        {"metadata.tags": {"$exists": True}},
        {"metadata.none": None},
        {"metadata.year": {"$in": [None, "x"]}},
        {"metadata.taken": {"$gte": "2030-01-01"}},
        {"metadata.taken": {"$like": "2030%"}},
        {"metadata.mixed": "x"},
        {"metadata.mixed": {"$gt": 5}},
        {'metadata["exif.Make"]': "Sony"},
        {"metadata.tags[0]": "dog"},
    ],
)
def test_what_can_match_is_not_told(store: VectorStore, filter: dict[str, Any]) -> None:
    assert told(lambda: store.count(filter)) == []


def test_an_empty_collection_says_nothing_and_is_looked_at_again(tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path}", "photos") as store:
        assert told(lambda: store.count({"metadata.a": 1})) == []
        store.upsert([Record("x", QUERY[0], metadata={"b": 1})])
        assert len(told(lambda: store.count({"metadata.a": 1}))) == 1


def test_the_warning_points_to_the_program(store: VectorStore) -> None:
    with pytest.warns(UnknownField) as caught:
        list(store.iterate({"metadata.albm": "a"}))
    assert caught[0].filename == __file__


def test_a_key_cannot_steer_the_terminal(tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path}", "photos") as store:
        store.upsert([Record("x", QUERY[0], metadata={"al\x1b[2Jbum": 1, "al\u202ebum": 1})])
        for filter in ({"metadata.album": 1}, {'metadata["al\\u001b[3Jbum"]': 1}, {"metadata.al\u202dbum": 1}):
            (message,) = told(lambda filter=filter: store.count(filter))  # type: ignore[misc]
            assert message.isprintable()


def test_a_program_may_make_it_an_error(store: VectorStore) -> None:
    program = textwrap.dedent(
        """
        import sys, warnings
        from ldot_milvus import UnknownField, open_store
        warnings.simplefilter("error", UnknownField)
        open_store(sys.argv[1], "photos").count({"metadata.albm": "a"})
        """
    )
    ran = subprocess.run([sys.executable, "-c", program, store.address], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "UnknownField: no row of collection 'photos' has a value in metadata.albm" in ran.stderr
