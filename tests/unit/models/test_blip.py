"""BLIP's two scores are those of transformers' class, from one pass over the pixels."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.nn.functional import normalize

from ldot_milvus.errors import InputError, ModelError, UsageError
from ldot_milvus.models.blip import reranker as blip_reranker
from ldot_milvus.models.blip.embedder import BlipEmbedder
from ldot_milvus.models.loading import load_embedder, load_reranker
from ldot_milvus.models.patches import tokens_of
from ldot_milvus.models.registry import find_model, find_reranker
from tests import families
from tests.unit.models.test_contrastive import changed
from tests.unit.models.test_pixels import jpeg

TEXTS = [
    "Two dogs in the snow",
    "a cat",
    "x",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h i j",
]
PHOTOS = [jpeg(80, 60), jpeg(50, 70, seed=1), jpeg(64, 64, seed=2)]

SHAPES = {"small": {}, "larger": {"size": 48, "patch": 8, "heads": 2, "vision": 96, "layers": 3}}


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.blip(tmp_path_factory.mktemp("families") / request.param, **SHAPES[request.param])


@pytest.fixture(scope="module")
def embedder(folder: Path) -> BlipEmbedder:
    loaded = load_embedder(str(folder), device="cpu")
    assert isinstance(loaded, BlipEmbedder)
    return loaded


@pytest.fixture(scope="module")
def reference(folder: Path):
    return transformers.BlipForImageTextRetrieval.from_pretrained(folder).eval()


@torch.inference_mode()
def class_scores(folder: Path, reference, first: str, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both scores of every text with every image by the class itself: logits of a match, and cosines."""
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    cosines = reference(ids, pixels, attention_mask=mask, use_itm_head=False).itm_score.T
    if first == "enc":
        ids = ids.clone()
        ids[:, 0] = len(tokenizer) + 1  # after [DEC]
    logits = [
        reference(ids[[text] * len(pixels)], pixels, attention_mask=mask[[text] * len(pixels)]).itm_score[:, 1]
        for text in range(len(TEXTS))
    ]
    return torch.stack(logits).numpy(), cosines.numpy()


@pytest.mark.parametrize("first", ["enc", "cls"])
def test_both_scores_are_the_classs(folder: Path, reference, first: str, tmp_path: Path) -> None:
    name = str(folder) if first == "enc" else changed(folder, tmp_path / "cls", ldot_first_token="cls")
    embedder = load_embedder(name, device="cpu")
    pixels = torch.from_numpy(np.stack([embedder.files.preparation(Image.open(io.BytesIO(p))) for p in PHOTOS]))
    logits, cosines = class_scores(folder, reference, first, pixels)
    assert logits.std() > 1e-2
    assert np.abs(logits - class_scores(folder, reference, "cls" if first == "enc" else "enc", pixels)[0]).max() > 1e-3
    features = embedder.image_features(PHOTOS)
    vectors = embedder.encode_features(features)
    np.testing.assert_allclose(embedder.encode_texts(TEXTS) @ vectors.T, cosines, atol=1e-5)
    # In float32, so that only the arithmetic is compared: keep() rounds to half precision.
    kept = [{"states": states.numpy()} for states in tokens_of(features)]
    scores = np.array([embedder.reranker.score([text] * 3, kept) for text in TEXTS])
    np.testing.assert_allclose(scores, logits, atol=2e-5, rtol=1e-5)
    together = embedder.reranker.score([text for text in TEXTS for _ in kept], kept * len(TEXTS))
    np.testing.assert_allclose(together.reshape(4, 3), logits, atol=2e-5, rtol=1e-5)
    rounded = embedder.reranker.score(TEXTS, embedder.reranker.keep(features[:1]) * 4)
    np.testing.assert_allclose(rounded, logits[:, 0], atol=2e-2)


