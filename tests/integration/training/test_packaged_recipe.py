"""The recipe of the packaged model, whole: every stage takes a step, and the result is a model of the same kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.models.lightningdot.files import find_lightningdot
from ldot_milvus.training.recipe import read_recipe
from ldot_milvus.training.run import train
from tests.conftest import make_photo

LAYERS, PHOTOS = 6, 6
"""Layers of the sentence encoder, of which the recipe freezes and shares the first four; photos of each split."""


def test_the_recipe_of_the_packaged_model(tmp_path: Path) -> None:
    """Its settings fit a sentence encoder of as many layers, and the packaged region extractor and classifier."""
    AutoTokenizer.from_pretrained(find_lightningdot("ldot-mini").folder).save_pretrained(tmp_path / "sentences")
    torch.manual_seed(0)
    body = BertConfig(hidden_size=192, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=128)
    BertModel(body, add_pooling_layer=False).save_pretrained(tmp_path / "sentences")
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(PHOTOS):
        (photos / f"{number}.jpg").write_bytes(make_photo(number))
        captions = [f"photo {chr(97 + number)} {chr(97 + turn)}" for turn in range(2)]
        (photos / f"{number}.json").write_text(json.dumps({"captions": captions}))
    given = {"data.train": [str(photos)], "data.dev": [str(photos)], "start.text": str(tmp_path / "sentences"),
             "data.views": 1, "trainer.mixed_precision": "no"}  # fmt: skip
    stages = read_recipe("ldot-mini", given).stages
    smaller = {f"stages.{number}.batch_size": PHOTOS for number in range(len(stages))}
    folder = train(read_recipe("ldot-mini", {**given, **smaller}), tmp_path / "out", most_steps=1)

    made, shipped = (LightningDOTEmbedder(name, device="cpu") for name in (str(folder), "ldot-mini"))
    own, theirs = made.bundle.encoder.config, shipped.bundle.encoder.config
    # These depend on the sentence encoder, the number of photos and their captions.
    others = {"projection_dim", "calibration_anchors", "canonical_words", "text_config", "image_config"}
    for name in theirs.to_diff_dict().keys() - others:
        assert getattr(own, name) == getattr(theirs, name), name
    assert made.calibration is not None
    assert made.reranker is not None
    assert made.reranker.calibration is not None
    vectors = made.encode_images(sorted(photos.glob("*.jpg")))
    assert np.isfinite(vectors).all()
    assert vectors.shape == (PHOTOS, made.dim)
