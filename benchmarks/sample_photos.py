"""The photos of ``examples/photos``, searched by a model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.families import ROOT
from ldot_milvus import Retriever, load_embedder, open_store
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.sources import expand

PHOTOS = ROOT / "examples" / "photos"


@contextmanager
def sample_photos(model: str) -> Iterator[Retriever]:
    """Ingest the sample photos into a temporary local store; the value of the block searches them."""
    with tempfile.TemporaryDirectory(prefix="ldot-bench-") as name, open_store(f"faiss:{name}", "photos") as store:
        Ingestor(store, model, device="cpu").ingest(list(expand([str(PHOTOS)])))
        yield Retriever(load_embedder(model, device="cpu"), store)
