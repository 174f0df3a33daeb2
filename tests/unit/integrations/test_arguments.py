"""Misspelt and foreign argument names."""

from __future__ import annotations

import pytest

from ldot_milvus.errors import UsageError
from ldot_milvus.integrations.arguments import SYNONYMS, refuse_unknown

KNOWN = ("store", "collection", "model", "k", "rerank", "filter", "namespace", "min_probability", "search_kwargs")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("filters", "filter"), ("Filter", "filter"), ("collecton", "collection"), ("collection_name", "collection"),
        ("top_k", "k"), ("name_space", "namespace"), ("min_prob", "min_probability"), ("reranks", "rerank"),
    ],
)  # fmt: skip
def test_the_nearest_name_is_told(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"^Retriever takes no argument '{name}': did you mean '{nearest}'\\?$"):
        refuse_unknown([name], KNOWN, "Retriever")


def test_without_a_near_name_all_are_told() -> None:
    with pytest.raises(UsageError, match="'zzz': it takes collection, filter, k"):
        refuse_unknown(["k", "zzz"], KNOWN, "Retriever")


def test_other_names_for_ours_are_told_only_where_they_are_known() -> None:
    assert set(SYNONYMS.values()) <= set(KNOWN)
    with pytest.raises(UsageError, match="it takes a, b"):
        refuse_unknown(["top_k"], ("a", "b"), "Other")


def test_known_names_pass() -> None:
    refuse_unknown(KNOWN, KNOWN, "Retriever")
