"""The least probability of a hit: what is refused, and what a page greys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ldot_milvus import Hit
from ldot_milvus.errors import UsageError
from ldot_milvus.models.calibration import Calibration
from ldot_milvus.search.page import write_page
from ldot_milvus.search.probability import at_least, check_minimum, with_probability

PLAIN: Any = SimpleNamespace(name="clip")
KNOWN: Any = SimpleNamespace(name="siglip", calibration=Calibration(10, -1))
FITTED_ELSEWHERE: Any = SimpleNamespace(name="own", calibration=None)
MATCHING: Any = SimpleNamespace(name="blip", score_and_match=lambda texts, kept: None)
HIT = Hit(
    id="a", score=0.1, rerank_score=None, probability=None, source="a.txt", caption="a dog", kind="text",
    namespace="default", width=0, height=0, metadata={},
)  # fmt: skip


@pytest.mark.parametrize("minimum", [-0.1, 1.01, float("nan"), True, "0.5"])
def test_it_is_a_number_from_0_to_1(minimum: Any) -> None:
    with pytest.raises(UsageError, match="from 0 to 1"):
        check_minimum(minimum, KNOWN, None, crosses=True)


def test_scores_without_a_calibration_are_refused() -> None:
    for reranker in (None, FITTED_ELSEWHERE, PLAIN):
        with pytest.raises(UsageError, match="no calibration") as refused:
            check_minimum(0.5, PLAIN, reranker, crosses=True)
        assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match="rows of one kind"):
        check_minimum(0.5, KNOWN, None, crosses=False)
    check_minimum(None, PLAIN, None, crosses=False)
    check_minimum(0.5, KNOWN, None, crosses=True)
    check_minimum(0, PLAIN, MATCHING, crosses=True)
    check_minimum(1, PLAIN, KNOWN, crosses=True)


def test_probability_of_the_dot_product_and_of_the_others() -> None:
    reranked = replace(HIT, rerank_score=3.0, probability=0.9)
    first, second = with_probability([reranked, HIT], KNOWN.calibration)
    assert first.probability == 0.9
    assert second.probability == pytest.approx(0.5)
    assert with_probability([HIT], None) == [HIT]
    assert at_least([first, HIT, second], 0.6) == [first]
    assert at_least([first, HIT, second], 0) == [first, second]  # without the one that has none
    assert at_least([HIT], None) == [HIT]


def test_a_page_greys_what_is_below(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    likely, unlikely = replace(HIT, probability=0.7), replace(HIT, probability=0.2)
    write_page(page, [("dogs", [likely, unlikely]), ("cats", [unlikely, HIT]), ("none", [])], min_probability=0.5)
    dogs, cats, none = page.read_text().split("<h2>")[1:]
    assert dogs.count('<li class="card" ') == 1
    assert dogs.count('<li class="card unlikely" ') == 1
    assert "70 %<" in dogs
    assert "Nothing found" not in dogs
    assert cats.count('<li class="card unlikely" ') == 2
    assert "Nothing found with a probability of at least 0.5" in cats
    assert "Nothing found." in none
    write_page(page, [("dogs", [likely, unlikely, HIT])])
    assert page.read_text().count('<li class="card" ') == 3
