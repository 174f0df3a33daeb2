"""Photos of each published family through one Redis worker into every store, re-ranked without opening a photo."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from ldot_milvus import open_store
from ldot_milvus.integrations.langchain import LightningDOTRetriever
from tests import families
from tests.conftest import Run
from tests.worker_process import Worker

pytestmark = pytest.mark.servers

PAIRS = {"siglip with edje": ("siglip", "edje"), "clip with blip": ("clip", "blip"), "blip": ("blip", None)}
"""First stage and re-ranker; None: the first stage's own."""


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every"])
def test_enqueued_ingested_by_a_worker_and_searched(
    every: bool,
    run: Run,
    redis_url: str,
    milvus_url: str,
    photo_folder: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = {name: str(getattr(families, name)(tmp_path / name)) for name in ("siglip", "clip", "blip", "edje")}
    photos, name = photo_folder(5), f"c{secrets.token_hex(4)}"
    stores = (f"faiss:{tmp_path}/store", f"{tmp_path}/lite.db", milvus_url)
    cases = [(store, pair, f"{name}_{n}") for store in stores for n, pair in enumerate(PAIRS)]
    cases = cases if every else cases[::4]  # each family once, and each store
    env = {"LDOT_BROKER": redis_url, "LDOT_DEVICE": "cpu"}
    worker = Worker(tmp_path, env, "--pool", "threads", "--concurrency", "1")
    try:
        for store, pair, collection in cases:
            model, reranker = (part and models[part] for part in PAIRS[pair])
            done = run(
                "celery", "-A", "workers", "enqueue", str(photos), "--store", store, "--collection", collection,
                "--model", str(model), *(("--reranker", reranker) if reranker else ()), env=env,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "5 added" in done.stdout, done.stdout
    finally:
        worker.stop()  # a file of Milvus Lite is open in one process
    for path in photos.iterdir():
        path.unlink()
    for store, pair, collection in cases:
        model, reranker = (part and models[part] for part in PAIRS[pair])
        with open_store(store, collection) as opened:
            retriever = LightningDOTRetriever(store=opened, model=model, reranker=reranker, k=5)
            documents = retriever.invoke("two dogs in the snow")
        assert len(documents) == 5
        assert all(document.metadata["rerank_score"] is not None for document in documents), (store, pair)
