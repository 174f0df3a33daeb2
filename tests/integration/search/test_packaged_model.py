"""ldot-mini on the sample photos: what make demo promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ldot_milvus import InputError, Retriever, UsageError, open_store
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.models.lightningdot.text_side import load_pairs, load_texts
from ldot_milvus.models.registry import PACKAGED, find_model
from ldot_milvus.search.why import can_explain, why
from ldot_milvus.sources import expand
from ldot_milvus.sources.metadata import load_metadata
from tests.conftest import PHOTOS, ROOT

pytestmark = pytest.mark.xdist_group("packaged model")  # one process encodes the sample photos

# The queries of make demo, and the photo that each one means.
DEMO = {
    "two people riding horses on the beach": "000000214753.jpg",
    "a boy doing a trick on a skateboard": "000000349860.jpg",
    "a man standing next to an elephant": "000000519208.jpg",
    "a bear and some vultures in the grass": "000000229997.jpg",
    "a long red bus": "000000568290.jpg",
}


@pytest.fixture(scope="module")
def retriever(mini, tmp_path_factory: pytest.TempPathFactory):
    with open_store(f"faiss:{tmp_path_factory.mktemp('demo')}", "photos") as store:
        ingestor = Ingestor(store, "ldot-mini")
        ingestor._embedder = mini  # loaded once for all tests of this module
        metadata = load_metadata(str(PHOTOS / "photos.jsonl"))
        assert ingestor.ingest(list(expand([str(PHOTOS)], metadata=metadata))).added == 51
        yield Retriever(mini, store)


@pytest.mark.parametrize("query", DEMO)
def test_demo_query_finds_its_photo_first(retriever: Retriever, query: str) -> None:
    assert f'"{query}"' in (ROOT / "Makefile").read_text()
    first, *_ = retriever.search(query, k=5)
    assert Path(first.source).name == DEMO[query]


def test_nothing_found_is_an_answer(retriever: Retriever) -> None:
    """There are no two dogs in the sample photos."""
    first, *_ = retriever.search("two dogs", k=5)
    assert first.probability < 0.5
    assert retriever.search("two dogs", k=5, min_probability=0.5) == []


# Where a thing is in a photo, as shares of its width and height: drawn by hand.
THINGS = {
    ("a long red bus", "bus"): ("000000568290.jpg", (0.31, 0.32, 0.73, 0.70)),
    ("a green bus on the street", "bus"): ("000000252639.jpg", (0.23, 0.34, 0.59, 0.65)),
    ("two people riding horses on the beach", "horses"): ("000000214753.jpg", (0.38, 0.42, 0.74, 0.75)),
    ("a bear and some vultures in the grass", "bear"): ("000000229997.jpg", (0.31, 0.27, 0.67, 0.70)),
}


@pytest.mark.parametrize(("query", "word"), THINGS)
def test_a_word_finds_the_regions_of_its_thing(retriever: Retriever, query: str, word: str) -> None:
    name, (left, top, right, bottom) = THINGS[query, word]
    (hit,) = [hit for hit in retriever.search(query, k=51) if Path(hit.source).name == name]
    found = why(retriever, query, hit.id)
    weights = found.weights[[one.text for one in found.words].index(word)]
    x, y = (found.regions[:, :2] + found.regions[:, 2:]).T / 2
    inside = (left < x) & (x < right) & (top < y) & (y < bottom)
    assert weights[inside].mean() > 3 * weights[~inside].mean()


def test_why_needs_region_data_and_a_reranker(retriever: Retriever, mini) -> None:
    assert can_explain(retriever)
    with pytest.raises(InputError, match="no region data"):
        why(retriever, "a dog", "0" * 64)
    without = Retriever(mini, retriever.store, reranker="none")
    assert not can_explain(without)
    with pytest.raises(UsageError, match="LDOT_RERANKER"):
        why(without, "a dog", "0" * 64)


def test_probabilities_are_calibrated() -> None:
    """On Flickr8k's dev split, by cross-validation (benchmarks/probability.py)."""
    for folder in (PACKAGED / "ldot-mini", PACKAGED / "ldot-mini" / "reranker"):
        figures = json.loads((folder / "calibration.json").read_text())["figures"]
        assert figures["expected_calibration_error"] < 0.05
        assert figures["expected_calibration_error_of_all_shown"] < 0.05


