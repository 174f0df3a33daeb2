"""Existing applications: the collection queried by plain pymilvus, as examples/plain_pymilvus.py does."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from ldot_milvus import Retriever, open_store
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.sources import expand
from ldot_milvus.sources.metadata import load_metadata
from tests.conftest import PHOTOS, ROOT

pytestmark = [pytest.mark.xdist_group("milvus"), pytest.mark.servers]


def test_the_example_finds_what_the_retriever_finds(mini, milvus_url: str, tmp_path: Path) -> None:
    import json

    from pymilvus import MilvusClient

    example = runpy.run_path(str(ROOT / "examples" / "plain_pymilvus.py"))
    with open_store(milvus_url, "plain_example") as store:
        ingestor = Ingestor(store, "ldot-mini", region_store=str(tmp_path))
        ingestor._embedder = mini
        ingestor.ingest(list(expand([str(PHOTOS)], metadata=load_metadata(str(PHOTOS / "photos.jsonl")))))
        expected = Retriever(mini, store, ingestor.region_store).search("a long red bus", k=5, rerank=0)
        client = MilvusClient(milvus_url)
        rows = example["search"](client, "plain_example", "a long red bus")
        assert [row["id"] for row in rows] == [hit.id for hit in expected]
        assert rows[0]["score"] == pytest.approx(expected[0].score, abs=1e-4)
        # A filter alone, like WHERE in SQL, and then with a vector.
        wide = example["search"](client, "plain_example", "", "width > height and namespace == 'default'", k=100)
        assert 0 < len(wide) < 51
        assert all(row["width"] > row["height"] for row in wide)
        both = example["search"](client, "plain_example", "a long red bus", "height > width")
        assert both
        assert all(row["height"] > row["width"] for row in both)
        about = json.loads(client.describe_collection("plain_example")["description"])
        assert about == {"model": mini.fingerprint, "dim": mini.dim, "schema_version": 2}
        client.drop_alias("plain_example")
        client.drop_collection("plain_example__1")
