"""The region data of a re-ranker, and refusal of invalid region data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.errors import InputError
from ldot_milvus.model import CrossAttentionReranker, RerankerConfig
from ldot_milvus.regions import Regions


def regions(n: int = 4, width: int = 32) -> Regions:
    rng = np.random.default_rng(n)
    return Regions(
        rng.normal(size=(n, width)).astype(np.float32), rng.random((n, 7), np.float32), np.ones(n, np.float32)
    )


def test_kept_are_named_arrays_in_half_precision(tiny: LightningDOTEmbedder) -> None:
    one, two = tiny.reranker.keep([regions(4), regions(2)])
    assert {name: array.dtype for name, array in one.items()} == {
        "features": np.float16, "boxes": np.float32, "confidence": np.float16
    }  # fmt: skip
    assert [len(kept["features"]) for kept in (one, two)] == [4, 2]
    np.testing.assert_array_equal(two["boxes"], regions(2).boxes)


@pytest.mark.parametrize("value", [1e6, np.nan])
def test_what_half_precision_cannot_hold_is_refused(tiny: LightningDOTEmbedder, value: float) -> None:
    config = RerankerConfig(bert_config=tiny.bundle.reranker.config.bert_config, region_dim=32)
    assert config.region_input == "features"  # kept as the extractor gave them
    published = LightningDOTEmbedder(replace(tiny.bundle, reranker=CrossAttentionReranker(config)))
    bad = regions()
    bad.features[3, 3] = value
    with pytest.raises(InputError, match="half precision"):
        published.reranker.keep([regions(), bad])


def test_another_record_is_refused(tiny: LightningDOTEmbedder) -> None:
    (good,) = tiny.reranker.keep([regions()])
    tiny.reranker.check(good)
    for bad in ({"other": np.ones(3)}, {name: np.ones(3) for name in good}, {**good, "boxes": good["boxes"][:, :4]}):
        with pytest.raises(InputError):
            tiny.reranker.check(bad)


def test_one_text_with_many_images_and_one_image_with_many_texts(tiny: LightningDOTEmbedder) -> None:
    kept = tiny.reranker.keep([regions(n) for n in (1, 2, 3)])
    texts = ["a cat", "two dogs", "three long red buses in the snow"]
    table = np.array([[tiny.reranker.score([text], [one])[0] for one in kept] for text in texts])
    assert table.std() > 0.01
    np.testing.assert_allclose(tiny.reranker.score(texts[:1] * 3, kept), table[0], atol=1e-5)
    np.testing.assert_allclose(tiny.reranker.score(texts, kept[2:] * 3), table[:, 2], atol=1e-5)