def test_stored_regions_take_at_most_40_kb(retriever: Retriever) -> None:
    sizes = [path.stat().st_size for path in Path(retriever.region_store.address).rglob("*.safetensors")]
    assert len(sizes) == 51
    assert max(sizes) <= 40_000


def test_captions_find_their_photos_better_than_chance(retriever: Retriever) -> None:
    """On photos of another data set than it was trained on; the figures are in the model card."""
    lines = [json.loads(line) for line in (PHOTOS / "photos.jsonl").read_text().splitlines()]
    first = [retriever.search(line["captions"][0], k=5, rerank=0) for line in lines]
    found = sum(
        line["file"] in {Path(hit.source).name for hit in hits} for line, hits in zip(lines, first, strict=True)
    )
    assert found >= 30  # of 51; chance finds five


LEARNED, LABELS, CANONICAL = slice(0, 192), slice(192, 318), slice(318, 510)
"""What a vector consists of, before the correction."""


def test_vectors_are_three_parts_and_a_correction(mini) -> None:
    texts = mini.encode_texts(["a dog on a leash", "a man on a horse"])
    images = mini.encode_images([PHOTOS / "000000377575.jpg"])
    assert mini.dim == texts.shape[1] == images.shape[1] == 512
    # The length is 1, and a little less in the stored directions.
    lengths = np.linalg.norm(np.concatenate([texts, images])[:, LEARNED], axis=1)
    assert (lengths > 0.7).all()
    assert (lengths < 1 + 1e-5).all()
    np.testing.assert_allclose(np.linalg.norm(texts[:, CANONICAL], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(images[:, CANONICAL], axis=1), 1.2, atol=1e-5)  # their weight
    np.testing.assert_allclose(texts[:, 511], 1)
    np.testing.assert_allclose(images[:, 510], 1)
    for part in (LEARNED, LABELS, CANONICAL):
        dogs, riders = texts[:, part] @ images[0, part]  # the photo shows a dog on a leash
        assert dogs > riders


def test_label_names_find_what_flickr8k_does_not_show(retriever: Retriever, mini) -> None:
    """By their block alone, one word finds its photo among all sample photos."""
    rows = list(retriever.store.iterate(with_embeddings=True))
    blocks = np.stack([row.embedding for row in rows])[:, LABELS]
    expected = {"an elephant": "000000519208.jpg", "broccoli": "000000062554.jpg",
                "a passenger plane": "000000125870.jpg", "a scooter": "000000165518.jpg"}  # fmt: skip
    first = (mini.encode_texts(list(expected))[:, LABELS] @ blocks.T).argmax(1)
    assert [Path(rows[row].source).name for row in first] == list(expected.values())


def test_queries_run_by_onnx(mini) -> None:
    """A graph of another configuration, such as one of another dot_weight, would be left aside without a word."""
    texts = load_texts(mini.bundle.files, "cpu", None)
    assert texts is not None
    reranker = mini.bundle.files.own_reranker()
    assert load_pairs(reranker, texts.tokens, lambda: mini.reranker) is not None


def test_package_keeps_its_size_and_its_card() -> None:
    folder = PACKAGED / "ldot-mini"
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) <= 100e6
    assert max(sizes) <= 50e6
    card = (folder / "README.md").read_text()
    for word in ("Flickr8k", "MiniLM", "COCO", "ResNet-50", "EfficientNet", "Apache-2.0", "Limits"):
        assert word in card


def test_fingerprint_is_of_the_files_not_of_the_name(tiny_model: str, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert find_model(str(copy)).fingerprint == find_model(tiny_model).fingerprint
    weights = copy / "regions" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert find_model(str(copy)).fingerprint != find_model(tiny_model).fingerprint
