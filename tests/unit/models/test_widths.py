"""What a dual encoder reads and stores: the first features of regions, and the principal directions of its vectors."""

from __future__ import annotations

import json
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
from ldot_milvus.training.dual import calibrate, rebuilt, reduced
from ldot_milvus.training.recipe import read_recipe
from ldot_milvus.training.run import train
from tests.conftest import make_photo
from tests.labelled_models import CAPTIONS, build_labelled_model

Given = tuple[LightningDOTEmbedder, CaptionedPhotos]


@pytest.fixture(scope="module", params=["plain", "label names"])
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Given:
    """A model whose vectors have 16 learned values, and four photos with a caption each."""
    folder = Path(tiny_model)
    if request.param == "label names":
        folder = build_labelled_model(tmp_path_factory.mktemp("models") / "labelled", tiny_model)[0]
    embedder = LightningDOTEmbedder(str(folder), device="cpu", dtype="float32")
    regions = embedder.image_features([make_photo(number) for number in range(4)])
    return embedder, CaptionedPhotos(list("abcd"), [[text] for text in CAPTIONS], [regions.__getitem__], 32)


@pytest.mark.parametrize("width", [1, 20, 32])
def test_the_first_features_alone_are_read(given: Given, width: int) -> None:
    """Those that the encoder does not read have no weights, and change nothing."""
    embedder, photos = given
    first = rebuilt(embedder.bundle.encoder, first_region_dim=width)
    assert first.image_model.img_embeddings.img_linear.weight.shape[1] == first.config.first_region_dim == width
    wide = rebuilt(embedder.bundle.encoder)
    wide.image_model.img_embeddings.img_linear.weight.data[:, width:] = 0
    regions = [photos.regions(row) for row in range(4)]
    vectors = [
        LightningDOTEmbedder(replace(embedder.bundle, encoder=one)).encode_features(regions) for one in (wide, first)
    ]
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-5)


def test_fewer_values_with_the_same_scores(given: Given) -> None:
    """Vectors of four texts and four photos span eight directions: these lose nothing, and five lose little."""
    embedder, photos = given
    regions = [photos.regions(row) for row in range(4)]
    learned = embedder.bundle.encoder.config.projection_dim
    texts, images = embedder.encode_texts(CAPTIONS), embedder.encode_features(regions)
    scores = texts[:, :learned] @ images[:, :learned].T
    error = {}
    for width in (learned, 8, 5):
        few = LightningDOTEmbedder(replace(embedder.bundle, encoder=reduced(embedder.bundle, photos, width)))
        assert few.dim == embedder.dim - learned + width
        few_texts, few_images = few.encode_texts(CAPTIONS), few.encode_features(regions)
        error[width] = np.abs(few_texts[:, :width] @ few_images[:, :width].T - scores).max()
        for other, blocks in ((few_texts, texts), (few_images, images)):
            np.testing.assert_allclose(other[:, width:], blocks[:, learned:], atol=1e-5)
    assert max(error[learned], error[8]) < 1e-4 < error[5] < np.abs(scores).max()


def test_the_saved_model(given: Given, tmp_path: Path) -> None:
    """The graph has the directions too; reducing a model anew replaces them, and drops its calibration."""
    embedder, photos = given
    once = replace(embedder.bundle, encoder=reduced(embedder.bundle, photos, 5))
    once = replace(once, encoder=calibrate(once, photos, 4))
    twice = reduced(once, photos, 7)
    assert (twice.config.principal_dim, twice.config.calibration_anchors) == (7, 0)
    torch.testing.assert_close(twice.principal.directions, reduced(embedder.bundle, photos, 7).principal.directions)
    copy_folder(embedder.bundle.files.folder, tmp_path / "model")
    once.encoder.save_pretrained(tmp_path / "model")
    export_graphs(tmp_path / "model")
    saved = LightningDOTEmbedder(str(tmp_path / "model"), device="cpu", dtype="float32")
    assert saved.bundle.files.dim == saved.dim == once.encoder.config.embedding_dim
    assert load_texts(saved.bundle.files, "cpu", None) is not None
    by_torch = LightningDOTEmbedder(once)
    np.testing.assert_allclose(saved.encode_texts(CAPTIONS), by_torch.encode_texts(CAPTIONS), atol=1e-4, rtol=1e-4)


def test_a_run_computes_them_after_training(given: Given, tmp_path: Path) -> None:
    """By default, the result has as many as the initial model; training replaces the directions by its own."""
    embedder, photos = given
    first = reduced(embedder.bundle, photos, 5)
    copy_folder(embedder.bundle.files.folder, tmp_path / "start")
    first.save_pretrained(tmp_path / "start")
    for number, text in enumerate(CAPTIONS):
        (tmp_path / f"{number}.jpg").write_bytes(make_photo(number))
        (tmp_path / f"{number}.json").write_text(json.dumps({"captions": [text]}))
    values = {"data.train": [str(tmp_path)], "data.dev": [str(tmp_path)], "trainer.mixed_precision": "no",
              "start.model": str(tmp_path / "start")}  # fmt: skip
    recipes = {"finetune": {"stages.0.batch_size": 4}}
    if embedder.bundle.encoder.label_names is not None:
        recipes["labels"] = {"start.labels.classifier": str(tmp_path / "start"), "start.labels.cells": 2,
                             "start.labels.dim": 8}  # fmt: skip
    for recipe, settings in recipes.items():
        kept, anew = (
            LightningDOT.from_pretrained(
                train(read_recipe(recipe, values | settings | more), tmp_path / f"{recipe}{len(more)}", most_steps=2)
            )
            for more in ({}, {"finish.principal_dim": 6})
        )
        assert (kept.config.principal_dim, anew.config.principal_dim) == (5, 6)
        assert torch.allclose(kept.principal.directions, first.principal.directions) == (recipe == "labels")
        assert anew.principal.directions.norm(dim=1).tolist() == pytest.approx([1] * 6, abs=1e-4)
        if recipe == "labels":  # what is learned stays as it is: the directions are those of all four photos
            same, own = (one.principal.directions for one in (reduced(embedder.bundle, photos, 6), anew))
            torch.testing.assert_close(own.T @ own, same.T @ same, atol=1e-3, rtol=0)


def test_what_is_refused(given: Given) -> None:
    embedder, photos = given
    with pytest.raises(ValueError, match="need a text encoder of type bert, not distilbert"):
        LightningDOTConfig(text_config={"model_type": "distilbert"}, label_count=2)
    with pytest.raises(ValueError, match="principal_dim is 9, and vectors have 8 directions"):
        LightningDOTConfig(projection_dim=8, principal_dim=9)
    with pytest.raises(UsageError, match=r"finish\.principal_dim: principal_dim is 17, and vectors have 16"):
        reduced(embedder.bundle, photos, 17)
