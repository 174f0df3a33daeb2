"""ONNX Runtime computes what torch computes, and only where it may."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.model import CrossAttentionReranker, LightningDOT, LightningDOTConfig, RerankerConfig
from ldot_milvus.models.lightningdot.bundle import load_bundle
from ldot_milvus.models.lightningdot.files import WEIGHTS, find_lightningdot
from ldot_milvus.models.lightningdot.onnx_export import export_graphs
from ldot_milvus.models.lightningdot.text_side import GraphReranker
from ldot_milvus.models.onnx_graph import about_file
from ldot_milvus.weights import save_quantized
from tests.conftest import make_photo

BODY = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 156,
    "max_position_embeddings": 64,
}  # fmt: skip
SHARED = {"image_config": BODY, "region_dim": 32, "max_text_length": 40}
DUAL = {
    "published": {"text_config": BODY, "projection_dim": 16},
    "mean, normalised": {"text_config": BODY, "projection_dim": 16, "pooling": "mean", "normalize": True},
    "calibrated": {
        "text_config": BODY, "projection_dim": 32, "pooling": "mean", "normalize": True, "project_text": False,
        "pooler": False, "calibration_anchors": 7, "calibration_weight": 0.8, "calibration_temperature": 0.06,
    },
    "another text encoder": {
        "text_config": {"model_type": "distilbert", "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64,
                        "vocab_size": 156, "max_position_embeddings": 64},
        "projection_dim": 16,
    },
}  # fmt: skip
TEXTS = ["a", "dogs in the snow", "b c d " * 30, "zebra", "a b"]


def with_graphs(tiny_model: str, folder: Path, dual: dict | None = None, storage: str = "float32") -> Path:
    """A model of one kind, with its graphs."""
    shutil.copytree(tiny_model, folder)
    torch.manual_seed(0)
    if dual is not None:
        encoder = LightningDOT(LightningDOTConfig(**SHARED, **dual, region_extractor={"kind": "grid", "size": 64}))
        if encoder.text_calibration is not None:
            encoder.text_calibration.anchors.normal_()
        encoder.save_pretrained(folder)
    if storage == "int8":
        wide = {**BODY, "hidden_size": 96, "intermediate_size": 192}
        encoder = LightningDOT(LightningDOTConfig(**{**SHARED, "image_config": wide}, text_config=wide))
        save_quantized(encoder, folder)
        reranker = RerankerConfig(bert_config=wide, region_dim=32, scoring="alignment", region_input="embedded")
        save_quantized(CrossAttentionReranker(reranker), folder / "reranker")
    elif storage == "float16":
        for part, kind in ((folder, LightningDOT), (folder / "reranker", CrossAttentionReranker)):
            kind.from_pretrained(part).half().save_pretrained(part)
    export_graphs(folder)
    return folder


def both(folder: Path) -> tuple[LightningDOTEmbedder, LightningDOTEmbedder]:
    """The model by ONNX Runtime, and by torch."""
    by_onnx = LightningDOTEmbedder(str(folder), device="cpu")
    assert by_onnx._bundle is None
    return by_onnx, LightningDOTEmbedder(load_bundle(find_lightningdot(str(folder)), device="cpu"))


@pytest.mark.parametrize("kind", DUAL)
def test_vectors_of_texts_are_those_of_torch(kind: str, tiny_model: str, tmp_path: Path) -> None:
    by_onnx, by_torch = both(with_graphs(tiny_model, tmp_path / "model", DUAL[kind]))
    assert by_onnx.dim == by_torch.dim
    expected = by_torch.encode_texts(TEXTS)
    np.testing.assert_allclose(by_onnx.encode_texts(TEXTS), expected, atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(by_onnx.encode_texts(TEXTS[1:2]), expected[1:2], atol=2e-5, rtol=1e-5)
    ids = [101, 110, 111, 102]
    np.testing.assert_allclose(by_onnx.encode_texts([ids]), by_torch.encode_texts([ids]), atol=2e-5, rtol=1e-5)
    assert by_onnx.encode_texts([]).shape == (0, by_onnx.dim)
    for refused in ("one string", ["a", " "]):
        with pytest.raises(UsageError):
            by_onnx.encode_texts(refused)


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_scores_are_those_of_torch(storage: str, tiny_model: str, tmp_path: Path) -> None:
    by_onnx, by_torch = both(with_graphs(tiny_model, tmp_path / "model", storage=storage))
    np.testing.assert_allclose(by_onnx.encode_texts(TEXTS), by_torch.encode_texts(TEXTS), atol=2e-5, rtol=1e-5)
    own, other = by_onnx.reranker, by_torch.reranker
    assert isinstance(own, GraphReranker)
    assert (own.fingerprint, own.dot_weight, own.name) == (other.fingerprint, other.dot_weight, other.name)
    regions = LightningDOTEmbedder(tiny_model, device="cpu").image_features([make_photo(n) for n in range(3)])
    regions[0] = regions[0].select(np.arange(2))  # fewer regions than the others
    kept = other.keep(regions)
    pairs = [(text, one) for text in TEXTS for one in kept] * 8  # more than a batch
    texts, images = [text for text, _ in pairs], [one for _, one in pairs]
    np.testing.assert_allclose(own.score(texts, images), other.score(texts, images), atol=5e-5, rtol=1e-4)
    assert WEIGHTS in own._graph.outputs
    for text in TEXTS[:3]:
        found, expected = own.explain(text, kept[1]), other.explain(text, kept[1])
        assert found.words == expected.words
        np.testing.assert_array_equal(found.regions, expected.regions)
        np.testing.assert_allclose(found.weights, expected.weights, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in DUAL if name != "another text encoder"])
def test_no_node_computes_what_never_changes(tiny_model: str, tmp_path: Path, name: str) -> None:
    """Reshapes copy the number of texts and of tokens, and every node is used."""
    for path in export_graphs(with_graphs(tiny_model, tmp_path / "model", DUAL[name])):
        graph = onnx.load(path, load_external_data=False).graph
        made_by = {output: node.op_type for node in graph.node for output in node.output}
        shapes = [made_by[node.input[1]] for node in graph.node if node.op_type == "Reshape"]
        assert shapes
        assert set(shapes) == {"Constant"}
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        assert used >= made_by.keys()


def test_photos_and_region_data_are_made_by_torch(tiny_model: str, tmp_path: Path) -> None:
    by_onnx, by_torch = both(with_graphs(tiny_model, tmp_path / "model"))
    photos = [make_photo(n) for n in range(2)]
    np.testing.assert_array_equal(by_onnx.encode_images(photos), by_torch.encode_images(photos))
    kept, expected = (one.reranker.keep(one.image_features(photos)) for one in (by_onnx, by_torch))
    np.testing.assert_array_equal(kept[1]["features"], expected[1]["features"])


def changed_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "normalize": True}))


@pytest.mark.parametrize(
    "change",
    [
        changed_config,
        lambda folder: (folder / "text.onnx").unlink(),
        lambda folder: about_file(folder / "text.onnx").unlink(),
    ],
)
def test_torch_encodes_texts_where_no_graph_fits(change, tiny_model: str, tmp_path: Path) -> None:
    folder = with_graphs(tiny_model, tmp_path / "model")
    change(folder)
    embedder = LightningDOTEmbedder(str(folder), device="cpu")
    assert embedder._bundle is not None
    assert not isinstance(embedder.reranker, GraphReranker)


@pytest.mark.parametrize("part", [".", "reranker"])
def test_a_tokenizer_of_another_model_is_refused(part: str, tiny_model: str, tmp_path: Path) -> None:
    folder = with_graphs(tiny_model, tmp_path / "model")
    small = {**BODY, "vocab_size": 120}
    if part == ".":
        LightningDOT(LightningDOTConfig(**SHARED, text_config=small, projection_dim=16)).save_pretrained(folder)
    else:
        reranker = RerankerConfig(bert_config=small, region_dim=32, scoring="alignment", region_input="embedded")
        CrossAttentionReranker(reranker).save_pretrained(folder / "reranker")
    export_graphs(folder)
    with pytest.raises(ModelError, match="they belong to different models"):
        _ = LightningDOTEmbedder(str(folder), device="cpu").reranker


def test_a_model_in_the_background_links_torch_for_its_first_photo(tiny_model: str, tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.models.background import in_background
linked = lambda: "libtorch_python" in Path("/proc/self/maps").read_text()
with in_background():
    embedder = LightningDOTEmbedder({str(with_graphs(tiny_model, tmp_path / "model"))!r}, device="cpu")
    embedder.encode_texts(["a"])
    print(linked())
embedder.bundle
print(linked())
"""
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_torch_encodes_texts_in_half_precision(dtype: str, tiny_model: str, tmp_path: Path) -> None:
    folder = with_graphs(tiny_model, tmp_path / "model")
    assert LightningDOTEmbedder(str(folder), device="cpu", dtype=dtype)._bundle is not None


