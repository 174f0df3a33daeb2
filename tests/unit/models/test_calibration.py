"""Where each family's probability comes from, and the file of a fitted one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.errors import ModelError
from ldot_milvus.models.calibration import CALIBRATION, Calibration, MatchingReranker, calibration_of, write_calibration
from ldot_milvus.models.lightningdot.files import LightningDOTRerankerFiles
from ldot_milvus.models.loading import load_embedder
from ldot_milvus.models.registry import find_model
from tests import families
from tests.conftest import make_photo


@torch.inference_mode()
def test_siglips_own_scale_and_bias(tmp_path: Path) -> None:
    embedder = load_embedder(str(families.siglip(tmp_path / "siglip")), device="cpu")
    reference = transformers.AutoModel.from_pretrained(tmp_path / "siglip")
    reference.logit_scale.fill_(1.2)
    reference.logit_bias.fill_(-0.7)
    reference.save_pretrained(tmp_path / "siglip")
    embedder = load_embedder(str(tmp_path / "siglip"), device="cpu")
    calibration = calibration_of(embedder)
    assert calibration is not None
    dot = float(embedder.encode_texts(["a dog"])[0] @ embedder.encode_images([make_photo(1)])[0])
    expected = torch.sigmoid(torch.tensor(dot) * reference.logit_scale.exp() + reference.logit_bias)
    assert calibration.probability(dot) == pytest.approx(float(expected), abs=1e-6)


def test_clip_has_none(tmp_path: Path) -> None:
    embedder = load_embedder(str(families.clip(tmp_path / "clip")), device="cpu")
    assert calibration_of(embedder) is None
    assert not isinstance(embedder.reranker, MatchingReranker)


def test_blips_is_the_softmax_of_its_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder: Any = load_embedder(str(families.blip(tmp_path / "blip")), device="cpu")
    reranker = embedder.reranker
    assert isinstance(reranker, MatchingReranker)
    assert calibration_of(embedder) is None
    kept = reranker.keep(embedder.image_features([make_photo(seed) for seed in range(3)]))
    heads: list[torch.Tensor] = []
    embedder.model.itm_head.register_forward_hook(lambda module, inputs, output: heads.append(output))
    scores, logits = reranker.score_and_match(["a dog"] * 3, kept)
    (head,) = heads
    np.testing.assert_array_equal(scores, reranker.score(["a dog"] * 3, kept))
    expected = head.softmax(1)[:, 1].numpy()
    np.testing.assert_allclose(np.sort(1 / (1 + np.exp(-logits))), np.sort(expected), atol=1e-6)


def test_a_fitted_one_is_read_and_changes_no_fingerprint(tiny_model: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    before: Any = find_model(str(folder))
    fingerprints = before.fingerprint, before.own_reranker().fingerprint, before.former_fingerprints
    own = before.own_reranker()
    write_calibration(folder, Calibration(2.0, -1.0), before.fitted_for, {})
    write_calibration(own.folder, Calibration(0.5, 0.25), own.fitted_for, {})
    after: Any = find_model(str(folder))
    assert (after.fingerprint, after.own_reranker().fingerprint, after.former_fingerprints) == fingerprints
    embedder = LightningDOTEmbedder(str(folder), device="cpu")
    assert calibration_of(embedder) == Calibration(2.0, -1.0)
    assert calibration_of(embedder.reranker) == Calibration(0.5, 0.25)
    assert calibration_of(LightningDOTEmbedder(tiny_model, device="cpu")) is None

    other = LightningDOTRerankerFiles("own", own.folder, SimpleNamespace(fingerprint="another"))
    assert other.fitted_for != own.fitted_for  # under another first stage, the score includes another dot product
    config = json.loads((own.folder / "config.json").read_text())
    (own.folder / "config.json").write_text(json.dumps({**config, "dot_weight": 7.0}))
    embedder = LightningDOTEmbedder(str(folder), device="cpu")
    assert calibration_of(embedder.reranker) is None
    assert calibration_of(embedder) == Calibration(2.0, -1.0)


@pytest.mark.parametrize("content", ["{", "[]", '{"scale": 1}', '{"scale": "x", "bias": 1, "fitted_for": {}}'])
def test_a_damaged_one_is_one_clear_line(tiny_model: str, tmp_path: Path, content: str) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / CALIBRATION).write_text(content)
    with pytest.raises(ModelError, match=CALIBRATION) as error:
        _ = LightningDOTEmbedder(str(folder), device="cpu").calibration
    assert "\n" not in str(error.value)