@torch.inference_mode()
def test_vision_states_and_vectors_from_a_jpeg(folder: Path, embedder: BlipEmbedder, reference) -> None:
    processor = transformers.BlipImageProcessorPil.from_pretrained(folder)
    images = [Image.open(io.BytesIO(photo)) for photo in PHOTOS]
    states = reference.vision_model(**processor(images, return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(torch.stack(tokens_of(embedder.image_features(PHOTOS))), states, atol=1e-3)
    expected = normalize(reference.vision_proj(states[:, 0])).numpy()
    np.testing.assert_allclose(embedder.encode_images(PHOTOS), expected, atol=1e-3)


@pytest.mark.parametrize("words", [1, 20, 63, 64, 90])
def test_an_images_many_texts(embedder: BlipEmbedder, words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values are computed for an image with many words, and not for one with few: the scores are the same."""
    rng = np.random.default_rng(words)
    kept = embedder.reranker.keep(embedder.image_features(PHOTOS))
    texts = ["".join(rng.choice(list("abcdefg"), size=rng.integers(1, 9))) for _ in range(words)]
    pairs = [(text, kept[int(rng.integers(0, 3))]) for text in texts]
    together = embedder.reranker.score(*zip(*pairs, strict=True))
    monkeypatch.setattr(blip_reranker, "PAIR_BATCH", 1)
    alone = embedder.reranker.score(*zip(*pairs, strict=True))
    np.testing.assert_allclose(together, alone, atol=2e-5, rtol=1e-5)


def test_keys_and_values_are_computed_once_an_image(embedder: BlipEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    key = embedder.model.text_encoder.encoder.layer[0].crossattention.self.key
    seen: list[int] = []
    handle = key.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    (kept,) = embedder.reranker.keep(embedder.image_features(PHOTOS[:1]))
    try:
        embedder.reranker.score(["a rather long text of many words"] * 12, [kept] * 12)
        assert seen == [1]
        embedder.reranker.score(["short"], [kept])
        assert seen == [1]  # one short text: the words are projected instead
    finally:
        handle.remove()


def test_kept(embedder: BlipEmbedder) -> None:
    kept = embedder.reranker.keep(embedder.image_features(PHOTOS))
    assert [(one["states"].shape, one["states"].dtype) for one in kept] == [
        (embedder.files.states_shape, np.float16)
    ] * 3
    embedder.reranker.check(kept[0])
    assert embedder.reranker.dot_weight == 1
    for bad in ({}, {"other": np.ones(3)}, {"states": kept[0]["states"][1:]}):
        with pytest.raises(InputError):
            embedder.reranker.check(bad)
    (features,) = embedder.image_features(PHOTOS[:1])
    features.states[3, 3] = 1e6
    with pytest.raises(InputError, match="half precision"):
        embedder.reranker.keep([features])


def test_empty_calls(embedder: BlipEmbedder) -> None:
    assert embedder.reranker.score([], []).shape == (0,)
    assert embedder.encode_texts([]).shape == embedder.encode_images([]).shape == (0, 24)
    with pytest.raises(UsageError):
        embedder.reranker.score([""], embedder.reranker.keep(embedder.image_features(PHOTOS[:1])))


def test_heads_of_another_width_are_refused(folder: Path, tmp_path: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    copy = changed(folder, tmp_path / "copy", text_config={**text, "num_attention_heads": 8})
    message = rf"heads that are \d+ wide.*64.*set num_attention_heads.* to {text['hidden_size'] // 64},"
    with pytest.raises(ModelError, match=message):
        find_model(copy)
    del text["num_attention_heads"]  # transformers' default is 8
    with pytest.raises(ModelError, match="heads that are"):
        find_model(changed(folder, tmp_path / "other", text_config=text))


def test_another_class_and_first_token_are_refused(folder: Path, tmp_path: Path) -> None:
    captioner = changed(folder, tmp_path / "a", architectures=["BlipForConditionalGeneration"])
    with pytest.raises(ModelError, match="needs a BlipForImageTextRetrieval"):
        find_model(captioner)
    with pytest.raises(ModelError, match="ldot_first_token is 'sep'"):
        find_model(changed(folder, tmp_path / "b", ldot_first_token="sep"))


def test_a_network_without_enc_is_refused(tmp_path: Path) -> None:
    folder = families.blip(tmp_path / "blip")
    model = transformers.BlipForImageTextRetrieval.from_pretrained(folder)
    model.text_encoder.resize_token_embeddings(len(families.bert_tokenizer()))
    model.config.text_config.vocab_size = len(families.bert_tokenizer())
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"no embedding for \[ENC\].*ldot_first_token"):
        _ = load_embedder(str(folder), device="cpu").reranker
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "ldot_first_token": "cls"}))
    assert load_embedder(str(folder), device="cpu").reranker is not None


def test_fingerprints(folder: Path, tmp_path: Path) -> None:
    """The first token changes scores alone; a text setting changes vectors and no region data."""
    model = find_model(str(folder))
    cls = find_model(changed(folder, tmp_path / "cls", ldot_first_token="cls"))
    assert model.fingerprint == cls.fingerprint
    text = {**model.config["text_config"], "layer_norm_eps": 1e-3}
    other = find_model(changed(folder, tmp_path / "text", text_config=text))
    assert model.fingerprint != other.fingerprint
    assert model.own_reranker().fingerprint == other.own_reranker().fingerprint
    prepared = shutil.copytree(folder, tmp_path / "prepared")
    path = prepared / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "resample": 2}))
    assert find_model(str(prepared)).own_reranker().fingerprint != model.own_reranker().fingerprint


def test_its_reranker_reads_its_own_features(folder: Path, embedder: BlipEmbedder, tmp_path: Path) -> None:
    assert load_reranker(str(folder), embedder) is embedder.reranker
    copy = load_reranker(changed(folder, tmp_path / "cls", ldot_first_token="cls"), embedder)
    assert not hasattr(copy, "image_features")  # the vision part is the same, so its states are too
    files = find_reranker(str(folder), find_model(str(folder)))
    assert files is not None
    assert files.fingerprint == embedder.reranker.fingerprint
