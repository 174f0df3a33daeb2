"""Any first stage works with any re-ranker that can read something of the image; other pairs are refused when found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.errors import InputError, ModelError
from ldot_milvus.models.blip.reranker import SecondPassBlipReranker
from ldot_milvus.models.loading import device_of, load_embedder, load_reranker
from ldot_milvus.models.passes import image_features, least_side
from ldot_milvus.models.registry import find_model, find_reranker
from ldot_milvus.regions import Regions
from tests import families
from tests.conftest import make_photo

PHOTOS = [make_photo(1), make_photo(2)]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(families.siglip(tmp_path_factory.mktemp("families") / "siglip"))


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(families.blip(tmp_path_factory.mktemp("families") / "blip"))


@pytest.mark.parametrize("first_stage", ["siglip", "tiny_model"])
def test_blip_under_another_model_makes_its_own_pass(first_stage: str, blip: str, request) -> None:
    embedder = load_embedder(request.getfixturevalue(first_stage), device="cpu")
    reranker = load_reranker(blip, embedder)
    assert isinstance(reranker, SecondPassBlipReranker)
    features, own = image_features(embedder, reranker, PHOTOS)
    np.testing.assert_allclose(embedder.encode_features(features), embedder.encode_images(PHOTOS), atol=1e-5)
    alone = load_embedder(blip, device="cpu")
    expected = alone.reranker.keep(alone.image_features(PHOTOS))
    for one, other in zip(reranker.keep(own), expected, strict=True):
        np.testing.assert_array_equal(one["states"], other["states"])
    assert reranker.fingerprint == alone.reranker.fingerprint  # the region data are the same, so they are shared
    assert least_side(embedder, reranker) is None


def test_one_pass_serves_both_stages_of_one_model(blip: str, tiny: LightningDOTEmbedder) -> None:
    for embedder in (load_embedder(blip, device="cpu"), tiny):
        assert least_side(embedder, embedder.reranker) == embedder.least_side
        photos = [make_photo(3)]
        features, own = image_features(embedder, embedder.reranker, photos)
        assert own is features
        assert image_features(embedder, None, photos)[1] is not None


def test_region_features_are_refused_where_pixels_are_needed(blip: str, tiny: LightningDOTEmbedder) -> None:
    regions = Regions(np.zeros((2, 32), np.float32), np.zeros((2, 7), np.float32), np.ones(2, np.float32))
    image_features(tiny, tiny.reranker, [regions])
    with pytest.raises(InputError, match="reads photos"):
        image_features(tiny, load_reranker(blip, tiny), [regions])


def test_a_pair_that_cannot_work_is_refused_when_found(siglip: str, blip: str, tiny_model: str) -> None:
    for first_stage in (siglip, blip):
        for name in (tiny_model, f"{tiny_model}/reranker"):
            with pytest.raises(ModelError, match=f"{name}.*{first_stage}.*use it with a LightningDOT") as error:
                find_reranker(name, find_model(first_stage))
            assert "\n" not in str(error.value)


def test_a_reranker_goes_to_the_embedders_device(siglip: str, blip: str, tiny_model: str) -> None:
    embedder = load_embedder(siglip, device="cpu", dtype="bfloat16")
    assert device_of(embedder) == ("cpu", "bfloat16")
    assert device_of(load_embedder(tiny_model, device="cpu")) == ("cpu", "float32")
    reranker = load_reranker(blip, embedder)
    assert isinstance(reranker, SecondPassBlipReranker)
    (features,) = reranker.image_features(PHOTOS[:1])
    assert features.states.dtype == torch.bfloat16
