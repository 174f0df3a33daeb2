"""A collection of six photos of two tenants, made with a tiny model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ldot_milvus import open_store
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.search import shared
from ldot_milvus.sources.base import source_at
from tests.conftest import make_photo
from tests.integration.integrations.album import album  # noqa: F401  (a fixture)


@dataclass(frozen=True)
class Photos:
    """An ingested collection.

    Attributes:
        folder: folder of the photos 0.jpg to 5.jpg; the last two are large.
        address: address of the store.
        fields: what names the collection and its model in a component.
    """

    folder: Path
    address: str
    model: str

    @property
    def fields(self) -> dict[str, Any]:
        return {"store": self.address, "collection": "photos", "model": self.model}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Photos:
    folder = tmp_path_factory.mktemp("photos")
    made = Photos(folder, f"faiss:{folder / 'store'}", tiny_model)
    sources = []
    for seed in range(6):
        path = folder / f"{seed}.jpg"
        path.write_bytes(make_photo(seed, (1600, 1200) if seed > 3 else (80, 60)))
        own = {"source": "flickr", "score": "five stars", "width": "wide", "album": seed % 2}
        tenant = "anna" if seed % 2 else "bob"
        caption = "" if seed == 0 else f"photo {seed}"
        sources.append(source_at(str(path), namespace=tenant, metadata=own, caption=caption))
    with open_store(made.address, "photos") as store:
        assert Ingestor(store, tiny_model).ingest(sources).added == 6
    return made


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that are loaded from here on; those loaded before are forgotten."""
    loaded: list[str] = []
    load = shared.load_embedder

    def counted(name: str, **arguments: Any) -> Any:
        loaded.append(name)
        return load(name, **arguments)

    for cache in (shared._embedders, shared._rerankers, shared._retrievers, shared._stores):
        cache.clear()
    monkeypatch.setattr(shared, "load_embedder", counted)
    return loaded
