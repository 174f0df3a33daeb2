"""Members: a model of several dual encoders scores as the mean of them, in one dot product."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.errors import UsageError
from ldot_milvus.model import LightningDOT, LightningDOTConfig
from ldot_milvus.models.lightningdot.onnx_export import export_graphs
from ldot_milvus.models.lightningdot.text_side import load_texts
from ldot_milvus.training.checkpoints import copy_folder
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.dual import rebuilt
from ldot_milvus.training.members import with_member
from tests.conftest import make_photo
from tests.labelled_models import CAPTIONS, build_labelled_model

Models = tuple[LightningDOTEmbedder, LightningDOT, CaptionedPhotos]


@pytest.fixture(scope="module", params=["plain", "label names", "layers of the sentence encoder"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Models:
    """A model, an encoder of the same shared layers and other weights, and photos with captions."""
    folder, labelled = Path(tiny_model), request.param != "plain"
    if labelled:
        folder = build_labelled_model(tmp_path_factory.mktemp("models") / "labelled", tiny_model)[0]
    embedder = LightningDOTEmbedder(str(folder), device="cpu")
    member = copy.deepcopy(embedder.bundle.encoder)
    torch.manual_seed(7)
    frozen = "text_model.encoder.layer.0." if labelled else "text_model.embeddings."
    for name, weight in member.named_parameters():
        if not name.startswith(("text_model.embeddings.", "label_names.", frozen)) and weight.dim() > 1:
            weight.data.normal_(0, 0.3)
    if request.param == "layers of the sentence encoder":
        embedder.bundle.encoder.config.member_shared_layers = 2
        layers = embedder.bundle.encoder.label_names.layers
        member.text_model.encoder.layer[1].load_state_dict(layers[0].state_dict())
    regions = embedder.image_features([make_photo(number) for number in range(4)])
    photos = CaptionedPhotos(list("abcd"), [[caption] for caption in CAPTIONS], [regions.__getitem__], 32)
    return embedder, member, photos


def test_a_score_is_the_mean_of_the_members(models: Models) -> None:
    """Four texts and four photos span fewer directions than a vector has values, so nothing is lost."""
    embedder, member, photos = models
    regions = [photos.regions(row) for row in range(4)]
    joined = LightningDOTEmbedder(replace(embedder.bundle, encoder=with_member(embedder.bundle, member, photos)))
    single = [embedder, LightningDOTEmbedder(replace(embedder.bundle, encoder=member))]
    width = embedder.bundle.encoder.config.projection_dim
    assert joined.dim == embedder.dim
    parts = [(one.encode_texts(CAPTIONS), one.encode_features(regions)) for one in (*single, joined)]
    scores = [texts[:, :width] @ images[:, :width].T for texts, images in parts]
    assert np.abs(scores[0] - scores[1]).max() > 0.1
    np.testing.assert_allclose(scores[2], (scores[0] + scores[1]) / 2, atol=1e-4, rtol=1e-4)
    (first, *_), (both, *_) = parts[0], parts[2]
    np.testing.assert_allclose(both[:, width:], first[:, width:], atol=1e-5)  # label names are compared once


def test_a_third_member_and_the_saved_model(models: Models, tmp_path: Path) -> None:
    embedder, member, photos = models
    two = replace(embedder.bundle, encoder=with_member(embedder.bundle, member, photos))
    three = with_member(two, member, photos)
    assert three.config.members == 3
    copy_folder(embedder.bundle.files.folder, tmp_path / "model")
    three.save_pretrained(tmp_path / "model")
    export_graphs(tmp_path / "model")
    saved = LightningDOTEmbedder(str(tmp_path / "model"), device="cpu")
    assert load_texts(saved.bundle.files, "cpu", None) is not None
    by_torch = LightningDOTEmbedder(replace(embedder.bundle, encoder=three))
    np.testing.assert_allclose(saved.encode_texts(CAPTIONS), by_torch.encode_texts(CAPTIONS), atol=1e-4, rtol=1e-4)
    regions = [photos.regions(row) for row in range(4)]
    np.testing.assert_allclose(saved.encode_features(regions), by_torch.encode_features(regions), atol=1e-5)
    width, scores = three.config.projection_dim, []
    other = LightningDOTEmbedder(replace(embedder.bundle, encoder=member))
    for one in (embedder, other, other):
        scores.append(one.encode_texts(CAPTIONS)[:, :width] @ one.encode_features(regions)[:, :width].T)
    joined = saved.encode_texts(CAPTIONS)[:, :width] @ saved.encode_features(regions)[:, :width].T
    np.testing.assert_allclose(joined, np.mean(scores, axis=0), atol=1e-4, rtol=1e-4)


def test_members_are_joined_in_fewer_directions(models: Models, tmp_path: Path) -> None:
    """Eight vectors of four texts and four photos span eight directions: these lose nothing, five lose the least."""
    embedder, member, photos = models
    regions = [photos.regions(row) for row in range(4)]
    scores, blocks = {}, embedder.dim - embedder.bundle.encoder.config.projection_dim
    for width in (16, 8, 5):
        config = embedder.bundle.encoder.config
        config.member_dim = width
        encoder = with_member(embedder.bundle, member, photos)
        config.member_dim = None
        joined = LightningDOTEmbedder(replace(embedder.bundle, encoder=encoder))
        assert joined.dim == width + blocks
        copy_folder(embedder.bundle.files.folder, tmp_path / str(width))
        encoder.save_pretrained(tmp_path / str(width))
        assert LightningDOTEmbedder(str(tmp_path / str(width)), device="cpu").dim == joined.dim
        texts, images = joined.encode_texts(CAPTIONS)[:, :width], joined.encode_features(regions)[:, :width]
        scores[width] = texts @ images.T
    np.testing.assert_allclose(scores[8], scores[16], atol=1e-4, rtol=1e-4)
    assert 1e-3 < np.abs(scores[5] - scores[16]).max() < np.abs(scores[16]).max()


@pytest.mark.parametrize("width", [1, 20, 32])
def test_the_first_member_reads_the_first_features(models: Models, width: int) -> None:
    """Those that it does not read have no weights, and change nothing; other members read them."""
    embedder, member, photos = models
    first = rebuilt(embedder.bundle.encoder, first_region_dim=width)
    joined = with_member(replace(embedder.bundle, encoder=first), member, photos)
    assert joined.image_model.img_embeddings.img_linear.weight.shape[1] == joined.config.first_region_dim == width
    assert joined.members[0].image_model.img_embeddings.img_linear.weight.shape[1] == 32
    wide = rebuilt(embedder.bundle.encoder)
    wide.image_model.img_embeddings.img_linear.weight.data[:, width:] = 0
    regions = [photos.regions(row) for row in range(4)]
    vectors = [
        LightningDOTEmbedder(replace(embedder.bundle, encoder=one)).encode_features(regions) for one in (wide, first)
    ]
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-5)


def test_members_share_what_is_not_trained(models: Models) -> None:
    embedder, member, photos = models
    layers = range(embedder.bundle.encoder.config.member_trunk)
    for name in ("embeddings.word_embeddings", *(f"encoder.layer.{layer}.output.dense" for layer in layers)):
        trained = copy.deepcopy(member)
        trained.text_model.get_submodule(name).weight.data += 1e-3
        with pytest.raises(UsageError, match=r"fresh: .* set frozen_text_layers"):
            with_member(embedder.bundle, trained, photos)


def test_other_text_encoders_have_no_members() -> None:
    with pytest.raises(ValueError, match="need a text encoder of type bert, not distilbert"):
        LightningDOTConfig(text_config={"model_type": "distilbert"}, members=2)
    with pytest.raises(ValueError, match="members is 0"):
        LightningDOTConfig(members=0)
    with pytest.raises(ValueError, match=r"member_shared_layers is 3: .* label names, and there are none"):
        LightningDOTConfig(members=2, member_shared_layers=3)
