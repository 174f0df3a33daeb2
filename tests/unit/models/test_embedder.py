"""The embedder returns the same vector for every form of an input."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldot_milvus import LightningDOTEmbedder, load_model
from ldot_milvus.errors import InputError, LdotError, ModelError, UsageError
from ldot_milvus.regions import BottomUpExtractor, Regions, registry
from tests.conftest import make_photo


def test_shapes_and_types(tiny: LightningDOTEmbedder) -> None:
    texts = tiny.encode_texts(["a", "bb ccc", "d" * 500])
    images = tiny.encode_images([make_photo(1), make_photo(2)])
    assert (texts.shape, images.shape) == ((3, tiny.dim), (2, tiny.dim))
    assert texts.dtype == images.dtype == np.float32
    assert tiny.encode_texts([]).shape == (0, tiny.dim)
    assert tiny.encode_images([]).shape == (0, tiny.dim)


def test_vectors_are_not_normalised(tiny: LightningDOTEmbedder) -> None:
    norms = np.linalg.norm(tiny.encode_texts(["a", "zebra crossing"]), axis=1)
    assert (np.abs(norms - 1) > 0.05).all()


def test_a_vector_does_not_depend_on_its_batch(tiny: LightningDOTEmbedder) -> None:
    texts = [f"{'word ' * (n % 7)}{n}" for n in range(150)]  # more than a batch, of many lengths
    together = tiny.encode_texts(texts)
    for n in (0, 6, 77, 149):
        np.testing.assert_allclose(tiny.encode_texts([texts[n]])[0], together[n], atol=1e-5, rtol=2e-6)


def test_path_bytes_pil_and_regions_are_the_same_photo(tiny: LightningDOTEmbedder, tmp_path: Path) -> None:
    data = make_photo(3)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    image = Image.open(io.BytesIO(data))
    (regions,) = tiny.image_features([data])
    vectors = tiny.encode_images([path, str(path), data, image, regions])
    for vector in vectors[1:]:
        np.testing.assert_allclose(vector, vectors[0], atol=1e-5, rtol=2e-6)


def test_photos_with_different_numbers_of_regions_share_a_batch(tiny: LightningDOTEmbedder) -> None:
    rng = np.random.default_rng(0)

    def regions(n: int) -> Regions:
        return Regions(
            rng.normal(size=(n, 32)).astype(np.float32), rng.random((n, 7), np.float32), np.ones(n, np.float32)
        )

    mixed = [regions(n) for n in (1, 9, 4)]
    together = tiny.encode_images(mixed)
    for one, vector in zip(mixed, together, strict=True):
        np.testing.assert_allclose(tiny.encode_images([one])[0], vector, atol=1e-5, rtol=2e-6)


def test_a_score_does_not_depend_on_its_batch(tiny: LightningDOTEmbedder) -> None:
    rng = np.random.default_rng(1)
    pairs = []
    for n in range(30):
        size = int(rng.integers(1, 9))
        features = rng.normal(size=(size, 32)).astype(np.float32)
        regions = Regions(features, rng.random((size, 7), np.float32), np.ones(size, np.float32))
        pairs.append(("word " * (n % 6) + str(n), tiny.reranker.keep([regions])[0]))
    together = tiny.reranker.score([text for text, _ in pairs], [regions for _, regions in pairs])
    assert together.std() > 0.01
    for (text, regions), score in zip(pairs, together, strict=True):
        np.testing.assert_allclose(tiny.reranker.score([text], [regions])[0], score, atol=1e-5, rtol=2e-6)


def test_threads_return_the_same_vectors(tiny: LightningDOTEmbedder) -> None:
    texts = [[f"text {n} {m}" for m in range(n % 5 + 1)] for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for alone, vectors in zip(map(tiny.encode_texts, texts), pool.map(tiny.encode_texts, texts), strict=True):
            np.testing.assert_allclose(vectors, alone, atol=1e-5, rtol=2e-6)


@pytest.mark.parametrize("options", [{}, {"size": 64}, {"size": 224, "mirror": True}])
def test_the_size_of_decoding_is_known_before_loading(
    tiny: LightningDOTEmbedder, tiny_model: str, tmp_path: Path, options: dict[str, object]
) -> None:
    """By the files alone, in a process without torch, and it is that of the embedder and of its extractor."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["region_extractor"] = {"kind": "grid", **options}
    (folder / "config.json").write_text(json.dumps(config))
    code = (
        "import sys; from ldot_milvus.models.registry import find_model; print(find_model(sys.argv[1]).least_side); "
        "assert 'torch' not in sys.modules"
    )
    known = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True).stdout
    embedder = LightningDOTEmbedder(str(folder), device="cpu")
    assert int(known) == embedder.least_side == embedder.bundle.extractor.least_side


@pytest.mark.parametrize(
    ("config", "side"),
    [
        ({"kind": "grid", "size": 100}, 200),
        ({"kind": "grid", "size": "wide"}, None),  # refused when it is loaded
        ({"kind": "grid", "size": None}, None),
        ({"kind": "bottom_up"}, BottomUpExtractor.least_side),
        ({"kind": "unknown"}, None),
        ({}, None),
        ({"kind": "own", "cells": 3}, 192),
        ({"kind": "own without"}, None),
    ],
)
def test_least_sides_of_extractors(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, object], side: int | None
) -> None:
    for table in ("EXTRACTORS", "LEAST_SIDES"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    registry.register_extractor("own", "no_module:Own", lambda options: 64 * options["cells"])
    registry.register_extractor("own without", "no_module:Own")
    assert registry.least_side_of(config) == side


@pytest.mark.parametrize("texts", [[""], ["fine", " \t\n"], "one string"])
def test_empty_texts_are_refused(tiny: LightningDOTEmbedder, texts: list[str]) -> None:
    with pytest.raises(UsageError):
        tiny.encode_texts(texts)


def test_regions_of_another_extractor_are_refused(tiny: LightningDOTEmbedder) -> None:
    other = Regions(np.zeros((2, 2048), np.float32), np.zeros((2, 7), np.float32), np.ones(2, np.float32))
    with pytest.raises(InputError, match="2048"):
        tiny.encode_images([other])


def test_an_unreadable_image_is_refused_by_name(tiny: LightningDOTEmbedder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg"):
        tiny.encode_images([tmp_path / "gone.jpg"])
    with pytest.raises(InputError, match="not an image"):
        tiny.encode_images([b"nothing"])


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ({"name": "no-such-model"}, UsageError, "no-such-model"),
        ({"name": "../pretrained"}, UsageError, "unknown model"),
        ({"name": "ldot-mini", "device": "cuda:99"}, UsageError, "cuda:99"),
        ({"name": "ldot-mini", "device": "toaster"}, UsageError, "toaster"),
        ({"name": "ldot-mini", "dtype": "int3"}, UsageError, "int3"),
    ],
)
def test_errors_of_loading_name_the_argument(arguments: dict, error: type[LdotError], word: str) -> None:
    with pytest.raises(error, match=word):
        load_model(**arguments)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="bert"):
        load_model(str(tmp_path))


def test_bfloat16_is_close(tiny_model: str, tiny: LightningDOTEmbedder) -> None:
    half = LightningDOTEmbedder(tiny_model, device="cpu", dtype="bfloat16")
    exact, rounded = tiny.encode_images([make_photo(4)])[0], half.encode_images([make_photo(4)])[0]
    assert float(exact @ rounded / np.linalg.norm(exact) / np.linalg.norm(rounded)) > 0.98
