"""The pre-training objectives equal those of the authors' code, element by element."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldot_milvus.errors import ModelError
from ldot_milvus.model import LightningDOT, LightningDOTForPreTraining
from ldot_milvus.models.lightningdot.convert import convert
from ldot_milvus.models.lightningdot.pretraining import cross_modal_retrieval, triplet_loss
from tests.unit.models.test_conversion import HEADS, published
from tests.unit.models.test_golden_parity import GOLDEN, load

Arrays = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("golden") / "pretrained"
    report = convert(GOLDEN / "pretrained.pt", target, config=HEADS, pretraining=True)
    assert {"cls.predictions.decoder.weight", "feat_regress.weight", "itm_output.bias"} <= set(report.dropped)
    return target


@pytest.fixture
def model(folder: Path) -> LightningDOTForPreTraining:
    return LightningDOTForPreTraining.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def inputs() -> Arrays:
    arrays = load("inputs.npz")
    regions = torch.arange(arrays["region_features"].shape[1])
    arrays["region_present"] = regions < arrays["region_counts"][:, None]
    return arrays


@pytest.fixture(scope="module")
def expected() -> Arrays:
    return load("outputs.npz")


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=2e-6)  # a squared error is 15: its last digit is 1e-6


def image(inputs: Arrays) -> tuple[torch.Tensor, ...]:
    return inputs["region_features"], inputs["region_boxes"], inputs["region_present"]


def region_states(model: LightningDOTForPreTraining, inputs: Arrays) -> torch.Tensor:
    return model.masked_region_states(inputs["input_ids"], inputs["text_mask"], *image(inputs), inputs["region_mask"])


@torch.inference_mode()
def test_last_hidden_states(model: LightningDOTForPreTraining, inputs: Arrays, expected: Arrays) -> None:
    text = model.lightningdot.text_states(inputs["input_ids"], inputs["text_mask"])
    real = inputs["text_mask"].bool()
    same(text[real], expected["text_hidden"][real])
    states = model.lightningdot.image_states(*image(inputs))
    real = torch.nn.functional.pad(inputs["region_present"], (1, 0), value=True)
    same(states[real], expected["image_hidden"][real])


@torch.inference_mode()
def test_cross_modal_retrieval(expected: Arrays) -> None:
    same(cross_modal_retrieval(expected["text_embeds"], expected["image_embeds"]), expected["cmr_loss"])


@pytest.mark.parametrize("fusion", ["none", "add", "multiply"])
@torch.inference_mode()
def test_masked_words(model: LightningDOTForPreTraining, inputs: Arrays, expected: Arrays, fusion: str) -> None:
    model.config.fusion = fusion
    loss, scores = model.masked_words(
        inputs["mlm_input_ids"], inputs["text_mask"], inputs["mlm_labels"], *image(inputs)
    )
    same(loss, expected[f"vmlm_loss_{fusion}"])
    same(scores, expected[f"vmlm_scores_{fusion}"])


@pytest.mark.parametrize("fusion", ["none", "add", "multiply"])
@torch.inference_mode()
def test_masked_regions(model: LightningDOTForPreTraining, inputs: Arrays, expected: Arrays, fusion: str) -> None:
    model.config.fusion = fusion
    states = region_states(model, inputs)
    loss, predicted = model.region_features(states, inputs["region_features"][inputs["region_mask"]])
    same(loss, expected[f"smrm_feat_loss_{fusion}"])
    same(predicted, expected[f"smrm_feat_pred_{fusion}"])
    loss, predicted = model.region_classes(states, inputs["label_targets"])
    same(loss, expected[f"smrm_kl_loss_{fusion}"])
    same(predicted, expected[f"smrm_class_pred_{fusion}"])
    same(model.region_class(states, inputs["label_targets"]), expected[f"smrm_ce_loss_{fusion}"])


def test_triplet_loss(expected: Arrays) -> None:
    same(triplet_loss(expected["rerank_scores"].T), expected["rerank_triplet_loss"])


def reached(model: LightningDOTForPreTraining, loss: torch.Tensor) -> set[str]:
    model.zero_grad()
    loss.sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_gradients_flow_into_both_encoders(model: LightningDOTForPreTraining, inputs: Arrays) -> None:
    text, img = "lightningdot.text_model.", "lightningdot.image_model."
    words = reached(model, model.masked_words(
        inputs["mlm_input_ids"], inputs["text_mask"], inputs["mlm_labels"], *image(inputs))[0])  # fmt: skip
    features = reached(model, model.region_features(
        region_states(model, inputs), inputs["region_features"][inputs["region_mask"]])[0])  # fmt: skip
    for names in (words, features):
        for side in (text, img):
            assert f"{side}encoder.layer.0.attention.self.query.weight" in names
    assert {f"{img}embeddings.word_embeddings.weight", "word_bias", "word_transform.dense.weight"} <= words
    assert {
        f"{img}img_embeddings.img_linear.weight",
        "feature_bias",
        f"{img}img_embeddings.mask_embedding.weight",
    } <= features
    assert not any(name.startswith(("lightningdot.text_projection", "region_classifier")) for name in words | features)


def test_the_decoders_stay_tied(model: LightningDOTForPreTraining, inputs: Arrays, tmp_path: Path) -> None:
    """A change of an encoder's weight changes its decoder, also after saving and loading."""
    with torch.no_grad():
        model.lightningdot.image_model.embeddings.word_embeddings.weight[7] += 1
    model.save_pretrained(tmp_path)
    again = LightningDOTForPreTraining.from_pretrained(tmp_path).eval()
    arguments = (inputs["mlm_input_ids"], inputs["text_mask"], inputs["mlm_labels"], *image(inputs))
    with torch.inference_mode():
        ours, theirs = model.masked_words(*arguments)[1], again.masked_words(*arguments)[1]
        before = LightningDOTForPreTraining.from_pretrained(tmp_path)  # the same weights once more
        assert torch.equal(ours, theirs)
        assert torch.equal(before.state_dict()["word_bias"], model.state_dict()["word_bias"])
    names = list(again.state_dict())
    assert len({again.state_dict()[name].data_ptr() for name in names}) == len(names)


def test_its_folder_is_a_dual_encoder_too(folder: Path, expected: Arrays, inputs: Arrays) -> None:
    model = LightningDOT.from_pretrained(folder).eval()
    with torch.inference_mode():
        same(model.encode_image(*image(inputs)), expected["image_embeds"])


def test_a_decoder_of_its_own_is_refused(tmp_path: Path) -> None:
    state = published("pretrained.pt")
    state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"] + 1
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=r"cls\.predictions\.decoder\.weight is not the same"):
        convert(tmp_path / "x.pt", tmp_path / "out", config=HEADS, pretraining=True)


def test_a_checkpoint_without_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="word_bias is missing"):
        convert(GOLDEN / "finetuned.pt", tmp_path / "out", config=HEADS, pretraining=True)
