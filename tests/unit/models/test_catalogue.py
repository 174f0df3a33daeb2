"""The catalogue of published models: its data, the page that repeats them, and the command that prints them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from ldot_milvus.models.blip.files import BlipFiles
from ldot_milvus.models.catalogue import (
    COCO,
    FLICKR8K,
    FLICKR30K,
    PUBLISHED,
    STAGES,
    Figure,
    PublishedModel,
    published,
    size_in_words,
)
from ldot_milvus.models.registry import FAMILIES
from ldot_milvus.stores.region_precision import to_int8
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "models.md").read_text()


def row(model: PublishedModel) -> str:
    """The row of a model in the table of docs/models.md."""
    name = f"`{model.name}`" + (f" over `{model.first_stage}`" if model.first_stage else "")
    kept = "-" if model.kept is None else f"{size_in_words(model.kept.float16)} / {size_in_words(model.kept.int8)}"
    cells = [name, kept]
    for data in (COCO, FLICKR30K, FLICKR8K):
        cells.append("; ".join(cell(figure) for figure in model.figures if figure.data == data) or "-")
    return f"| {' | '.join([*cells, model.licence, f'`{model.settings}`'])} |"


def cell(figure: Figure) -> str:
    recall = f"{figure.text_to_image:.1f} / {figure.image_to_text:.1f}"
    return f"{recall} {figure.setting}" + (" (S)" if figure.secondary else "")


def test_the_page_has_the_same_names_and_figures() -> None:
    table = [line for line in PAGE.splitlines() if re.match(r"\| `[^`]+`.* \| `LDOT_", line)]
    assert table == [row(model) for model in PUBLISHED]


def test_every_source_is_on_the_page_and_the_readme_repeats_no_other_figure() -> None:
    for source in ("README_siglip2.md", "docs/benchmark.rst", "arXiv 2510.06820", "ldot-mini/README.md"):
        assert source in PAGE
        assert any(source in figure.source for model in PUBLISHED for figure in model.figures)
    section = (ROOT / "README.md").read_text().partition("### Other models")[2].partition("\n## ")[0]
    figures = re.findall(r"\d+\.\d / \d+\.\d", section)
    assert figures
    known = {f"{one.text_to_image:.1f} / {one.image_to_text:.1f}" for model in PUBLISHED for one in model.figures}
    assert set(figures) <= known


def test_the_figures_of_ldot_mini_are_those_of_its_card() -> None:
    card = (ROOT / "ldot_milvus" / "pretrained" / "ldot-mini" / "README.md").read_text()
    mini = published("ldot-mini")
    assert mini is not None
    for figure in mini.figures:
        assert re.search(rf"dev.*\| {figure.text_to_image} \|.*\| {figure.image_to_text} \|", card)


def test_families_are_registered_and_described() -> None:
    assert {model.family for model in PUBLISHED} <= set(FAMILIES)
    assert set(STAGES) <= set(FAMILIES)
    assert len({model.name for model in PUBLISHED}) == len(PUBLISHED)
    assert published("Salesforce/blip-itm-base-coco@refs/pr/5") is published("Salesforce/blip-itm-base-coco")
    assert published("no/such") is None


@pytest.mark.parametrize("model", [model for model in PUBLISHED if model.kept], ids=lambda model: model.name)
def test_bytes_kept_are_those_of_the_stored_arrays(model: PublishedModel) -> None:
    assert model.kept is not None
    arrays = {"tokens": np.ones((model.kept.rows, model.kept.width), np.float16)}
    assert model.kept.float16 - model.kept.rest == sum(array.nbytes for array in arrays.values())
    assert model.kept.int8 - model.kept.rest == sum(array.nbytes for array in to_int8(arrays).values())


@pytest.mark.parametrize(("data", "width"), [("base-coco", 768), ("large-coco", 1024)])
def test_what_blip_keeps_is_the_shape_of_its_states(tmp_path, data: str, width: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"hidden_size": width, "image_size": 384}}))
    model = published(f"Salesforce/blip-itm-{data}")
    assert model is not None
    assert model.kept is not None
    assert (model.kept.rows, model.kept.width) == BlipFiles("blip", tmp_path).states_shape


@pytest.mark.parametrize(
    ("size", "words"), [(12, "12 B"), (49_152, "49 KB"), (1_181_696, "1.18 MB"), (81_000_000, "81 MB")]
)
def test_sizes_in_words(size: int, words: str) -> None:
    assert size_in_words(size) == words
