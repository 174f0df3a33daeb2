"""``ldot train`` for models with label names: new names without training, and training that leaves them as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.training.recipe import read_recipe
from ldot_milvus.training.run import train
from tests.conftest import make_photo
from tests.labelled_models import NAMES, build_labelled_model
from tests.tolerance import assert_recall, both_bounds


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    """A model with label names, and photos with captions."""
    folder = tmp_path_factory.mktemp("label-training")
    build_labelled_model(folder / "labelled", tiny_model)
    (folder / "photos").mkdir()
    for number in range(12):
        (folder / "photos" / f"{number}.jpg").write_bytes(make_photo(number))
        captions = [f"{chr(97 + number)} b c", f"the {chr(97 + number)}"]
        (folder / "photos" / f"{number}.json").write_text(json.dumps({"captions": captions}))
    return folder


def run(place: Path, recipe: str, out: str, **changes: object) -> LightningDOTEmbedder:
    photos = [str(place / "photos")]
    given = {"data.train": photos, "data.dev": photos, "start.model": str(place / "labelled"),
             "data.features": str(place / "features"), "trainer.mixed_precision": "no", **changes}  # fmt: skip
    made = train(read_recipe(recipe, given), place / out, most_steps=4)
    return LightningDOTEmbedder(str(made), device="cpu", dtype="float32")  # as training extracts and evaluates


def test_other_names_need_no_training(place: Path) -> None:
    names = place / "names.json"
    names.write_text(json.dumps([f"{name}!" for name in NAMES]))
    changes = {"start.labels.classifier": str(place / "labelled"), "start.labels.names": str(names),
               "start.labels.cells": 2, "start.labels.dim": 8, "start.labels.weight": 0.5}  # fmt: skip
    before = LightningDOTEmbedder(str(place / "labelled"), device="cpu")
    after = run(place, "labels", "renamed", **changes)
    folder = after.bundle.files.folder
    assert json.loads((folder / "labels" / "labels.json").read_text()) == [f"{name}!" for name in NAMES]
    texts, photo = ["a dog", "b"], [make_photo(3)]
    learned = before.bundle.encoder.config.projection_dim
    np.testing.assert_allclose(
        after.encode_texts(texts)[:, :learned], before.encode_texts(texts)[:, :learned], atol=1e-5
    )
    blocks = [embedder.encode_images(photo)[0, learned:] for embedder in (before, after)]
    assert np.abs(blocks[1] - blocks[0]).max() > 1e-3
    assert after.calibration is not None  # fitted for the new scores
    assert after.reranker is not None
    small = run(place, "labels", "small", **changes, **{"finish.storage": "int8"})
    for part in (".", "labels", "regions", "reranker"):
        with safe_open(small.bundle.files.folder / part / "model.safetensors", framework="pt") as file:
            assert file.metadata()["ldot_storage"] == "int8"
    np.testing.assert_allclose(small.encode_images(photo)[0, learned:], blocks[1], atol=0.05)


@pytest.mark.parametrize("recipe", ["labels", "finetune"])
def test_hubness_is_that_of_both_parts(place: Path, recipe: str) -> None:
    """A text that is near many photos by its names is corrected as one that is near them by its learned vector."""
    changes = {"stages.0.batch_size": 8} if recipe == "finetune" else {
        "start.labels.classifier": str(place / "labelled"), "start.labels.cells": 2, "start.labels.dim": 8}  # fmt: skip
    made = run(place, recipe, f"calibrated-{recipe}", **changes, **{"finish.calibration_anchors": 6})
    config = made.bundle.encoder.config
    assert (config.compared_dim, made.dim) == (config.projection_dim + 8, config.projection_dim + 10)
    paths = sorted((place / "photos").glob("*.jpg"))
    anchors = [paths[row] for row in np.linspace(0, 11, 6).astype(int)]
    captions = [json.loads(path.with_suffix(".json").read_text())["captions"][0] for path in anchors]
    texts, photos = made.encode_texts(captions), made.encode_images(anchors)
    plain = (texts[:, : config.compared_dim] @ photos[:, : config.compared_dim].T).astype(float)
    temperature = config.calibration_temperature
    hubness = [np.logaddexp.reduce(plain / temperature, axis=axis) - np.log(6) for axis in (1, 0)]
    expected = plain - config.calibration_weight * temperature * (hubness[0][:, None] + hubness[1][None])
    # The anchors' regions were stored in half precision.
    np.testing.assert_allclose(texts @ photos.T, expected, rtol=1e-3, atol=1e-2)


def test_training_leaves_the_sentence_encoder_as_it_is(place: Path) -> None:
    before = LightningDOTEmbedder(str(place / "labelled"), device="cpu")
    after = run(place, "finetune", "tuned", **{"stages.0.batch_size": 8, "stages.0.learning_rate": 1e-2})
    old, new = (embedder.bundle.encoder.state_dict() for embedder in (before, after))
    assert old.keys() == new.keys()
    kept = [
        name
        for name in old
        if name.startswith(("label_names.", "text_model.embeddings.", "text_model.encoder.layer.0."))
    ]
    assert len(kept) > 20
    assert all(torch.equal(old[name], new[name]) for name in kept)
    assert not torch.equal(old["text_model.encoder.layer.1.output.dense.weight"],
                           new["text_model.encoder.layer.1.output.dense.weight"])  # fmt: skip
    np.testing.assert_allclose(before.encode_texts(["a b"])[0, -8:], after.encode_texts(["a b"])[0, -8:], atol=1e-5)


def test_training_reads_the_labels_of_each_photo(place: Path) -> None:
    """The recall that training measures from stored regions is that of the result on the photos."""
    after = run(place, "finetune", "read", **{"stages.0.batch_size": 8, "data.views": 2})
    entries = [json.loads(line) for line in (place / "read" / "finetune" / "log.jsonl").read_text().splitlines()]
    pairs = sorted(place.glob("photos/*.jpg"), key=lambda path: int(path.stem))
    texts = after.encode_texts(
        [c for path in pairs for c in json.loads(path.with_suffix(".json").read_text())["captions"]]
    )
    scores = texts @ after.encode_images(pairs).T
    assert_recall(entries[-1]["dev"], both_bounds(scores, np.repeat(np.arange(12), 2), near=1e-3))
