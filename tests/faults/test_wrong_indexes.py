"""A server whose indexes answer wrongly or cannot be built: the real server, and between it and us one that lies."""

from __future__ import annotations

import logging
import secrets
from typing import Any

import numpy as np
import pytest

from ldot_milvus.doctor import examine
from ldot_milvus.errors import StoreError
from ldot_milvus.ingest.reindex import rebuild_index
from ldot_milvus.settings import Settings
from ldot_milvus.stores import Record
from ldot_milvus.stores.index_spec import IndexSpec
from ldot_milvus.stores.milvus import building
from ldot_milvus.stores.milvus.schema import VECTOR, Described, index_params
from ldot_milvus.stores.milvus.server import Server
from ldot_milvus.stores.milvus.store import MilvusStore
from ldot_milvus.stores.recall import Recall
from tests.milvus_server import drop_all

pytestmark = [pytest.mark.xdist_group("milvus"), pytest.mark.servers]

DIM, ROWS = 16, 1200


class LyingServer(Server):
    """Has a GPU, by its own account, and answers each query with the rows of another for some index types."""

    def __init__(self, address: str, wrong: set[str]) -> None:
        super().__init__(address)
        self.wrong = wrong
        self.index_type = "FLAT"

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Make an index on a GPU FLAT, and mix up the answers."""
        if method == "create_collection" and "index_params" in kwargs:
            kwargs["index_params"] = self._possible(kwargs["index_params"])
        if method == "create_index":
            args = (args[0], self._possible(args[1]))
        answer = super().call(method, *args, **kwargs)
        if method == "describe_index" and answer:
            return {**answer, "index_type": self.index_type}
        if method == "search" and self.index_type in self.wrong:
            return [*answer[1:], answer[0]]
        return answer

    def _possible(self, params: Any) -> Any:
        [param] = params
        self.index_type = param.index_type
        return index_params(IndexSpec("FLAT"), DIM) if self.index_type.startswith("GPU_") else params


@pytest.fixture
def rows() -> list[Record]:
    vectors = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    return [Record(f"{n:05d}", row) for n, row in enumerate(vectors)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "left"),
    [(set(), "GPU_BRUTE_FORCE"), ({"GPU_BRUTE_FORCE"}, "HNSW"), ({"GPU_BRUTE_FORCE", "HNSW"}, "FLAT")],
    ids=["none is wrong", "that on a GPU is wrong", "the graph is wrong too"],
)
def test_auto_takes_the_next_type_and_says_so(
    milvus_url: str,
    rows: list[Record],
    wrong: set[str],
    left: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An index on a GPU whose answers are wrong, as in milvus#49864: the next type that is right takes its place."""
    monkeypatch.setattr("ldot_milvus.stores.milvus.probing.refusal", lambda *_: None)
    store = MilvusStore(milvus_url, f"w{secrets.token_hex(6)}", index=IndexSpec())
    store.server = LyingServer(milvus_url, wrong)
    try:
        store.upsert(rows)
        with caplog.at_level(logging.INFO):
            assert rebuild_index(store) == ROWS
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == len(wrong)
        for (failed, following), warning in zip(
            (("GPU_BRUTE_FORCE", "HNSW"), ("HNSW", "FLAT")), warnings, strict=False
        ):
            assert f"{failed} has recall@10 0.0" in warning
            assert f"below 0.95: {following} is built instead" in warning
        assert store.index == IndexSpec(left)
        recall = Recall.of(store)
        assert (recall is None) == (left == "FLAT")
        assert recall is None or (recall.sufficient and f"{recall}; measured in" in caplog.text)
        query = rows[7].embedding
        assert query is not None
        scores = np.stack([row.embedding for row in rows if row.embedding is not None]) @ query
        found = [match.record.id for match in store.search(query[None], 5)[0]]
        assert found == [f"{n:05d}" for n in np.argsort(-scores)[:5]]
    finally:
        drop_all(store)


@pytest.mark.slow
def test_a_type_that_was_asked_for_stays_and_doctor_reports_it(
    milvus_url: str, rows: list[Record], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldot_milvus.doctor._indexes", lambda _: "not asked")
    store = MilvusStore(milvus_url, f"w{secrets.token_hex(6)}", index=IndexSpec("HNSW"))
    server = store.server = LyingServer(milvus_url, {"HNSW"})
    monkeypatch.setattr("ldot_milvus.stores.milvus.store.Server", lambda *_, **__: server)

    def finding(*, recall: bool = False) -> tuple[bool, str]:
        settings = Settings(store=milvus_url, collection=store.collection)
        other_parts = dict.fromkeys(("device", "model", "broker"), "not of interest")
        [found] = [found for found in examine(settings, other_parts, recall=recall) if found.part == "recall"]
        return found.ok, found.text

    try:
        store.upsert(rows)
        assert finding() == (True, "HNSW is not measured: ldot doctor --recall does it (it reads up to 200,000 rows)")
        with caplog.at_level(logging.WARNING):
            rebuild_index(store)
        assert "below 0.95: run ldot reindex with another --index" in caplog.text
        assert store.index == IndexSpec("HNSW")
        ok, text = finding()
        assert not ok
        assert text.startswith("HNSW has recall@10 0.0")
        assert "run ldot reindex, with larger parameters in --index or with --index FLAT" in text
        server.wrong = set()
        assert finding()[0] is False  # measured before
        ok, text = finding(recall=True)
        assert ok
        assert text.startswith("HNSW has recall@10 ")
        assert finding() == (ok, text)
    finally:
        drop_all(store)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"state": "Failed", "index_state_fail_reason": "CUDA out of memory"}, "CUDA out of memory"),
        ({"state": "InProgress", "indexed_rows": 7}, "7 rows are indexed, and no more since 0 s"),
        ({"state": "Finished", "indexed_rows": ROWS}, "out of memory while loading"),
    ],
    ids=["a build that fails", "a build that stops", "an index that does not fit"],
)
def test_an_index_that_cannot_be_built(
    state: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded states, since no server here has a GPU: ``auto`` takes the next type, another request is refused."""
    monkeypatch.setattr(building, "STALL_SECONDS", 0.05)
    monkeypatch.setattr(building, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(building, "measure", lambda *_: None)

    class Playing:
        address, lite = "http://played:19530", False
        built: tuple[str, ...] = ()

        def call(self, name: str, *args: Any, **_: Any) -> Any:
            if name == "create_index":
                [param] = args[1]
                self.built += (param.index_type,)
            if name == "load_collection" and not self.built and "loading" in words:
                raise StoreError(words)
            if name == "describe_index":
                assert args[1] == VECTOR
                return {"state": "Finished"} if self.built else state
            return None

    class Store:
        collection, address = "photos", Playing.address

        def count(self) -> int:
            return ROWS

    server = Playing()
    described = Described("photos__1", DIM, None, IndexSpec("GPU_BRUTE_FORCE"), {})
    with pytest.raises(StoreError, match=f"cannot build the index GPU_BRUTE_FORCE .*{words}.*: name another type"):
        building.finish(Store(), server, described, auto=False)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        building.finish(Store(), server, described, auto=True)  # type: ignore[arg-type]
    assert server.built == ("HNSW",)
    assert words in caplog.text
    assert "HNSW is built instead" in caplog.text
