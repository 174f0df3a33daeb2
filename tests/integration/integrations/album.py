"""A small collection that all adapters search."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from ldot_milvus import Hit, Retriever, load_metadata, open_store
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.sources import expand
from tests.conftest import make_photo

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before the first import of haystack


@dataclass(frozen=True)
class Album:
    """Six photos with captions and an album each, the second without a caption, ingested with the tiny model."""

    store: str
    model: str
    photos: Path

    @property
    def parts(self) -> dict[str, str]:
        """Arguments by which every adapter opens the collection."""
        return {"store": self.store, "collection": "photos", "model": self.model}

    @property
    def env(self) -> dict[str, str]:
        """Settings for a process that opens the collection."""
        return {"LDOT_STORE": self.store, "LDOT_COLLECTION": "photos", "LDOT_MODEL": self.model, "LDOT_DEVICE": "cpu"}

    def search(self, *arguments, **options) -> list[Hit]:
        """The answer of the library itself."""
        from ldot_milvus import LightningDOTEmbedder

        with open_store(self.store, "photos") as store:
            return Retriever(LightningDOTEmbedder(self.model, device="cpu"), store).search(*arguments, **options)


@pytest.fixture(scope="session")
def album(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Album:
    folder = tmp_path_factory.mktemp("album")
    photos = folder / "photos"
    photos.mkdir()
    lines = []
    for number in range(6):
        (photos / f"{number}.jpg").write_bytes(make_photo(number, (640 + 10 * number, 480)))
        fields = {"file": f"{number}.jpg", "album": "ab"[number % 2], "year": 2020 + number}
        lines.append({**fields, "caption": f"blocks of colour {number}"} if number != 1 else fields)
    (folder / "photos.jsonl").write_text("\n".join(map(json.dumps, lines)))
    address = f"faiss:{folder / 'store'}"
    with open_store(address, "photos") as store:
        sources = expand([str(photos)], metadata=load_metadata(str(folder / "photos.jsonl")))
        assert Ingestor(store, tiny_model).ingest(list(sources)).added == 6
    return Album(address, tiny_model, photos)
