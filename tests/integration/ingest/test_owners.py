"""Photos of several tenants: one content in one namespace is one row, whatever the others have."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from ldot_milvus import open_store
from ldot_milvus.images import content_id
from ldot_milvus.ingest.changes import change_rows, prune
from ldot_milvus.ingest.ingestor import Ingestor, Report
from ldot_milvus.sources import Source, expand
from ldot_milvus.stores.identity import content_of, row_id
from tests.conftest import make_photo
from tests.faulty import QuickModel

ONE, TWO = make_photo(1, (20, 20)), make_photo(2, (20, 20)) + b"\0"
TENANTS = ("default", "ann", "bob")


@pytest.fixture(params=["faiss:{}/store", "{}/milvus.db"], ids=["local", "milvus_lite"])
def ingestor(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Ingestor, "embedder", QuickModel())
    with open_store(request.param.format(tmp_path), "photos") as store:
        yield Ingestor(store, tiny_model)


def counts(report: Report) -> tuple[int, int, int, int]:
    return report.added, report.updated, report.unchanged, len(report.failed)


@pytest.mark.parametrize("order", list(itertools.permutations(TENANTS)), ids="-".join)
@pytest.mark.parametrize("together", [True, False], ids=["one_chunk", "a_chunk_each"])
def test_tenants_with_the_same_photo_share_nothing(
    ingestor: Ingestor, tmp_path: Path, order: tuple[str, ...], together: bool
) -> None:
    (tmp_path / "a.jpg").write_bytes(ONE)
    sources = [
        Source(str(tmp_path / "a.jpg"), namespace=name, caption=f"of {name}", metadata={"album": name})
        for name in order
    ]
    chunks = [sources] if together else [[source] for source in sources]
    for expected in ((1, 0, 0, 0), (0, 0, 1, 0)):
        for chunk in chunks:
            assert counts(ingestor.ingest(chunk)) == tuple(len(chunk) * count for count in expected)
    rows = {row.namespace: row for row in ingestor.store.iterate()}
    assert rows.keys() == set(TENANTS)
    for name, row in rows.items():
        assert row.id == row_id(name, content_id(ONE))
        assert (row.caption, row.metadata["album"]) == (f"of {name}", name)
        assert ingestor.region_store is not None
        assert ingestor.region_store.has([row.id])
    ingestor.store.delete(filter={"namespace": "ann"})
    assert counts(ingestor.ingest(sources))[0] == 1
    assert ingestor.store.count() == 3


def test_an_edited_photo_is_replaced_for_its_tenant_alone(ingestor: Ingestor, tmp_path: Path) -> None:
    """The other tenants' rows are reported as stale until they enqueue the photo too."""
    path = tmp_path / "a.jpg"
    path.write_bytes(ONE)
    ingestor.ingest([Source(str(path), namespace=name) for name in TENANTS])
    path.write_bytes(TWO)
    for number, name in enumerate(TENANTS):
        report = ingestor.ingest([Source(str(path), namespace=name)])
        assert (report.added, report.replaced, report.stale) == (1, 1, 2 - number)
    assert {content_of(row) for row in ingestor.store.iterate()} == {content_id(TWO)}
    path.rename(tmp_path / "b.jpg")
    folder = str(tmp_path)
    found = [source for source in expand([folder]) if source.path.endswith(".jpg")]
    change_rows(ingestor.store, prune(ingestor.store, [folder], found).changes(), ingestor.region_store)
    assert {row.source for row in ingestor.store.iterate()} == {str(tmp_path / "b.jpg")}
    assert ingestor.store.count() == 3


@pytest.mark.parametrize("together", [True, False], ids=["one_chunk", "a_chunk_each"])
def test_an_id_of_the_callers_belongs_to_one_namespace(ingestor: Ingestor, tmp_path: Path, together: bool) -> None:
    for name, data in (("a", ONE), ("b", TWO)):
        (tmp_path / f"{name}.jpg").write_bytes(data)
    mine = Source(str(tmp_path / "a.jpg"), id="17", namespace="ann", caption="secret")
    others = [
        replace(mine, namespace="bob", caption="mine"),
        replace(mine, path=str(tmp_path / "b.jpg"), namespace="bob"),
    ]
    total = Report()
    for chunk in [[mine, *others]] if together else [[mine], *([other] for other in others)]:
        total.add(ingestor.ingest(chunk))
    assert counts(total) == (1, 0, 0, 2)
    assert {failure.reason for failure in total.failed} == {
        'the id "17" belongs to a row of another namespace: choose another id'
    }
    (row,) = ingestor.store.iterate()
    assert (row.id, row.namespace, row.caption) == ("17", "ann", "secret")
