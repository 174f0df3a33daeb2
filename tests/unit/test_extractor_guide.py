"""docs/extend/extractor.md: the extractor that the guide writes keeps the rules that the guide states."""

from __future__ import annotations

import re
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def extractor():
    text = (ROOT / "docs" / "extend" / "extractor.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    module = ModuleType("colour")
    exec(code, module.__dict__)
    return module.ColourExtractor.from_pretrained("unused", cells=4, device="cpu", dtype=None)


@pytest.mark.parametrize("size", [(200, 130), (10, 4000), (1, 1)])
def test_any_photo_gives_regions_of_the_promised_width(extractor, size: tuple[int, int]) -> None:
    (regions,) = extractor([Image.new("RGB", size, (200, 30, 30))])
    assert regions.features.shape == (16, extractor.dim)
    assert regions.features.dtype == np.float32
    assert np.isfinite(regions.features).all()


def test_a_region_depends_on_its_own_cell(extractor) -> None:
    plain = Image.new("RGB", (200, 200), (90, 140, 200))
    marked = plain.copy()
    marked.paste((250, 10, 10), (160, 160, 200, 200))
    before, after = (regions.features for regions in extractor([plain, marked]))
    changed = np.abs(after - before).sum(1).reshape(4, 4)
    assert changed.argmax() == 15
    assert not changed[:3, :3].any()


def test_a_photo_does_not_depend_on_its_batch(extractor) -> None:
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(3)]
    (alone,) = extractor(photos[1:2])
    np.testing.assert_array_equal(extractor(photos)[1].features, alone.features)
