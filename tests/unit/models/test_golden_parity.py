"""Our models equal the authors' own code, run on random weights (tests/golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from ldot_milvus.model import CrossAttentionReranker, LightningDOT, LightningDOTConfig, RerankerConfig
from ldot_milvus.models.lightningdot.checkpoint_layouts import convert_dual_encoder, convert_reranker

GOLDEN = Path(__file__).parents[2] / "golden" / "lightningdot"


def load(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / name) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.fixture(scope="module")
def sizes() -> dict:
    return json.loads((GOLDEN / "config.json").read_text())


def dual_encoder(sizes: dict, checkpoint: str) -> LightningDOT:
    published = torch.load(GOLDEN / checkpoint, weights_only=True)
    model = LightningDOT(
        LightningDOTConfig(
            text_config=sizes,
            image_config=sizes,
            region_dim=sizes["img_dim"],
            region_classes=sizes["img_label_dim"],
            projection_dim=sizes["project_dim"],
        )
    )
    model.load_state_dict(convert_dual_encoder(published.get("model_dict", published)).state, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def reranker(sizes: dict) -> CrossAttentionReranker:
    model = CrossAttentionReranker(RerankerConfig(bert_config=sizes, region_dim=sizes["img_dim"]))
    published = torch.load(GOLDEN / "reranker.pt", weights_only=True)
    model.load_state_dict(convert_reranker(published).state, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    arrays = load("inputs.npz")
    regions = torch.arange(arrays["region_features"].shape[1])
    arrays["region_present"] = (regions < arrays["region_counts"][:, None]).long()
    return arrays


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load("outputs.npz")


def image_arguments(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return inputs["region_features"], inputs["region_boxes"], inputs["region_present"]


@pytest.mark.parametrize("checkpoint", ["pretrained.pt", "finetuned.pt"])
@torch.inference_mode()
def test_vectors_are_the_authors(sizes: dict, inputs: dict, expected: dict, checkpoint: str) -> None:
    model = dual_encoder(sizes, checkpoint)
    text = model.encode_text(inputs["input_ids"], inputs["text_mask"])
    image = model.encode_image(*image_arguments(inputs))
    torch.testing.assert_close(text, expected["text_embeds"], atol=1e-5, rtol=0)
    torch.testing.assert_close(image, expected["image_embeds"], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_rerank_scores_are_the_authors(reranker: CrossAttentionReranker, inputs: dict, expected: dict) -> None:
    scores = reranker(inputs["input_ids"], inputs["text_mask"], *image_arguments(inputs))
    torch.testing.assert_close(scores, expected["rerank_scores"].squeeze(-1), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_padding_changes_nothing(sizes: dict, reranker: CrossAttentionReranker, inputs: dict) -> None:
    """A row without padding has the same vector and score as in a padded batch."""
    model = dual_encoder(sizes, "pretrained.pt")
    ids, mask = inputs["input_ids"], inputs["text_mask"]
    features, boxes, present = image_arguments(inputs)
    together = (model.encode_text(ids, mask), model.encode_image(features, boxes, present),
                reranker(ids, mask, features, boxes, present))  # fmt: skip
    for row in range(len(ids)):
        tokens, regions = int(mask[row].sum()), int(present[row].sum())
        text = (ids[row : row + 1, :tokens], None)
        image = (features[row : row + 1, :regions], boxes[row : row + 1, :regions], None)
        alone = (model.encode_text(*text), model.encode_image(*image), reranker(*text, *image))
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], many[row], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_saved_and_loaded_by_auto_classes(sizes: dict, reranker: CrossAttentionReranker, inputs: dict,
                                          tmp_path: Path) -> None:  # fmt: skip
    model = dual_encoder(sizes, "pretrained.pt")
    model.save_pretrained(tmp_path / "dual")
    reranker.save_pretrained(tmp_path / "reranker")
    again = AutoModel.from_pretrained(tmp_path / "dual")
    assert isinstance(again, LightningDOT)
    assert torch.equal(model.encode_text(inputs["input_ids"]), again.encode_text(inputs["input_ids"]))
    assert isinstance(AutoModel.from_pretrained(tmp_path / "reranker"), CrossAttentionReranker)
    assert {path.name for path in (tmp_path / "dual").iterdir()} == {"config.json", "model.safetensors"}


@torch.inference_mode()
def test_calibration_is_a_correction_of_each_side(sizes: dict, inputs: dict) -> None:
    """With anchors, a score is the uncalibrated score plus one correction of the text and one of the image."""
    plain = dual_encoder(sizes, "pretrained.pt")
    config = LightningDOTConfig.from_dict({**plain.config.to_dict(), "calibration_anchors": 6})
    model = LightningDOT(config).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    assert model.text_calibration is not None
    assert model.image_calibration is not None
    generator = torch.Generator().manual_seed(0)
    for part in (model.text_calibration, model.image_calibration):
        part.anchors.copy_(torch.randn(part.anchors.shape, generator=generator))
    texts, images = (
        model.encode_text(inputs["input_ids"], inputs["text_mask"]),
        model.encode_image(*image_arguments(inputs)),
    )
    assert texts.shape[1] == images.shape[1] == config.embedding_dim == sizes["project_dim"] + 2
    x, y = plain.encode_text(inputs["input_ids"], inputs["text_mask"]), plain.encode_image(*image_arguments(inputs))
    weight, temperature = config.calibration_weight, config.calibration_temperature

    def correction(vectors: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        near = (vectors.double() @ anchors.double().T / temperature).exp().mean(1)
        return -weight * temperature * near.log()

    expected = x @ y.T + correction(x, model.text_calibration.anchors)[:, None]
    expected = expected + correction(y, model.image_calibration.anchors)[None]
    torch.testing.assert_close((texts @ images.T).double(), expected.double(), atol=1e-4, rtol=1e-4)
