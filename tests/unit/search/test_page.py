"""The file that ldot search --html writes has the cards of the service's page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ldot_milvus import Hit
from ldot_milvus.search.page import CARDS_CSS, write_page
from tests.conftest import PHOTOS, ROOT

HOSTILE = "<img src=x onerror=alert(1)>\" ' & </style>"


def hit(**changes) -> Hit:
    values = {
        "id": "1", "score": 0.25, "rerank_score": 12.3, "probability": 0.81, "caption": "a red bus\nanother",
        "kind": "image", "source": str(PHOTOS / "000000568290.jpg"), "namespace": "default", "width": 480,
        "height": 320, "metadata": {},
    }  # fmt: skip
    return Hit(**{**values, **changes})


def written(tmp_path: Path, *hits: Hit, **options) -> str:
    write_page(tmp_path / "page.html", [("a query", hits)], **options)
    return (tmp_path / "page.html").read_text()


def test_classes_are_those_of_the_script_and_of_the_stylesheet(tmp_path: Path) -> None:
    page = written(tmp_path, hit(), hit(probability=0.01), min_probability=0.5).partition("</style>")[2]
    script = (ROOT / "ldot_milvus/serve/page/cards.js").read_text()
    style = CARDS_CSS.read_text()
    classes = {name for found in re.findall(r'class="([^"]*)"', page) for name in found.split()}
    assert classes == {"cards", "card", "unlikely", "photo", "about", "caption", "numbers", "rank", "bar", "more"}
    for name in classes - {"cards", "unlikely", "more"}:
        assert f'"{name}"' in script
    for name in classes:
        assert f".{name}" in style


@pytest.mark.parametrize(
    ("width", "height", "ratio"), [(480, 320, 1.5), (0, 0, 1.5), (100, 1000, 0.7), (5000, 100, 2.4), (300, 300, 1)]
)
def test_a_card_has_the_shape_of_its_photo_within_limits(tmp_path: Path, width: int, height: int, ratio: float) -> None:
    found = re.search(r"--ratio:([\d.]+)", written(tmp_path, hit(width=width, height=height)).partition("</style>")[2])
    assert found is not None
    assert float(found[1]) == pytest.approx(ratio, abs=1e-3)


def test_texts_stay_texts(tmp_path: Path) -> None:
    page = written(
        tmp_path, hit(caption=HOSTILE, metadata={"license_url": "https://x/\"onclick='a'", "license": HOSTILE})
    )
    assert page.count("<img") == 1
    assert "onerror=alert(1)>" not in page
    assert page.count("</style>") == 1


def test_a_photo_that_is_gone_is_told(tmp_path: Path) -> None:
    assert "cannot be read from here" in written(tmp_path, hit(source="/no/such.jpg"))
