"""Canonical correlations: a block of closed form, against its definition; what it refuses; how a run keeps it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.errors import UsageError
from ldot_milvus.model import LightningDOT, LightningDOTConfig
from ldot_milvus.models.lightningdot.canonical import word_counts
from ldot_milvus.models.lightningdot.onnx_export import export_graphs
from ldot_milvus.models.lightningdot.text_side import load_texts
from ldot_milvus.regions import Regions
from ldot_milvus.regions.grid import grid_boxes
from ldot_milvus.training.canonical import IMAGE_RIDGE, TEXT_RIDGE, with_canonical
from ldot_milvus.training.checkpoints import copy_folder
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.recipe import read_recipe
from ldot_milvus.training.run import train
from tests.conftest import make_photo
from tests.labelled_models import NAMES, build_labelled_model

DIM, PHOTOS, CELLS = 12, 120, 4
THINGS = "abcdefgh"


@pytest.fixture(scope="module", params=[False, True], ids=["features", "features and names"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    return build_labelled_model(tmp_path_factory.mktemp("models") / "labelled", tiny_model, features=request.param)[0]


@pytest.fixture(scope="module")
def embedder(folder: Path) -> LightningDOTEmbedder:
    return LightningDOTEmbedder(str(folder), device="cpu", dtype="float32")


def album(width: int, seed: int) -> CaptionedPhotos:
    """Photos that show three of eight things each, with captions that name them; the features add up the things."""
    looks = np.random.default_rng(0).normal(0, 2, (len(THINGS), width))
    rng = np.random.default_rng(seed)
    captions, regions = [], []
    for _ in range(PHOTOS):
        shown = rng.choice(len(THINGS), 3, replace=False)
        captions.append(
            [" ".join(THINGS[thing] for thing in rng.permutation(shown)) for _ in range(rng.integers(1, 4))]
        )
        values = (looks[shown].sum(0) + rng.normal(0, 1, (CELLS, width))).astype(np.float32)
        labels = rng.dirichlet(np.ones(len(NAMES)), 5).astype(np.float32)
        regions.append(Regions(values, grid_boxes(2), np.ones(CELLS, np.float32), label_probabilities=labels))
    parts = [
        replace(photo, features=photo.features[:2], boxes=photo.boxes[:2], confidence=photo.confidence[:2])
        for photo in regions
    ]
    views = [regions.__getitem__, parts.__getitem__]
    return CaptionedPhotos([str(row) for row in range(PHOTOS)], captions, views, width, labels=len(NAMES))


@pytest.fixture(scope="module")
def photos(embedder: LightningDOTEmbedder) -> CaptionedPhotos:
    return album(embedder.bundle.encoder.config.region_dim, 1)


@pytest.fixture(scope="module")
def fitted(embedder: LightningDOTEmbedder, photos: CaptionedPhotos) -> LightningDOTEmbedder:
    return LightningDOTEmbedder(replace(embedder.bundle, encoder=with_canonical(embedder.bundle, photos, DIM)))


def block(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors[:, -DIM:]


def test_the_block_is_ridge_regularised_cca(
    embedder: LightningDOTEmbedder, fitted: LightningDOTEmbedder, photos: CaptionedPhotos
) -> None:
    """Against the textbook form: an eigenproblem of both covariances, over one row for each pair of text and view."""
    encoder = embedder.bundle.encoder
    texts, images, chosen = [], [], []
    tokens = [embedder.bundle.texts.ids(captions, 40) for captions in photos.captions]
    every = [set(caption) for some in tokens for caption in some]
    frequent = [word for word in sorted(set().union(*every)) if 10 <= sum(word in one for one in every) < len(every)]
    assert len(frequent) >= len(THINGS)
    used = 32 + 24 * int(encoder.config.label_features)  # without the names' vectors
    for row in range(PHOTOS):
        read = encoder.encode_words_and_sentences(*embedder.bundle.texts.padded(tokens[row])).detach().numpy()
        read = np.hstack([read, [[list(caption).count(word) for word in frequent] for caption in tokens[row]]])
        for view in (0, 1):
            mean = photos.regions(row, view).features[:, :used].mean(0)
            texts += list(read)
            images += [np.sign(mean) * np.sqrt(np.abs(mean))] * len(read)
        chosen.append(read[0])
    x, y = np.array(images, np.float64), np.array(texts, np.float64)
    scales = []
    for values in (x, y):
        values -= values.mean(0)
        scales.append(values.std(0) + 0.01 * values.std(0).mean())
        if values is y:
            counts = y[:, -len(frequent) :].std(0)
            others = y[:, : -len(frequent)].std(0)
            scales[-1] = np.hstack([others + 0.01 * others.mean(), counts + counts.mean()])
        values /= scales[-1]
    xx = x.T @ x / len(x) + IMAGE_RIDGE * np.eye(x.shape[1])
    yy = y.T @ y / len(y) + TEXT_RIDGE * np.eye(y.shape[1])
    xy = x.T @ y / len(x)
    values, left = np.linalg.eig(np.linalg.solve(xx, xy @ np.linalg.solve(yy, xy.T)))
    order = np.argsort(-values.real)[:DIM]
    left = left.real[:, order]
    left /= np.sqrt(np.einsum("ik,ij,jk->k", left, xx, left))
    correlations = np.sqrt(values.real[order])
    right = np.linalg.solve(yy, xy.T @ left) / correlations
    center = np.array(texts, np.float64).mean(0)
    projected = ((np.array(chosen) - center) / scales[1]) @ right * np.sqrt(correlations)
    own = block(fitted.encode_texts([captions[0] for captions in photos.captions]))
    expected = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    signs = np.sign((own * expected).sum(0))  # of an eigenvector, either is right
    np.testing.assert_allclose(own, expected * signs, atol=2e-3)
    pictures = x[[2 * sum(map(len, photos.captions[:row])) for row in range(PHOTOS)]] @ left * np.sqrt(correlations)
    expected = pictures / np.linalg.norm(pictures, axis=1, keepdims=True)
    own = block(fitted.encode_features([photos.regions(row) for row in range(PHOTOS)]))
    np.testing.assert_allclose(own, 0.8 * expected * signs, atol=2e-3)


def test_what_is_before_the_block_stays(embedder: LightningDOTEmbedder, fitted: LightningDOTEmbedder) -> None:
    texts, regions = ["a b", "c"], embedder.image_features([make_photo(1)])
    assert fitted.dim == embedder.dim + DIM
    np.testing.assert_allclose(fitted.encode_texts(texts)[:, :-DIM], embedder.encode_texts(texts), atol=1e-5)
    np.testing.assert_allclose(fitted.encode_features(regions)[:, :-DIM], embedder.encode_features(regions), atol=1e-5)


def test_other_photos_are_found(fitted: LightningDOTEmbedder) -> None:
    """The block of photos that were not used, against their captions: far above chance, which is 4 of 100."""
    other = album(fitted.bundle.encoder.config.region_dim, 2)
    texts = block(fitted.encode_texts([captions[0] for captions in other.captions]))
    images = block(fitted.encode_features([other.regions(row) for row in range(PHOTOS)]))
    scores = texts @ images.T
    found = (scores > np.diag(scores)[:, None]).sum(1) < 5
    assert found.mean() > 0.3


def test_the_saved_model_and_its_graph(fitted: LightningDOTEmbedder, folder: Path, tmp_path: Path) -> None:
    copy_folder(folder, tmp_path / "model")
    fitted.bundle.encoder.save_pretrained(tmp_path / "model")
    export_graphs(tmp_path / "model")
    saved = LightningDOTEmbedder(str(tmp_path / "model"), device="cpu", dtype="float32")
    assert saved.dim == fitted.dim
    assert load_texts(saved.bundle.files, "cpu", None) is not None
    np.testing.assert_allclose(saved.encode_texts(["a b", "c"]), fitted.encode_texts(["a b", "c"]), atol=1e-4)
    regions = fitted.image_features([make_photo(2)])
    np.testing.assert_allclose(saved.encode_features(regions), fitted.encode_features(regions), atol=1e-5)


def test_padding_and_unknown_words_count_nothing() -> None:
    ids = torch.tensor([[101, 7, 9, 7, 102], [101, 9, 102, 7, 7]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert word_counts(ids, mask, torch.tensor([7, 8, 9])).tolist() == [[2, 0, 1], [0, 0, 1]]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Photos with captions, for recipes."""
    pictures = tmp_path_factory.mktemp("photos")
    for number in range(8):
        (pictures / f"{number}.jpg").write_bytes(make_photo(number))
        (pictures / f"{number}.json").write_text(json.dumps({"captions": [f"{THINGS[number]} b", f"x {number}"]}))
    return {"data.train": [str(pictures)], "data.dev": [str(pictures)], "trainer.mixed_precision": "no"}


