"""The EDJE re-ranker equals the authors' code on small random weights, as pairs and as one text with many images."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, SiglipVisionModel

from ldot_milvus.errors import InputError, ModelError, UsageError
from ldot_milvus.models.calibration import MatchingReranker
from ldot_milvus.models.conversion import convert
from ldot_milvus.models.edje.convert import IMAGE_TOKEN
from ldot_milvus.models.edje.inputs import joint_inputs, pad_tokens
from ldot_milvus.models.edje.joint_encoder import EdjeReranker
from ldot_milvus.models.edje.reranker import EdjeTokenReranker, load_edje
from ldot_milvus.models.patches import PatchFeatures
from ldot_milvus.models.registry import find_model, find_reranker
from ldot_milvus.regions import Regions

GOLDEN = Path(__file__).parents[2] / "golden" / "edje"
META = json.loads((GOLDEN / "meta.json").read_text())
CONFIG = {"num_attention_heads": META["language_config"]["num_attention_heads"],
          "vision_num_attention_heads": META["siglip_config"]["vision_config"]["num_attention_heads"]}  # fmt: skip
KINDS = ["compressed", "uncompressed"]


@pytest.fixture(scope="module")
def outputs() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "outputs.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.fixture(scope="module")
def states(outputs: dict) -> torch.Tensor:
    """The first stage's tokens, by transformers itself."""
    vision = SiglipVisionModel.from_pretrained(GOLDEN / "siglip").eval()
    with torch.inference_mode():
        return vision(outputs["pixel_values"]).last_hidden_state


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    target = tmp_path_factory.mktemp("edje")
    for kind in KINDS:
        convert(GOLDEN / f"{kind}.pth", target / kind, config=CONFIG)
    return {kind: target / kind for kind in KINDS}


def loaded(folder: Path, width: int = 32) -> EdjeTokenReranker:
    first_stage: Any = SimpleNamespace(name="siglip", token_width=width, features_fingerprint="f")
    files: Any = find_reranker(str(folder), first_stage)
    return files.load(SimpleNamespace(name="siglip", device=torch.device("cpu"), dtype=torch.float32))


def features(states: torch.Tensor) -> list[PatchFeatures]:
    return [PatchFeatures(each, np.zeros(1, np.float32)) for each in states]


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_every_array_is_the_authors(kind: str, folders: dict, outputs: dict, states: torch.Tensor) -> None:
    expected = {key.split("/")[1]: value for key, value in outputs.items() if key.startswith(f"{kind}/")}
    reranker = loaded(folders[kind])
    model = reranker.model

    def same(ours: torch.Tensor, name: str) -> None:
        torch.testing.assert_close(ours, expected.pop(name), atol=1e-5, rtol=0)

    same(states, "vision_hidden")
    tokens, image_mask = model.adapt(states, torch.ones(states.shape[:2], dtype=torch.bool))
    same(tokens, "vision_tokens")
    ids, mask = reranker._texts.padded(reranker._texts.ids(META["captions"], model.config.max_text_length))
    inputs = joint_inputs(ids, mask, image_mask, model.config.image_token_id)
    assert torch.equal(inputs.ids, expected.pop("input_ids"))
    assert torch.equal(inputs.types, expected.pop("token_type_ids"))
    assert torch.equal(inputs.mask.long(), expected.pop("attention_mask"))
    same(model(ids, mask, states), "logits_pairs")
    table = expected.pop("logits_text_by_image")
    for text in range(len(ids)):
        many = model.score(ids[[text] * 4], mask[[text] * 4], tokens, image_mask)
        torch.testing.assert_close(many, table[text], atol=1e-5, rtol=0)
    assert not expected


