"""SigLIP, SigLIP 2, CLIP and models like it give the vectors that transformers' own classes give."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from PIL import Image
from torch.nn.functional import normalize

from ldot_milvus.cli import main
from ldot_milvus.errors import InputError, ModelError, UsageError
from ldot_milvus.models.contrastive.embedder import ContrastiveEmbedder
from ldot_milvus.models.loading import load_embedder, load_reranker
from ldot_milvus.models.patches import tokens_of
from ldot_milvus.models.registry import find_model, find_reranker
from ldot_milvus.regions import Regions
from tests import families
from tests.conftest import make_photo
from tests.unit.models.test_pixels import jpeg

TEXTS = ["Two Dogs in the Snow.", "a cat", "x" * 300, "A photo, taken at 9 o'clock!"]

SHAPES: dict[str, tuple[Callable[..., Path], dict[str, int]]] = {
    "siglip": (families.siglip, {}),
    "siglip-larger": (families.siglip, {"size": 48, "patch": 16, "width": 64, "layers": 3}),
    "clip": (families.clip, {}),
    "clip-cropped": (families.clip, {"size": 48, "patch": 16, "layers": 1, "crop": 8}),
    "metaclip_2": (families.metaclip2, {}),
    "chinese_clip": (families.chinese_clip, {}),
}


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make, sizes = SHAPES[request.param]
    return make(tmp_path_factory.mktemp("families") / request.param, **sizes)


@pytest.fixture(scope="module")
def embedder(folder: Path) -> ContrastiveEmbedder:
    loaded = load_embedder(str(folder), device="cpu")
    assert isinstance(loaded, ContrastiveEmbedder)
    return loaded


@pytest.fixture(scope="module")
def reference(folder: Path):
    return transformers.AutoModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.siglip(tmp_path_factory.mktemp("families") / "siglip")


@torch.inference_mode()
def expected_texts(folder: Path, reference, texts: list[str], **padding) -> np.ndarray:
    """The vectors by transformers alone, as its documentation and the authors' code say that texts are prepared."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    if reference.config.model_type == "siglip":
        padding = {"padding": "max_length", "max_length": 64, "padding_side": "right", **padding}
        ids = tokenizer(texts, truncation=True, return_tensors="pt", **padding)["input_ids"]
        return normalize(reference.get_text_features(input_ids=ids).pooler_output).numpy()
    limit = 52 if reference.config.model_type == "chinese_clip" else 77
    inputs = tokenizer(texts, truncation=True, max_length=limit, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    return normalize(reference.get_text_features(**inputs).pooler_output).numpy()


def test_texts(folder: Path, embedder: ContrastiveEmbedder, reference) -> None:
    expected = expected_texts(folder, reference, [text.lower() for text in TEXTS])
    vectors = embedder.encode_texts(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, embedder.dim)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(embedder.encode_texts([TEXTS[1]])[0], vectors[1], atol=1e-5)


def test_siglip_needs_lower_case_and_full_padding(siglip: Path) -> None:
    """What the other tests compare with is really another vector than with either step left out."""
    reference = transformers.AutoModel.from_pretrained(siglip).eval()
    vectors = load_embedder(str(siglip), device="cpu").encode_texts(TEXTS[:1])
    np.testing.assert_allclose(vectors, expected_texts(siglip, reference, [TEXTS[0].lower()]), atol=1e-5)
    with_capitals = expected_texts(siglip, reference, TEXTS[:1])
    without_padding = expected_texts(siglip, reference, [TEXTS[0].lower()], padding=False)
    on_the_left = expected_texts(siglip, reference, [TEXTS[0].lower()], padding_side="left")
    for wrong in (with_capitals, without_padding, on_the_left):
        assert np.abs(vectors - wrong).max() > 1e-2


def test_punctuation_is_removed_for_siglip_1_alone(siglip: Path, tmp_path: Path) -> None:
    first = shutil.copytree(siglip, tmp_path / "siglip-1")
    config = json.loads((first / "tokenizer_config.json").read_text())
    (first / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "SiglipTokenizer"}))
    one, two = (load_embedder(str(path), device="cpu") for path in (first, siglip))
    plain = two.encode_texts(["a dog a cat"])
    np.testing.assert_allclose(one.encode_texts([" A dog,  a cat!"]), plain, atol=1e-5)
    assert np.abs(two.encode_texts(["a dog, a cat!"]) - plain).max() > 1e-2