@pytest.mark.parametrize("name", ["text.onnx", "text.onnx.json", "model.safetensors"])
def test_damaged_files_are_refused_in_one_line(name: str, tiny_model: str, tmp_path: Path) -> None:
    folder = with_graphs(tiny_model, tmp_path / "model")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError) as error:
        LightningDOTEmbedder(str(folder), device="cpu")
    assert "\n" not in str(error.value)


def test_a_search_imports_neither_torch_nor_transformers(tiny_model: str, tmp_path: Path) -> None:
    folder = with_graphs(tiny_model, tmp_path / "model")
    (tmp_path / "photo.jpg").write_bytes(make_photo(1))
    program = f"""
import sys
from ldot_milvus import Ingestor, LightningDOTEmbedder, Retriever, open_store
from ldot_milvus.sources import expand
if sys.argv[1:] == ["fill"]:
    Ingestor(open_store("faiss:{tmp_path}/data", "x"), {str(folder)!r}).ingest(list(expand(["{tmp_path}/photo.jpg"])))
else:
    embedder = LightningDOTEmbedder({str(folder)!r}, device="cpu")
    (hit,) = Retriever(embedder, open_store("faiss:{tmp_path}/data", "x")).search("dogs", k=1)
    assert hit.rerank_score is not None
    print(sorted(name for name in ("torch", "transformers", "pymilvus") if name in sys.modules))
"""
    subprocess.run([sys.executable, "-c", program, "fill"], check=True)
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
