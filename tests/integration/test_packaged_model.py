"""ldot-mini on the sample photos: what make demo promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ldot_milvus import Retriever, open_store
from ldot_milvus.bundle import PACKAGED, find_model
from ldot_milvus.descriptions import load_metadata
from ldot_milvus.ingestion import Ingestor
from ldot_milvus.sources import expand
from tests.conftest import PHOTOS, ROOT

DEMO = {}


@pytest.fixture(scope="module")
def retriever(mini, tmp_path_factory: pytest.TempPathFactory):
    with open_store(f"faiss:{tmp_path_factory.mktemp('demo')}", "photos") as store:
        ingestor = Ingestor(store, "ldot-mini")
        vars(ingestor)["embedder"] = mini  # loaded once for all tests of this module
        metadata = load_metadata(str(PHOTOS / "photos.jsonl"))
        assert ingestor.ingest(list(expand([str(PHOTOS)], metadata=metadata))).added == 51
        yield Retriever(mini, store)


@pytest.mark.parametrize("query", DEMO)
def test_demo_query_finds_its_photo(retriever: Retriever, query: str) -> None:
    assert f'"{query}"' in (ROOT / "Makefile").read_text()
    found = [Path(hit.source).name for hit in retriever.search(query, k=5)]
    assert DEMO[query] in found


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


def test_vectors_have_length_1(mini) -> None:
    vectors = mini.encode_texts(["a dog", "a man on a horse"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_package_keeps_its_size_and_its_card() -> None:
    folder = PACKAGED / "ldot-mini"
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) <= 100e6
    assert max(sizes) <= 50e6
    card = (folder / "README.md").read_text()
    for word in ("Flickr8k", "MiniLM", "COCO", "ResNet-50", "Apache-2.0", "Limits"):
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