@torch.inference_mode()
def test_images_from_the_same_pixels(embedder: ContrastiveEmbedder, reference) -> None:
    photos = [jpeg(80, 60), jpeg(50, 70, seed=1), jpeg(64, 64, seed=2)]
    pixels = torch.from_numpy(np.stack([embedder._files.preparation(Image.open(io.BytesIO(p))) for p in photos]))
    output = reference.get_image_features(pixel_values=pixels)
    vectors = embedder.encode_images(photos)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-2
    np.testing.assert_allclose(vectors, normalize(output.pooler_output).numpy(), atol=1e-5)
    features = embedder.image_features(photos)
    np.testing.assert_allclose(torch.stack(tokens_of(features)), output.last_hidden_state, atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(embedder.encode_features(features), vectors, atol=1e-5)


@torch.inference_mode()
def test_images_from_a_jpeg(folder: Path, embedder: ContrastiveEmbedder, reference, tmp_path: Path) -> None:
    kind = json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]
    processor = getattr(transformers, kind + "Pil").from_pretrained(folder)
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(333, 250))
    pixels = processor(Image.open(path), return_tensors="pt")["pixel_values"]
    expected = normalize(reference.get_image_features(pixel_values=pixels).pooler_output).numpy()
    np.testing.assert_allclose(embedder.encode_images([path]), expected, atol=1e-3)


def test_unit_length_and_the_numbers_of_a_probability(embedder: ContrastiveEmbedder, reference) -> None:
    vectors = np.concatenate([embedder.encode_texts(TEXTS), embedder.encode_images([make_photo(1)])])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert embedder.logit_scale == pytest.approx(float(reference.logit_scale), abs=1e-6)
    assert (embedder.logit_bias is None) == (not hasattr(reference, "logit_bias"))
    assert embedder.encode_images([]).shape == embedder.encode_texts([]).shape == (0, embedder.dim)


def test_half_precision_is_close(siglip: Path) -> None:
    exact, half = (load_embedder(str(siglip), device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    vectors = half.encode_images([make_photo(4)])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert float(vectors[0] @ exact.encode_images([make_photo(4)])[0]) > 0.99


@pytest.mark.parametrize("texts", [[""], ["fine", " \t"], "one string", [[1, 2, 3]]])
def test_what_is_no_text_is_refused(embedder: ContrastiveEmbedder, texts: list) -> None:
    with pytest.raises(UsageError):
        embedder.encode_texts(texts)


def test_region_features_are_refused(embedder: ContrastiveEmbedder) -> None:
    regions = Regions(np.zeros((2, 8), np.float32), np.zeros((2, 7), np.float32), np.ones(2, np.float32))
    with pytest.raises(InputError, match="reads photos"):
        embedder.encode_images([regions])


def test_sharded_weights(siglip: Path, tmp_path: Path) -> None:
    whole = transformers.SiglipModel.from_pretrained(siglip)
    sharded = shutil.copytree(siglip, tmp_path / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
    whole.save_pretrained(sharded, max_shard_size="40KB")
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 1
    one, other = (load_embedder(str(path), device="cpu") for path in (siglip, sharded))
    np.testing.assert_array_equal(one.encode_texts(TEXTS), other.encode_texts(TEXTS))
    before = find_model(str(sharded)).fingerprint
    content = bytearray(shards[-1].read_bytes())
    content[-1] ^= 1
    shards[-1].write_bytes(content)
    assert find_model(str(sharded)).fingerprint != before
    shards[0].unlink()
    with pytest.raises(ModelError, match=shards[0].name):
        find_model(str(sharded))


@pytest.mark.parametrize(
    ("file", "vector", "features"),
    [
        ("config.json", True, False),
        ("model.safetensors", True, True),
        ("preprocessor_config.json", True, True),
        ("tokenizer.json", True, False),
        ("README.md", False, False),
    ],
)
def test_fingerprints(siglip: Path, tmp_path: Path, file: str, vector: bool, features: bool) -> None:
    """Everything that decides a vector is part of its fingerprint, and what lies beside it is not."""
    copy = shutil.copytree(siglip, tmp_path / "copy")
    before = find_model(str(copy))
    prints = before.fingerprint, before.features_fingerprint
    assert prints == (find_model(str(siglip)).fingerprint, find_model(str(siglip)).features_fingerprint)
    path = copy / file
    if file == "config.json":
        config = json.loads(path.read_text())
        config["text_config"]["layer_norm_eps"] = 1e-3
        path.write_text(json.dumps(config))
    elif file == "preprocessor_config.json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "resample": 2}))
    elif file == "model.safetensors":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.write_text((path.read_text() if path.exists() else "") + "\n")
    after = find_model(str(copy))
    assert (after.fingerprint != prints[0], after.features_fingerprint != prints[1]) == (vector, features)


def test_the_processors_other_file_is_read(siglip: Path, tmp_path: Path) -> None:
    """transformers' processors of both kinds in one save what an image processor alone saves elsewhere."""
    copy = shutil.copytree(siglip, tmp_path / "copy")
    image_processor = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"preprocessor_config\.json cannot be read"):
        find_model(str(copy))
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": image_processor}))
    assert find_model(str(copy)).fingerprint == find_model(str(siglip)).fingerprint


def changed(folder: Path, to: Path, **values) -> str:
    copy = shutil.copytree(folder, to)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **values}))
    return str(copy)