@pytest.mark.parametrize("kind", KINDS)
def test_stored_in_half_precision_the_scores_hold(
    kind: str, folders: dict, outputs: dict, states: torch.Tensor
) -> None:
    """The interface of search and ingestion: pairs in any order, texts of any length beside each other."""
    reranker = loaded(folders[kind])
    kept = reranker.keep(features(states))
    assert [(record["tokens"].dtype, record["tokens"].shape) for record in kept] == [
        (np.float16, tuple(outputs[f"{kind}/vision_tokens"].shape[1:]))
    ] * 4
    texts = [caption for caption in META["captions"] for _ in kept]
    scores = reranker.score(texts, kept * 4).reshape(4, 4)
    np.testing.assert_allclose(scores, outputs[f"{kind}/logits_text_by_image"], atol=2e-3)
    for text, caption in enumerate(META["captions"]):
        for image, record in enumerate(kept):
            alone = reranker.score([caption], [record])
            np.testing.assert_allclose(alone, scores[text, image : image + 1], atol=1e-5)
    assert reranker.dot_weight == 0
    assert isinstance(reranker, MatchingReranker)
    for same in reranker.score_and_match(texts, kept * 4):  # the score is the logit of a match
        np.testing.assert_array_equal(same.reshape(4, 4), scores)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_padding_of_tokens_changes_nothing(kind: str, folders: dict, states: torch.Tensor) -> None:
    """Images of several sizes in a batch: each has the score that it has alone."""
    model = EdjeReranker.from_pretrained(folders[kind]).eval()
    images = [states[0], states[1, :9], states[2, :1]]
    ids = torch.tensor([[2, 60, 61, 3, 0, 0], [2, 70, 3, 0, 0, 0], [2, 57, 58, 59, 60, 3]])
    together = model(ids, ids != 0, *pad_tokens(images))
    for row, image in enumerate(images):
        text = ids[row, ids[row] != 0][None]
        torch.testing.assert_close(model(text, None, image[None])[0], together[row], atol=1e-5, rtol=0)


def test_long_texts_are_cut_and_a_text_may_name_the_image_token(folders: dict, states: torch.Tensor) -> None:
    reranker = loaded(folders["compressed"])
    kept = reranker.keep(features(states[:1]))
    long = "dogs " * 100
    config = reranker.model.config
    assert config.max_text_length + 1 + config.compressed_tokens == config.bert_config.max_position_embeddings
    np.testing.assert_array_equal(reranker.score([long], kept), reranker.score([long + "snow"], kept))
    assert np.isfinite(reranker.score([f"a {IMAGE_TOKEN} of dogs"], kept)).all()


def test_region_features_are_tokens_too(folders: dict) -> None:
    reranker = loaded(folders["compressed"])
    generator = np.random.default_rng(0)
    regions = [Regions(generator.normal(size=(n, 32)).astype(np.float32), np.zeros((n, 7), np.float32),
                       np.ones(n, np.float32)) for n in (9, 4)]  # fmt: skip
    together = reranker.keep(regions)
    np.testing.assert_allclose(together[1]["tokens"], reranker.keep(regions[1:])[0]["tokens"], atol=2e-3)