def test_a_recipe_of_nothing_else(folder: Path, given: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(f'[start]\nmodel = "{folder}"\n[finish]\ncanonical_dim = 7\n')
    made = LightningDOT.from_pretrained(train(read_recipe(str(tmp_path / "own.toml"), given), tmp_path / "out"))
    before = LightningDOT.from_pretrained(folder).state_dict()
    after = made.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(name.startswith("canonical.") for name in after.keys() - before.keys())
    assert made.canonical.image_directions.abs().sum(1).min() > 0
    assert len(made.canonical.image_directions) == 7
    assert made.config.canonical_words == 0  # eight photos have no words that ten captions share


@pytest.mark.parametrize("recipe", ["finetune", "labels"])
def test_a_run_keeps_the_block_or_computes_it_anew(
    fitted: LightningDOTEmbedder, folder: Path, given: dict[str, object], tmp_path: Path, recipe: str
) -> None:
    """Training ranks without it, and finishes with it: both that of the initial model and another can be had."""
    start = tmp_path / "start"
    copy_folder(folder, start)
    fitted.bundle.encoder.save_pretrained(start)
    given = {**given, "start.model": str(start), "data.features": str(tmp_path / "features")}
    given |= {"stages.0.batch_size": 4} if recipe == "finetune" else {
        "start.labels.classifier": str(start), "start.labels.cells": 2, "start.labels.dim": 8,
        "start.labels.features": fitted.bundle.encoder.config.label_features}  # fmt: skip
    kept, anew = (
        LightningDOT.from_pretrained(
            train(read_recipe(recipe, {**given, **more}), tmp_path / str(len(more)), most_steps=2)
        )
        for more in ({}, {"finish.canonical_dim": DIM - 2})
    )
    before = fitted.bundle.encoder.canonical.state_dict()
    assert all(torch.equal(kept.canonical.state_dict()[name], value) for name, value in before.items())
    assert anew.canonical.state_dict()["text_directions"].shape[0] == DIM - 2
    assert not torch.equal(anew.canonical.image_mean, kept.canonical.image_mean)
    assert kept.config.calibration_anchors == anew.config.calibration_anchors == 0


def test_what_is_refused(tiny_model: str, embedder: LightningDOTEmbedder, photos: CaptionedPhotos) -> None:
    with pytest.raises(ValueError, match="canonical_dim needs the sentence encoder of label names"):
        LightningDOTConfig(canonical_dim=4)
    plain = LightningDOTEmbedder(tiny_model, device="cpu")
    with pytest.raises(UsageError, match=r"finish\.canonical_dim: canonical_dim needs the sentence encoder"):
        with_canonical(plain.bundle, photos, 4)
    with pytest.raises(
        UsageError, match=r"finish\.canonical_dim: canonical_dim is 99, and this model has \d+ directions"
    ):
        with_canonical(embedder.bundle, photos, 99)