def test_what_does_not_fit_is_refused_in_one_line(siglip: Path, tmp_path: Path) -> None:
    vision = json.loads((siglip / "config.json").read_text())["vision_config"]
    cases = {
        "NaFlex.*siglip2-base-patch16-224": changed(siglip, tmp_path / "a", model_type="siglip2"),
        "is a SiglipForImageClassification": changed(
            siglip, tmp_path / "b", architectures=["SiglipForImageClassification"]
        ),
        "reads 64 x 64 pixels, and its image processor makes 32 x 32": changed(
            siglip, tmp_path / "c", vision_config={**vision, "image_size": 64}
        ),
    }
    for message, name in cases.items():
        with pytest.raises(ModelError, match=message) as error:
            find_model(name)
        assert "\n" not in str(error.value)
    wider = changed(siglip, tmp_path / "d", vision_config={**vision, "num_hidden_layers": 3})
    with pytest.raises(ModelError, match=r"do not fit.*missing.*layers\.2"):
        load_embedder(wider, device="cpu")
    damaged = shutil.copytree(siglip, tmp_path / "e")
    (damaged / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_embedder(str(damaged), device="cpu")
    without = shutil.copytree(siglip, tmp_path / "f", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ModelError, match="tokenizer of model"):
        load_embedder(str(without), device="cpu")


def test_pickles_are_refused(siglip: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(siglip, tmp_path / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(transformers.SiglipModel.from_pretrained(siglip).state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no model\.safetensors.*a folder that has them.*ldot convert"):
        find_model(str(copy))


@pytest.mark.parametrize("make", [families.siglip, families.clip, families.blip])
def test_pickles_are_converted(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    network = find_model(str(folder)).network
    state = getattr(transformers, network).from_pretrained(folder).state_dict()
    position = torch.arange(3)[None]  # a buffer that older versions of transformers wrote
    torch.save({**state, "text_model.embeddings.position_ids": position}, folder / "pytorch_model.bin")
    vectors = load_embedder(str(folder), device="cpu").encode_texts(TEXTS)
    (folder / "model.safetensors").unlink()
    converted = CliRunner().invoke(main, ["convert", str(folder / "pytorch_model.bin"), str(tmp_path / "new")])
    assert converted.exit_code == 0, converted.output
    assert f"dropped  text_model.embeddings.position_ids\n{tmp_path / 'new'}: {network} of" in converted.output
    np.testing.assert_array_equal(load_embedder(str(tmp_path / "new"), device="cpu").encode_texts(TEXTS), vectors)
    state.popitem()
    torch.save(state, folder / "pytorch_model.bin")
    refused = CliRunner().invoke(main, ["convert", str(folder / "pytorch_model.bin"), str(tmp_path / "other")])
    assert refused.exit_code == 2
    assert "missing" in refused.output


def test_there_is_no_reranker_of_its_own(siglip: Path) -> None:
    model, embedder = find_model(str(siglip)), load_embedder(str(siglip), device="cpu")
    assert model.own_reranker() is embedder.reranker is load_reranker(None, embedder) is None
    with pytest.raises(UsageError, match="has no re-ranker"):
        find_reranker(str(siglip), model)