def test_another_width_is_refused_by_name(folders: dict, states: torch.Tensor) -> None:
    message = r"reads image tokens of width 32, and model 'siglip' gives 48"
    with pytest.raises(ModelError, match=message):
        loaded(folders["compressed"], width=48)
    with pytest.raises(ModelError, match=message):
        loaded(folders["compressed"]).keep(features(torch.zeros(1, 16, 48)))
    with pytest.raises(ModelError, match=r"is a re-ranker, not an embedding model"):
        find_model(str(folders["compressed"]))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "lack tokens; they contain no array"),
        ({"features": np.zeros((6, 24))}, "lack tokens; they contain features"),
        ({"tokens": np.zeros((5, 24), np.float16)}, r"shape \(5, 24\).*reads \(6, 24\)"),
        ({"tokens": np.zeros((6, 25), np.float16)}, r"shape \(6, 25\)"),
        ({"tokens": np.zeros(6, np.float16)}, r"shape \(6,\)"),
    ],
)
def test_records_of_others_are_refused(folders: dict, record: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loaded(folders["compressed"]).check(record)


def test_what_cannot_be_kept_is_refused(folders: dict, states: torch.Tensor) -> None:
    uncompressed = loaded(folders["uncompressed"])
    with pytest.raises(InputError, match=r"has 17 tokens, and re-ranker .* has positions for 16"):
        uncompressed.keep(features(torch.zeros(1, 17, 32)))
    with pytest.raises(InputError, match="not finite"):
        uncompressed.keep(features(torch.full((1, 4, 32), float("nan"))))
    with pytest.raises(InputError, match="has no tokens"):
        uncompressed.keep(["a photo"])


def test_only_what_changes_the_kept_tokens_changes_the_fingerprint(folders: dict, tmp_path: Path) -> None:
    first_stage: Any = SimpleNamespace(name="m", token_width=None, features_fingerprint="f")
    other: Any = SimpleNamespace(name="m", token_width=None, features_fingerprint="g")

    def fingerprint(folder: Path, model: Any = first_stage) -> str:
        files = find_reranker(str(folder), model)
        assert files is not None
        return files.fingerprint

    model = EdjeReranker.from_pretrained(folders["compressed"])
    model.save_pretrained(tmp_path / "same")
    model.config.dot_weight = 5.0
    model.save_pretrained(tmp_path / "weighted")
    assert fingerprint(tmp_path / "same") == fingerprint(tmp_path / "weighted")
    assert fingerprint(tmp_path / "same", other) != fingerprint(tmp_path / "same")
    with torch.no_grad():
        model.adapter.query += 1
    model.save_pretrained(tmp_path / "changed")
    assert fingerprint(tmp_path / "changed") != fingerprint(tmp_path / "same")
    assert isinstance(AutoModel.from_pretrained(tmp_path / "same"), EdjeReranker)
    with pytest.raises(ModelError, match=r"has no tokenizer: copy its vocab.txt"):
        load_edje(find_reranker(str(tmp_path / "same"), first_stage), SimpleNamespace(name="m"))  # type: ignore[arg-type]


def checkpoint(kind: str = "compressed") -> dict:
    return torch.load(GOLDEN / f"{kind}.pth", weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_accounted_for(kind: str, tmp_path: Path) -> None:
    report = convert(GOLDEN / f"{kind}.pth", tmp_path / "out", config=CONFIG)
    names = checkpoint(kind)["model"].keys()
    assert report.renamed.keys() | set(report.dropped) == names
    assert not report.renamed.keys() & set(report.dropped)
    assert report.reasons.keys() == set(report.dropped)
    dropped = {name.split(".")[0] for name in report.dropped}
    assert dropped == {"vision_encoder", "clip", "text_embeddings", "text_projection", "language_model"}
    assert all(name.startswith("language_model.cls.") for name in report.dropped if name.startswith("language_model"))
    assert any("google/siglip2-large-patch16-384" in note for note in report.notes)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"config.json", "model.safetensors",
                                                                   "tokenizer.json", "README.md"}  # fmt: skip


LAYER = "language_model.bert.encoder.layer.1.intermediate.dense.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(LAYER), r"bert\.encoder\.layer\.1\.intermediate\.dense\.weight is missing"),
        (lambda state: state.pop("classification_head.1.bias"), r"classifier\.bias is missing"),
        (lambda state: state.update({"extra.weight": torch.ones(2)}), r"extra\.weight is not of"),
        (lambda state: state.update({LAYER: state[LAYER].T.contiguous()}), r"has shape \(24, 48\), not \(48, 24\)"),
        (lambda state: state["text_embeddings.weight"].add_(1), "text_embeddings.weight is not the same tensor"),
        (lambda state: state.pop("vision_projection.key.weight"), "which determines the model's size"),
    ],
    ids=["missing", "headless", "extra", "transposed", "other words", "sizeless"],
)
def test_a_checkpoint_that_is_not_whole_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    content = checkpoint()
    content["model"] = {name: tensor.clone() for name, tensor in content["model"].items()}
    change(content["model"])
    torch.save(content, tmp_path / "x.pth")
    (tmp_path / "vocab.txt").write_text((GOLDEN / "vocab.txt").read_text())
    with pytest.raises(ModelError, match=message):
        convert(tmp_path / "x.pth", tmp_path / "out", config=CONFIG)
    assert not (tmp_path / "out").exists()


def test_what_a_checkpoint_does_not_say_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match='"num_attention_heads", "vision_num_attention_heads" by --config'):
        convert(GOLDEN / "compressed.pth", tmp_path / "out")
    torch.save(checkpoint(), tmp_path / "x.pth")
    with pytest.raises(UsageError, match=r"has 74 words, .* give their file by --vocab"):
        convert(tmp_path / "x.pth", tmp_path / "out", config=CONFIG)
    (tmp_path / "v.txt").write_text("[PAD]\n[UNK]\n")
    with pytest.raises(ModelError, match=r"v\.txt has 2 words, and .* embeddings of 74 and <image>"):
        convert(tmp_path / "x.pth", tmp_path / "out", config=CONFIG, vocabulary=tmp_path / "v.txt")
    with pytest.raises(UsageError, match="no --detector"):
        convert(GOLDEN / "compressed.pth", tmp_path / "out", config=CONFIG, pretraining=True)
